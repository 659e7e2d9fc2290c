"""What a process says once about its environment: variables of ours that do not exist, and that nothing is uploaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from hf_mpwriter.base.arguments import variables
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.worker.role import current_role

DISABLED = "HF_MPWRITER_DISABLED"
_told: set[str] = set()  # names of variables; a forked child inherits them, so it says nothing again


def _warnings(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, question in variables.unknown(environ).items():
        yield name, f"{name} is set, but hf_mpwriter has no such variable. {question}".rstrip()
    for name, value in variables.unclear(environ).items():
        yield name, f"{name} is {value!r}, which is neither on nor off, and counts as off. On is 1, off is 0."


def tell(*, disabled: bool, environ: Mapping[str, str] = os.environ) -> None:
    """Say what this process has not said yet; rank 0 does, or the process alone.

    Args:
        disabled: whether HF_MPWRITER_DISABLED is on.
        environ: the environment.
    """
    warnings = {name: text for name, text in _warnings(environ) if name not in _told}
    says_disabled = disabled and DISABLED not in _told
    if not warnings and not says_disabled:
        return
    _told.update(warnings, [DISABLED] if disabled else [])
    role = current_role()
    if role.rank or not role.waits:
        return
    for text in warnings.values():
        logger.warning("%s", text)
    if says_disabled:
        logger.info("disabled by %s", DISABLED)
