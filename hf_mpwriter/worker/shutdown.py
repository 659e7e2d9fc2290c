"""Shutdown: what a process answers for at its end, the bounded wait for it, the one message if something is missing.

    rank                own event files
    rank 0              own event files and the attachments; reports to the user
    lone main process   event files that no other live worker has open, and the attachments; reports to the user
    child               nothing, it never waits

Attachments count as they are when the wait starts, or as they have become since.

The message, by what holds at the end of the wait (the first row that fits):

    offline                       why; the command, for later
    all that is missing, refused  the first reason; it is tried again slowly; the command
    the uploader does not work    what lets it go on; the command, for then
    the destination is refused    why and what helps; until when it is tried at least; the command
    an uploader lives             the last failure; until when it tries at least; the command, for then
    none lives                    when the last one left; the command

Invariants:
- Only the reporter logs; the wait ends after `exit_timeout` seconds.
- Only what is in files is said to be on disk. Records that wait in memory, or are lost, are counted apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hf_mpwriter.base.settings import OFFLINE, Settings, is_offline
from hf_mpwriter.base.verdicts import Refused
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import Damage, EventFileScan
from hf_mpwriter.spool import progress
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.members import Members
from hf_mpwriter.spool.progress import Logged, Progress, size_text, sync_command
from hf_mpwriter.spool.status import LINGER
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.worker.role import Role

QUIET_WAIT = 2.0  # seconds; a longer wait is logged


class Awaited(NamedTuple):
    """What is to be on the Hub before a process ends.

    Attributes:
        lengths: bytes per path.
        damage: ends of event files that no reader reaches.
    """

    lengths: dict[str, int]
    damage: tuple[Damage, ...] = ()


def to_await(spool: Spool, settings: Settings, role: Role, own: dict[str, int]) -> Awaited:
    """What is to be on the Hub before this process ends.

    Args:
        spool: of the run directory.
        settings: which files are uploaded.
        role: of this process.
        own: bytes per path that it has written itself.
    """
    if not settings.exit_timeout or not role.is_reporter:
        return Awaited(own)
    lengths = attachments.sizes(spool.run, settings.allows) | own
    if role.rank is not None:
        return Awaited(lengths)
    ledger = Progress(spool).ledger()
    # what the Hub has, or this process has written, is not read again: that may take minutes
    scan = EventFileScan(spool.run, lambda path: max(own.get(path, 0), ledger.length(path) if ledger else 0))
    try:
        files = scan.files(settings.allows, Members(spool).growing)
    except OSError as error:
        logger.warning("%s: cannot find out what others have written: %s", spool.run_dir, error)
        return Awaited(lengths)
    damage = tuple(damage for damage in scan.damage(time.time()) if not damage.is_incomplete)
    return Awaited({file.path: file.length for file in files if not file.growing} | lengths, damage)


def wait(
    spool: Spool,
    awaited: Awaited,
    timeout: float,
    role: Role,
    ensure_uploader: Callable[[], object],
    logged: Callable[[], Logged],
) -> None:
    """Wait until the Hub has these lengths; log what it does not have.

    Args:
        spool: of the run directory.
        awaited: what to wait for.
        timeout: seconds; offline there is no wait.
        role: of this process.
        ensure_uploader: makes sure that an uploader lives.
        logged: returns what this process has logged.

    Raises:
        KeyboardInterrupt: the user ended the wait; what is missing has been logged.
    """
    view, started, timeout = Progress(spool), time.monotonic(), 0.0 if is_offline() else timeout
    until = time.time() + LINGER
    lengths = _without_removed(spool, view, awaited.lengths, role)
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
        if role.is_reporter:
            for damage in awaited.damage:
                logger.warning("%s: %s %s", spool.run_dir, printable(damage.path), damage)
            if text := message(_outcome(spool, view, view.missing(lengths, asked=asked), until, logged())):
                logger.warning("%s", text)


def _without_removed(spool: Spool, view: Progress, lengths: dict[str, int], role: Role) -> dict[str, int]:
    """Leave out, and log, files that were removed, such as those of a temporary directory: they cannot be uploaded."""
    missing = view.missing(lengths)
    gone = {path: missing[path] for path in missing if _is_gone(spool.run / path)}
    if gone and role.is_reporter:
        logger.warning("%s were removed before they were known to be on the Hub", _amount(gone, spool.run_dir))
    return {path: length for path, length in lengths.items() if path not in gone}


def _is_gone(place: Place) -> bool:
    try:
        place.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


@dataclass(frozen=True)
class Outcome:
    """What holds at the end of a wait: all that the message depends on.

    Attributes:
        run_dir: absolute path.
        missing: bytes per path that the Hub does not have.
        refused: of these, what will not arrive by itself soon, with the reason.
        is_offline: whether nothing is sent.
        reason: why the last push failed and what helps, "" if nothing is known.
        is_refused: whether the Hub refuses the destination.
        is_alive: whether an uploader lives.
        stillness: what keeps it from its work, "" if nothing is known.
        until: unix time until which a living uploader tries at least.
        left_at: unix time when the last uploader left, 0 if that is not known.
        logged: what the process has logged.
    """

    run_dir: str
    missing: Mapping[str, int]
    refused: Mapping[str, str]
    is_offline: bool
    reason: str
    is_refused: bool
    is_alive: bool
    stillness: str
    until: float
    left_at: float
    logged: Logged


def _outcome(spool: Spool, view: Progress, missing: dict[str, int], until: float, logged: Logged) -> Outcome:
    uploader = view.uploader()
    return Outcome(
        run_dir=spool.run_dir,
        missing=missing,
        refused=view.refused(missing),
        is_offline=is_offline(),
        reason=f"{uploader.reason} {uploader.hint}".strip(),
        is_refused=uploader.kind == Refused.__name__,
        is_alive=view.uploader_is_alive(),
        stillness=uploader.stillness(time.time()),
        until=until,
        left_at=uploader.beat if uploader.is_over else 0.0,
        logged=logged,
    )


def message(outcome: Outcome) -> str:
    """The message at the end of a wait, "" if there is nothing to say. For its rows, see the head of this module."""
    sentences = []
    if outcome.missing:
        why, outlook = _explain(outcome)
        is_final = outcome.is_offline or len(outcome.refused) == len(outcome.missing)
        subject = f"{_amount(outcome.missing, outcome.run_dir)} are not on the Hub{'' if is_final else ' yet'}"
        sentences += [f"{subject}{f': {why}' if why else ''}".rstrip(".") + ".", _in_memory(outcome.logged)]
        sentences += [f"{outlook}: {sync_command(outcome.run_dir)}"]
    elif outcome.logged.in_memory:
        sentences += [f"{outcome.run_dir}: {_in_memory(outcome.logged)}"]
    return printable(" ".join(filter(None, sentences)))


def _explain(outcome: Outcome) -> tuple[str, str]:
    """Why something is missing, and what comes next; the command follows."""
    if outcome.is_offline:
        return OFFLINE, "What is on disk stays there; without it, this uploads it"
    if len(outcome.refused) == len(outcome.missing):
        first, *others = dict.fromkeys(outcome.refused.values())
        more = f", and {len(others)} more" if others else ""
        return f"it refuses {first}{more}", "What is on disk stays there, and is tried again slowly; at once by"
    if not outcome.is_alive:
        last = f"; the last one tried until {_clock(outcome.left_at)}" if outcome.left_at else ""
        return outcome.reason, f"What is on disk stays there, but no uploader runs{last}. To finish"
    if outcome.stillness:
        why = f"What is on disk stays there, but the uploader does not work: {outcome.stillness}. To finish then"
        return outcome.reason, why
    goes_on = "tries again now and then" if outcome.is_refused else "goes on trying"
    until = _clock(outcome.until)
    return outcome.reason, f"What is on disk stays there, and an uploader {goes_on}, until {until} at least; then"


def _in_memory(logged: Logged) -> str:
    why = f"the disk refuses them{f' ({logged.disk_error})' if logged.disk_error else ''}"
    if logged.in_memory:
        return f"{logged.in_memory} records wait in memory: {why}, and they are lost when the process ends."
    return f"{logged.dropped} records are lost: {why}." if logged.dropped else ""


def _clock(unix_time: float) -> str:
    return time.strftime("%H:%M", time.localtime(unix_time))


def _amount(missing: Mapping[str, int], run_dir: str) -> str:
    return f"{size_text(sum(missing.values()))} in {len(missing)} file{'s' * (len(missing) > 1)} of {run_dir}"
