"""What the adapters share: the destination from the environment, and the scalars of a step as one record.

    HF_MPWRITER_REPO_ID         repository: me/run, datasets/me/run or spaces/me/run
    HF_MPWRITER_REPO_PRIVATE    1 or 0: visibility of a repository that is created

A writer that names a repository takes neither.

tensorboardX's `GlobalSummaryWriter` counts steps per tag; on a writer of ours, over all processes. Only `patch()` hands
it out. New code does not need it: writers of one process on one run directory share a file.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from tensorboardX.global_writer import GlobalSummaryWriter as _GlobalSummaryWriter

from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.base.settings import Environment, check_repo_id, is_on, typed_repo_id
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
    if not (named := environ.get("HF_MPWRITER_REPO_ID")):
        return {}
    kind, repo_id = typed_repo_id(named)
    found: dict[str, Any] = {"repo_id": repo_id, "repo_type": kind}
    if private := environ.get("HF_MPWRITER_REPO_PRIVATE"):
        found["repo_private"] = is_on(private)
    return found


def split_scalars(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the scalars among values, and all others."""
    scalars = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    return scalars, {name: value for name, value in values.items() if name not in scalars}


def add_scalars(writer: SummaryWriter, scalars: Mapping[str, Any], step: int | None) -> None:
    """Log scalars as one record, where a framework's own logger adds them one by one.

    Without a step nothing says that they belong together.
    """
    if step is not None:
        writer.log(scalars, step)
        return
    for name, value in scalars.items():
        writer.add_scalar(name, value)


class EnvironmentWriter(SummaryWriter):
    """A `SummaryWriter` with the destination of the environment; local if the environment has none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # LightningCLI follows the name `kwargs` to `super().__init__` to find out which arguments are accepted
        kwargs = _merged(kwargs, os.environ)
        super().__init__(*args, **kwargs)


class GlobalEnvironmentWriter(_GlobalSummaryWriter):
    """A `GlobalSummaryWriter` with the destination of the environment; local if the environment has none.

    Args:
        *args: of `SummaryWriter`.
        coalesce_process: accepted and ignored, as tensorboardX does.
        **kwargs: of `SummaryWriter`.
    """

    _shared: ClassVar[GlobalEnvironmentWriter | None] = None

    def __init__(self, *args: Any, coalesce_process: bool = True, **kwargs: Any) -> None:  # noqa: ARG002
        super().__init__(write_to_disk=False)
        self.smw = EnvironmentWriter(*args, **kwargs)

    @staticmethod
    def getSummaryWriter() -> GlobalEnvironmentWriter:  # noqa: N802 - tensorboardX's name
        """Return the one of this program; the first call makes it."""
        cls = GlobalEnvironmentWriter
        writer = cls._shared = cls._shared or cls()
        print("Using the global logger in:", writer.smw.get_logdir())
        return writer
