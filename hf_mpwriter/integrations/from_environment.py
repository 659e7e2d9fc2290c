"""The destination of writers that name no repository, from the environment.

    HF_MPWRITER_REPO_ID         repository
    HF_MPWRITER_REPO_TYPE       model, dataset or space
    HF_MPWRITER_REPO_PRIVATE    1 or 0: visibility of a repository that is created

A writer that names a repository takes none of the three.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.base.settings import Environment, check_repo_id, is_on
from hf_mpwriter.writer.summary_writer import SummaryWriter


def with_destination(options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the arguments of a writer that must have a destination.

    Args:
        options: arguments of `SummaryWriter` by name; without `repo_id`, the environment completes them.
        environ: the environment.

    Raises:
        SettingsError: no repository is named, or its name is not valid. With HF_MPWRITER_DISABLED none is needed.
        TypeError: an option is no argument of `SummaryWriter`.
    """
    inspect.signature(SummaryWriter).bind_partial(**options)  # rather than when the first rank logs
    found = _merged(options, environ)
    if "repo_id" in found:
        check_repo_id(found["repo_id"])
    elif not Environment.read(environ).disabled:
        raise SettingsError("No repository is named.", hint="Pass repo_id='me/run', or set HF_MPWRITER_REPO_ID.")
    return found


def _merged(options: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if not (name == "repo_id" and value is None)}
    return given if "repo_id" in given else _destination(environ) | given


def _destination(environ: Mapping[str, str]) -> dict[str, Any]:
    if not (repo_id := environ.get("HF_MPWRITER_REPO_ID")):
        return {}
    found: dict[str, Any] = {"repo_id": repo_id, "repo_type": environ.get("HF_MPWRITER_REPO_TYPE") or None}
    if private := environ.get("HF_MPWRITER_REPO_PRIVATE"):
        found["repo_private"] = is_on(private)
    return found


class EnvironmentWriter(SummaryWriter):
    """A `SummaryWriter` with the destination of the environment; local if the environment has none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # LightningCLI follows the name `kwargs` to `super().__init__` to find out which arguments are accepted
        kwargs = _merged(kwargs, os.environ)
        super().__init__(*args, **kwargs)
