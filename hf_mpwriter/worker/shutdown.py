"""Shutdown: what a process answers for at its end, the bounded wait for it, the one message if something is missing.

    rank                own event files
    rank 0              own event files and the attachments; reports to the user
    lone main process   event files that no other live worker has open, and the attachments; reports to the user
    child               nothing, it never waits

Attachments count as they are when the wait starts, or as they have become since.

Invariant: only the reporter logs; the wait ends after `exit_timeout` seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from hf_mpwriter.base.settings import OFFLINE, Settings, is_offline
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool import progress
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.members import Members
from hf_mpwriter.spool.progress import Progress, size_text
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.worker.role import Role

QUIET_WAIT = 2.0  # seconds; a longer wait is logged


def lengths_to_await(
    spool: Spool, settings: Settings, role: Role, own: dict[str, int], view: Progress
) -> dict[str, int]:
    """Bytes per path that are to be on the Hub before this process ends.

    Args:
        spool: of the run directory.
        settings: which files are uploaded.
        role: of this process.
        own: bytes per path that it has written itself.
        view: of the run.
    """
    if not settings.exit_timeout or not role.is_reporter:
        return own
    lengths = attachments.sizes(spool.run_dir, settings.allows) | own
    if role.rank is not None:
        return lengths
    ledger = view.ledger()
    # what the Hub has, or this process has written, is not read again: that may take minutes
    scan = EventFileScan(spool.run_dir, lambda path: max(own.get(path, 0), ledger.length(path) if ledger else 0))
    try:
        files = scan.files(settings.allows, Members(spool).growing)
    except OSError as error:
        logger.warning("%s: cannot find out what others have written: %s", spool.run_dir, error)
        return lengths
    return {file.path: file.length for file in files if not file.growing} | lengths


def wait(
    view: Progress,
    spool: Spool,
    lengths: dict[str, int],
    timeout: float,
    role: Role,
    ensure_uploader: Callable[[], object],
) -> None:
    """Wait until the Hub has these lengths; log what it does not have.

    Args:
        view: of the run.
        spool: of the run directory.
        lengths: bytes per path.
        timeout: seconds; offline there is no wait.
        role: of this process.
        ensure_uploader: makes sure that an uploader lives.

    Raises:
        KeyboardInterrupt: the user ended the wait; what is missing has been logged.
    """
    started, timeout = time.monotonic(), 0.0 if is_offline() else timeout
    lengths = _without_removed(spool, view, lengths, role)
    asked = view.changes(lengths)
    is_logged = not role.is_reporter

    def log_wait(missing: dict[str, int]) -> None:
        nonlocal is_logged
        if not is_logged and time.monotonic() - started > QUIET_WAIT:
            is_logged = True
            size = size_text(sum(missing.values()))
            logger.warning("waiting up to %.0f s until %s are on the Hub", timeout, size)

    try:
        progress.wait(view, lengths, timeout, ensure_uploader, log_wait, asked=asked)
    finally:
        if (missing := view.missing(lengths, asked=asked)) and role.is_reporter:
            _log_missing(spool, view, missing)


def _without_removed(spool: Spool, view: Progress, lengths: dict[str, int], role: Role) -> dict[str, int]:
    """Leave out, and log, files that were removed, such as those of a temporary directory: they cannot be uploaded."""
    missing = view.missing(lengths)
    gone = {path: missing[path] for path in missing if _is_gone(os.path.join(spool.run_dir, path))}
    if gone and role.is_reporter:
        logger.warning("%s were removed before they were known to be on the Hub", _amount(gone, spool))
    return {path: length for path, length in lengths.items() if path not in gone}


def _is_gone(path: str) -> bool:
    try:
        os.lstat(path)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def _log_missing(spool: Spool, view: Progress, missing: dict[str, int]) -> None:
    status = view.uploader()
    reason = OFFLINE if is_offline() else f"{status.reason} {status.hint}".strip()
    logger.warning(
        "%s are not on the Hub yet%s. They are safe on disk%s; to finish: hf-mpwriter sync %s",
        _amount(missing, spool),
        f" ({reason})" if reason else "",
        _outlook(status) if view.uploader_is_alive() else "",
        spool.run_dir,
    )


def _amount(missing: dict[str, int], spool: Spool) -> str:
    return f"{size_text(sum(missing.values()))} in {len(missing)} file{'s' * (len(missing) > 1)} of {spool.run_dir}"


def _outlook(status: UploaderStatus) -> str:
    """What to expect of an uploader that lives."""
    if is_offline():
        return ""
    still = status.stillness(time.time())
    return f", but the uploader does not work: {still}" if still else " and an uploader goes on trying"
