"""`python -m hf_mpwriter.localhub --root DIR --port N [--no-xet]`: serve a Hub until it is interrupted.

A token is taken from the environment, where other users of the machine do not see it.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

from hf_mpwriter.localhub.hub import DEFAULT_USER, MULTIPART_OVER
from hf_mpwriter.localhub.serving import HOST, TOKEN_VARIABLE, ServerError, check_host, end_with, serve


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m hf_mpwriter.localhub",
        description="Serve a Hugging Face Hub on loopback from a folder.",
        epilog=f"A token, if requests must carry one, is read from {TOKEN_VARIABLE}.",
    )
    result.add_argument("--root", required=True, help="the folder with all data")
    result.add_argument("--host", default=HOST, help="nothing but %(default)s is accepted")
    result.add_argument("--port", type=int, default=0, help="0 picks a free one")
    result.add_argument("--user", default=DEFAULT_USER, help="the name that whoami tells")
    result.add_argument("--no-xet", action="store_true", help="LFS only")
    result.add_argument("--multipart-over", type=int, default=MULTIPART_OVER, help="bytes; larger LFS objects in parts")
    result.add_argument("--socket", type=int, help=argparse.SUPPRESS)
    result.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    return result


def main() -> int:
    """Serve as the command line says."""
    args = parser().parse_args()
    if args.parent:
        end_with(args.parent)
    try:
        check_host(args.host)
        serve(
            args.root,
            args.port,
            os.environ.pop(TOKEN_VARIABLE, None) or None,
            xet=not args.no_xet,
            user=args.user,
            multipart_over=args.multipart_over,
            sock=socket.socket(fileno=args.socket) if args.socket is not None else None,
        )
    except KeyboardInterrupt:
        return 0
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
