"""`python -m hf_mpwriter.localhub SOCKET PARENT ROOT CONFIG`: the child process of a `LocalHub`.

Tokens come from the environment, which other users of the machine cannot read.
"""

from __future__ import annotations

import os
import sys

from hf_mpwriter.localhub.server.accounts import Tokens
from hf_mpwriter.localhub.server.child import inherited
from hf_mpwriter.localhub.server.config import HubConfig, ServerError
from hf_mpwriter.localhub.server.serving import serve


def main() -> int:
    """Serve on the inherited socket until a signal; return the exit code."""
    sock, (root, config) = inherited()
    try:
        serve(root, HubConfig.from_json(config), tokens=Tokens.take(os.environ), sock=sock)
    except KeyboardInterrupt:
        return 0
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
