"""What a process says once about its environment.

unknown, unclear    a variable of ours that does not exist, or is neither on nor off
disabled            nothing is uploaded
idle                what is switched on has no effect here: it needs an uploader, or a package
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping

from hf_mpwriter.base.settings import Settings, is_on, unclear_switches, unknown_variables
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.worker.role import current_role

DISABLED = "HF_MPWRITER_DISABLED"
NVIDIA = "/proc/driver/nvidia"  # there is one where NVIDIA's driver is loaded
NO_UPLOADER = "but the uploader does that, and a writer without a destination starts none: give it a repo_id."
_told: set[str] = set()  # what was said; a forked child inherits it, so it says nothing again


def _warnings(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in unknown_variables(environ):
        yield name, f"{name} is set, but hf_mpwriter has no such variable."
    for name, value in unclear_switches(environ).items():
        yield name, f"{name} is {value!r}, which is neither on nor off, and counts as off. On is 1, off is 0."


def tell(rank: int | None = None, *, disabled: bool, environ: Mapping[str, str] = os.environ) -> None:
    """Say what this process has not said yet; rank 0 does, or the process alone."""
    warnings = {name: text for name, text in _warnings(environ) if name not in _told}
    says_disabled = disabled and DISABLED not in _told
    if not warnings and not says_disabled:
        return
    _told.update(warnings, [DISABLED] if disabled else [])
    if not is_first(rank):
        return
    for text in warnings.values():
        logger.warning("%s", text)
    if says_disabled:
        logger.info("disabled by %s: nothing is uploaded", DISABLED)


def tell_idle(
    settings: Settings, rank: int | None = None, *, uploads: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """Say once what is switched on for a run, and has no effect in it."""
    warnings, name = dict[str, str](), "all_ranks_view"
    if settings.all_ranks_view and name not in _told and not uploads and not is_on(environ.get(DISABLED, "")):
        warnings[name] = f"{name} is on, {NO_UPLOADER}"
    if settings.system_metrics and "gpu" not in _told and _lacks_nvml():
        warnings["gpu"] = "system_metrics leaves out the GPUs of this machine: pip install nvidia-ml-py"
    _told.update(warnings)
    if warnings and is_first(rank):
        for text in warnings.values():
            logger.warning("%s", text)


def _lacks_nvml() -> bool:
    """Whether this machine has GPUs of NVIDIA, and no package that measures them; nothing is imported."""
    return os.path.isdir(NVIDIA) and importlib.util.find_spec("pynvml") is None


def is_first(rank: int | None = None) -> bool:
    """Whether this process is rank 0 or a process alone: where a run has no reporter yet, it tells what is to be
    told.
    """
    role = current_role(rank)
    return not role.is_child and not role.rank
