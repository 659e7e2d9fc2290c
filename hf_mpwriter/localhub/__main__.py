"""The child process of a `LocalHub`, with the arguments SOCKET PARENT ROOT CONFIG; see `child`.

The token comes from the environment, which other users of the machine cannot read.
"""

from __future__ import annotations

import json
import os
import sys

from hf_mpwriter.localhub.child import inherited
from hf_mpwriter.localhub.config import HubConfig, ServerError, take_token
from hf_mpwriter.localhub.serving import serve


def main() -> int:
    """Serve on the inherited socket until a signal; return the exit code."""
    sock, (root, config) = inherited()
    try:
        serve(root, HubConfig(**json.loads(config)), token=take_token(os.environ), sock=sock)
    except KeyboardInterrupt:
        return 0
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
