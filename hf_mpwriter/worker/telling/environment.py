"""What a process says once about its environment: variables of ours that do not exist, and that nothing is uploaded."""

from __future__ import annotations

import os
from collections.abc import Mapping

from hf_mpwriter.base.arguments import variables
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.worker.role import current_role

DISABLED = "HF_MPWRITER_DISABLED"
_told: set[str] = set()  # names of variables; a forked child inherits them, so it says nothing again


def tell(*, disabled: bool, environ: Mapping[str, str] = os.environ) -> None:
    """Say what this process has not said yet; rank 0 does, or the process alone.

    Args:
        disabled: whether HF_MPWRITER_DISABLED is on.
        environ: the environment.
    """
    questions = {name: text for name, text in variables.unknown(environ).items() if name not in _told}
    says_disabled = disabled and DISABLED not in _told
    if not questions and not says_disabled:
        return
    _told.update(questions, [DISABLED] if disabled else [])
    role = current_role()
    if role.rank or not role.waits:
        return
    for name, question in questions.items():
        logger.warning("%s", f"{name} is set, but hf_mpwriter has no such variable. {question}".rstrip())
    if says_disabled:
        logger.info("disabled by %s", DISABLED)
