"""Call `hf_mpwriter.patch()` at the start of every Python process below `hf-mpwriter run --patch`.

The command puts this directory first into PYTHONPATH. A `sitecustomize` of the user, which this one hides, runs after
it.
"""

import os
import sys

here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
try:
    from hf_mpwriter.integrations.patching import patch
except ImportError as error:
    print(f"hf-mpwriter run --patch: {sys.executable} cannot import hf_mpwriter: {error}", file=sys.stderr)
else:
    patch()

ours = sys.modules.pop("sitecustomize", None)
try:
    import sitecustomize  # noqa: F401 - the one of the user
except ImportError:
    pass
finally:
    if ours is not None:
        sys.modules.setdefault("sitecustomize", ours)
