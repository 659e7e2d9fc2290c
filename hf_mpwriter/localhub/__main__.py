"""`python -m hf_mpwriter.localhub --root DIR --port N [--no-xet]`: serve a Hub until it is interrupted.

Tokens come from the environment, which other users of the machine cannot read.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

from hf_mpwriter.localhub.server.accounts import READ_TOKEN_VARIABLE, TOKEN_VARIABLE, Tokens
from hf_mpwriter.localhub.server.limits import HOUR, HubLimits
from hf_mpwriter.localhub.server.parent import end_with
from hf_mpwriter.localhub.server.serving import HOST, ServerError, check_host, serve
from hf_mpwriter.localhub.server.state import DEFAULT_USER, MULTIPART_OVER


def parser() -> argparse.ArgumentParser:
    """Return the command line parser."""
    result = argparse.ArgumentParser(
        prog="python -m hf_mpwriter.localhub",
        description="Serve a Hugging Face Hub on loopback from a folder.",
        epilog=f"To require a token from clients, set {TOKEN_VARIABLE} and {READ_TOKEN_VARIABLE}.",
    )
    result.add_argument("--root", required=True, help="folder for all data")
    result.add_argument("--host", default=HOST, help="only %(default)s is accepted")
    result.add_argument("--port", type=int, default=0, help="0 picks a free port")
    result.add_argument("--user", default=DEFAULT_USER, help="user name that whoami returns")
    result.add_argument("--no-xet", action="store_true", help="serve LFS only")
    result.add_argument("--multipart-over", type=int, default=MULTIPART_OVER, help="bytes; larger LFS objects in parts")
    result.add_argument("--discard", action="store_true", help="verify LFS content, then drop it")
    result.add_argument("--long-ids", action="store_true", help="commit ids of 64 hex digits")
    result.add_argument("--commits-per-hour", type=int, default=0, help="per repository; 0: unlimited")
    result.add_argument("--commit-window", type=float, default=HOUR, help="seconds that count as that hour")
    result.add_argument("--requests-per-5min", type=int, default=0, help="to the API; 0: unlimited")
    result.add_argument("--busy", action="store_true", help="refuse a commit while another one is in progress")
    result.add_argument("--socket", type=int, help=argparse.SUPPRESS)
    result.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    return result


def main() -> int:
    """Run the server that the command line describes."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:  # else a socket takes the number of a closed standard stream
        os.set_inheritable(fd, True)
    os.close(fd)
    args = parser().parse_args()
    if args.parent:
        end_with(args.parent)
    try:
        check_host(args.host)
        serve(
            args.root,
            args.port,
            tokens=Tokens.take(os.environ),
            limits=HubLimits(args.commits_per_hour, args.requests_per_5min, args.busy, args.commit_window),
            xet=not args.no_xet,
            user=args.user,
            multipart_over=args.multipart_over,
            discard=args.discard,
            long_ids=args.long_ids,
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
