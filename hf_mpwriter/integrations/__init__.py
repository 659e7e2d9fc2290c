"""Frameworks that construct the writer themselves, and writers that are already there.

| module | for |
|---|---|
| `transformers.py` | `Trainer(..., callbacks=[HubTensorBoardCallback("me/run")])` |
| `accelerate.py` | `Accelerator(log_with="hf_mpwriter")` |
| `lightning.py` | `Trainer(logger=HubTensorBoardLogger("runs", repo_id="me/run"))`, Fabric too |
| `patching.py` | `hf_mpwriter.patch()` and `hf-mpwriter run --patch`: code that cannot be changed |
| `fromenv.py` | where to, for those who name no repository: it is in the environment |

No framework is imported before its module is.
"""

from __future__ import annotations

MINIMUM = {"accelerate": "1.15", "lightning": "2.6", "transformers": "5.18"}  # the oldest that work; as in setup.cfg


def require(package: str) -> None:
    """Check that a framework is there and new enough.

    Args:
        package: its name on the package index, which is also the name of the extra.

    Raises:
        ImportError: it is not; the message names what helps.
    """
    from importlib import metadata

    from packaging.version import Version

    hint = f"Run: pip install -U 'hf-mpwriter[{package}]'"
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ImportError(f"{package} is not installed. {hint}") from None
    if Version(found) < Version(MINIMUM[package]):
        raise ImportError(f"{package} {found} is too old, {MINIMUM[package]} is needed. {hint}")
