"""Frameworks that construct the writer themselves, and programs that cannot be changed.

| module | purpose |
|---|---|
| `transformers` | `Trainer(..., callbacks=[HubTensorBoardCallback("me/run")])` |
| `accelerate` | `Accelerator(log_with="hf_mpwriter")` |
| `lightning` | `Trainer(logger=HubTensorBoardLogger("runs", repo_id="me/run"))`, and Fabric |
| `patching` | `hf_mpwriter.patch()`: other libraries' names resolve to the writers of hf_mpwriter |
| `site/sitecustomize` | `hf-mpwriter run --patch`: calls `patch()` in every Python process of a program |
| `shared` | the destination from the environment, scalars as one record, the writers of `patch()` |

A framework is imported only with its module. A new integration is a module here, a version in MINIMUM, an extra in
`setup.cfg`, and a program in `scripts/examples/`.
"""

from __future__ import annotations

from hf_mpwriter.system.interrupts import ours

# the oldest versions that work, as in setup.cfg
MINIMUM = {"accelerate": "1.15", "lightning": "2.6", "transformers": "5.18"}


def require(package: str) -> None:
    """Check that a framework is installed and new enough.

    Args:
        package: name on the package index, and of the extra.

    Raises:
        ImportError: the framework is missing or too old; the message says how to install it.
    """
    from importlib import metadata

    from packaging.version import Version

    hint = f"Run in the clone: pip install -U '.[{package}]'"
    try:
        found = metadata.version(package)
    except ours(metadata.PackageNotFoundError):
        raise ImportError(f"{package} is not installed. {hint}") from None
    if Version(found) < Version(MINIMUM[package]):
        raise ImportError(f"{package} {found} is too old, {MINIMUM[package]} is needed. {hint}")
