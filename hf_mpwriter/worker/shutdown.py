"""The end of a process: what it answers for, the bounded wait for it, and the one message if something is missing.

A rank answers for its own files; a lone main process for all that no other live worker has open, its children's
included. Children never wait. Rank 0 and the lone process speak, the others are silent. Who speaks answers for the
attachments too, which belong to nobody: as they are when the wait begins, or as they have become since.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from hf_mpwriter.base.settings import OFFLINE, Settings, is_offline
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool import progress
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.members import Members
from hf_mpwriter.spool.progress import Progress, size_text
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.worker.role import Role

logger = logging.getLogger("hf_mpwriter")

QUIET_WAIT = 2.0  # seconds; a longer wait is announced


def speaks(role: Role) -> bool:
    """Whether a process tells the user about the run."""
    return role.waits and not role.rank


def answers_for(spool: Spool, settings: Settings, role: Role, own: dict[str, int]) -> dict[str, int]:
    """Bytes per path that this process must see on the Hub before it ends.

    Args:
        spool: of the run directory.
        settings: which files are uploaded.
        role: of this process.
        own: what it has written itself.
    """
    if not settings.exit_timeout or not speaks(role):
        return own
    answers = attachments.sizes(spool.run_dir, settings.allows) | own
    if role.rank is not None:
        return answers
    book = Progress(spool).ledger()
    # what is there already, or written by this process, is not read again: that may take minutes
    survey = EventFileScan(spool.run_dir, lambda path: max(own.get(path, 0), book.length(path) if book else 0))
    try:
        files = survey.files(settings.allows, Members(spool).growing)
    except OSError as error:
        logger.warning("%s: it cannot be told what others have written: %s", spool.run_dir, error)
        return answers
    return {file.path: file.length for file in files if not file.growing} | answers


def wait(
    spool: Spool, lengths: dict[str, int], timeout: float, role: Role, ensure_uploader: Callable[[], object]
) -> None:
    """Wait until the Hub has these lengths; tell what it does not have.

    Args:
        spool: of the run directory.
        lengths: bytes per path.
        timeout: seconds; offline nobody waits.
        role: decides who speaks.
        ensure_uploader: makes sure that an uploader lives.

    Raises:
        KeyboardInterrupt: the user ended the wait; the message has been given.
    """
    view, began, timeout = Progress(spool), time.monotonic(), 0.0 if is_offline() else timeout
    lengths = _without_removed(spool, view, lengths, role)
    asked = view.changes(lengths)
    announced = not speaks(role)

    def tell(missing: dict[str, int]) -> None:
        nonlocal announced
        if not announced and time.monotonic() - began > QUIET_WAIT:
            announced = True
            size = size_text(sum(missing.values()))
            logger.warning("waiting up to %.0f s until %s are on the Hub", timeout, size)

    try:
        progress.wait(view, lengths, timeout, ensure_uploader, tell, asked=asked)
    finally:
        if (missing := view.missing(lengths, asked=asked)) and speaks(role):
            _report(spool, view, missing)


def _without_removed(spool: Spool, view: Progress, lengths: dict[str, int], role: Role) -> dict[str, int]:
    """Nobody can bring to the Hub what was removed, such as a temporary directory that is over: that is told."""
    missing = view.missing(lengths)
    gone = {path: missing[path] for path in missing if _is_gone(os.path.join(spool.run_dir, path))}
    if gone and speaks(role):
        logger.warning("%s were removed before they were known to be on the Hub", _amount(gone, spool))
    return {path: length for path, length in lengths.items() if path not in gone}


def _is_gone(path: str) -> bool:
    try:
        os.lstat(path)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def _report(spool: Spool, view: Progress, missing: dict[str, int]) -> None:
    report = view.uploader()
    reason = OFFLINE if is_offline() else f"{report.reason} {report.hint}".strip()
    logger.warning(
        "%s are not on the Hub yet%s. They are safe on disk%s; to finish: hf-mpwriter sync %s",
        _amount(missing, spool),
        f" ({reason})" if reason else "",
        _outlook(report) if view.uploader_is_alive() else "",
        spool.run_dir,
    )


def _amount(missing: dict[str, int], spool: Spool) -> str:
    return f"{size_text(sum(missing.values()))} in {len(missing)} file{'s' * (len(missing) > 1)} of {spool.run_dir}"


def _outlook(report: UploaderStatus) -> str:
    """What is to be expected of an uploader that lives."""
    if is_offline():
        return ""
    still = report.stillness(time.time())
    return f", but the uploader does not work: {still}" if still else " and an uploader goes on trying"
