"""Shutdown: the bounded wait at the end of a process for what it answers for, and what the user is told of it.

How long a process waits, in seconds, by `patience` (the first row that fits; no row exceeds `exit_timeout`):

    end                   uploader          peers    in all              without progress
    ordinary              any               any      `exit_timeout`      any
    after an exception    fails or stands   any      FAILING_WAIT        any
    after an exception    works             yes      WAIT_BESIDE_PEERS   IDLE_BESIDE_PEERS
    after an exception    works             none     `exit_timeout`      any

After an exception in a `with` block, the block does not wait: the end of the interpreter does, when it has printed the
traceback. Progress is what the Hub has taken, and each step of the uploader: it starts a push, or ends one.

What is told when a wait takes long (`announcement`), and at its end (`message`, the first row that fits):

    offline                       why; the command, for later
    all that is missing, refused  the first reason; it is tried again slowly; the command
    the uploader does not work    what lets it go on; the command, for then
    the destination is refused    why and what helps; until when it is tried at least; the command
    an uploader lives             the last failure; until when it tries at least; the command, for then
    none lives                    when the last one left; the command

What was announced is not repeated: then the message has only what is new.

Invariants:
- Only the first rank speaks, or one that fails, or a process of no launcher; the wait ends after `exit_timeout`.
- Only what is in files is said to be on disk. Records that wait in memory, or are lost, are counted apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hf_mpwriter.base.settings import OFFLINE, is_offline
from hf_mpwriter.base.verdicts import Refused, Retry, Unknown
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool import progress
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Logged, Progress, sync_command
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.worker import delivery
from hf_mpwriter.worker.delivery import Awaited, Voice, amount
from hf_mpwriter.worker.role import Role

QUIET_WAIT = 2.0  # seconds; a longer wait is announced
FAILING_WAIT = 2.0  # seconds after an exception, while nothing gets to the Hub
IDLE_BESIDE_PEERS = 2.0  # seconds
WAIT_BESIDE_PEERS = 10.0  # seconds; the launcher restarts the others only when this process has ended
SPEAKER_EVERY = 1.0  # seconds between two questions of a wait whether it is this process that speaks
HALF_A_DAY = 43_200.0  # seconds
_DOWN = frozenset(verdict.__name__ for verdict in (Refused, Retry, Unknown))  # of a push: nothing gets to the Hub


class Terms(NamedTuple):
    """How a process ends.

    Attributes:
        exit_timeout: seconds that it may wait for the Hub.
        failed: whether it ends after an exception.
        has_peers: whether it is a rank of several.
        spent: seconds that it has waited for other run directories.
    """

    exit_timeout: float
    failed: bool = False
    has_peers: bool = False
    spent: float = 0.0


class Patience(NamedTuple):
    """How long a process waits at its end.

    Attributes:
        longest: seconds in all.
        idle: seconds without progress.
    """

    longest: float
    idle: float = math.inf


def patience(terms: Terms, *, is_stuck: bool) -> Patience:
    """How long a process waits at its end; for the rows, see the head of this module.

    Args:
        terms: how it ends.
        is_stuck: whether the uploader fails or stands.
    """
    longest, idle = terms.exit_timeout, math.inf
    if terms.failed and is_stuck:
        longest = min(longest, FAILING_WAIT)
    elif terms.failed and terms.has_peers:
        longest, idle = min(longest, WAIT_BESIDE_PEERS), IDLE_BESIDE_PEERS
    return Patience(max(0.0, longest - terms.spent), idle)


def is_failure(error: BaseException | None) -> bool:
    """Whether an exception that leaves a block is a failure; the end of a generator and `sys.exit(0)` are none."""
    if isinstance(error, SystemExit):
        return error.code not in (None, 0)
    return error is not None and not isinstance(error, GeneratorExit)


def has_peers(role: Role, world_size: int | None) -> bool:
    """Whether a process is a rank of several.

    Args:
        role: of the process.
        world_size: ranks that the launcher started, None if it does not tell.
    """
    return role.rank is not None and (role.rank > 0 if world_size is None else world_size > 1)


class End:
    """The end of a process in one run directory.

    Args:
        view: of the run.
        spool: of the run directory.
        awaited: what is to be on the Hub.
        voice: of the process.
        logged: returns what this process has logged.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        view: Progress,
        spool: Spool,
        awaited: Awaited,
        voice: Voice,
        logged: Callable[[], Logged],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._view, self._spool, self._damage, self._voice = view, spool, awaited.damage, voice
        self._logged, self._clock = logged, clock
        self._ended_at = time.time()
        voice.begin_end()
        self._lengths = delivery.without_removed(spool, view, awaited.lengths, is_first=voice.is_first())
        self._asked = view.changes(self._lengths)
        self._announced: Outcome | None = None
        self._next_question = 0.0

    def wait(self, terms: Terms, ensure_uploader: Callable[[], object]) -> None:
        """Wait until the Hub has these lengths; log what it does not have.

        Args:
            terms: how the process ends; offline there is no wait.
            ensure_uploader: makes sure that an uploader lives.

        Raises:
            KeyboardInterrupt: the user ended the wait; what is missing has been logged.
        """
        self._started = self._moved_at = self._clock()
        self._step: tuple[object, ...] = ()
        self._failed = terms.failed
        timeout = 0.0 if is_offline() else patience(terms, is_stuck=False).longest

        def is_enough(missing: dict[str, int]) -> bool:
            return self._is_enough(missing, terms)

        try:
            progress.wait(self._view, self._lengths, timeout, ensure_uploader, is_enough, asked=self._asked)
        finally:
            self._tell()

    def _is_enough(self, missing: dict[str, int], terms: Terms) -> bool:
        now, uploader = self._clock(), self._view.uploader()
        step = (missing, uploader.process, uploader.push, uploader.commits)
        if step != self._step:
            self._step, self._moved_at = step, now
        fails = uploader.kind in _DOWN and not uploader.is_over
        stands = uploader.stillness(time.time()) or not self._view.uploader_is_alive()
        allowed = patience(terms, is_stuck=fails or bool(stands))
        longest = self._started + allowed.longest
        end = min(longest, self._moved_at + allowed.idle)
        self._view.until = min(self._view.until, end)
        if fails or now - self._started > QUIET_WAIT:
            self._announce(missing, allowed.longest, longest - now)
        return now >= end

    def _announce(self, missing: dict[str, int], longest: float, left: float) -> None:
        """Tell once what is missing, before it is waited for: the process may be killed before the wait ends."""
        if self._announced or left < QUIET_WAIT or self._clock() < self._next_question:
            return
        self._next_question = self._clock() + SPEAKER_EVERY
        if self._voice.may_tell_unsent(failed=self._failed):
            self._announced = self._outcome(missing)
            logger.warning("%s", announcement(self._announced, longest))
            self._voice.told_unsent(time.time())

    def _tell(self) -> None:
        if self._damage and self._voice.is_first():
            for damage in self._damage:
                logger.warning("%s: %s %s", self._spool.run_dir, printable(damage.path), damage)
        missing = self._view.missing(self._lengths, asked=self._asked)
        text = message(self._outcome(missing), self._announced)
        if text and (self._announced or self._voice.may_tell_unsent(failed=self._failed)):
            logger.warning("%s", text)
            self._voice.told_unsent(time.time() if missing else 0.0)

    def _outcome(self, missing: dict[str, int]) -> Outcome:
        uploader = self._view.uploader()
        return Outcome(
            run_dir=self._spool.run_dir,
            missing=missing,
            refused=self._view.refused(missing),
            is_offline=is_offline(),
            reason=f"{uploader.reason} {uploader.hint}".strip(),
            is_refused=uploader.kind == Refused.__name__,
            is_alive=self._view.uploader_is_alive(),
            stillness=uploader.stillness(time.time()),
            until=uploader.tries_until(self._ended_at, time.monotonic(), time.time()),
            left_at=uploader.beat if uploader.is_over else 0.0,
            logged=self._logged(),
            at=time.time(),
        )


@dataclass(frozen=True)
class Outcome:
    """What holds when the user is told: all that it depends on.

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
        at: unix time when the user is told.
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
    at: float


def announcement(outcome: Outcome, longest: float) -> str:
    """What is told when a wait takes long.

    Args:
        outcome: as it is now.
        longest: seconds that the wait may take in all.
    """
    waits = f"waiting up to {longest:.0f} s until {amount(outcome.missing, outcome.run_dir)} are on the Hub"
    why = f" ({outcome.reason.rstrip('.')})" if outcome.reason else ""
    return printable(f"{waits}{why}. If this process is killed before: {sync_command(outcome.run_dir)}")


def message(outcome: Outcome, announced: Outcome | None = None) -> str:
    """The message at the end of a wait, "" if there is nothing to say. For its rows, see the head of this module.

    Args:
        outcome: of the wait.
        announced: what the user was told during it, None if nothing.
    """
    run_dir, memory = outcome.run_dir, _in_memory(outcome.logged)
    if not outcome.missing:
        told = [f"{run_dir}: all of it is on the Hub now."] if announced else []
        waits = [f"{run_dir}: {memory}"] if outcome.logged.in_memory else []
        return printable(" ".join(told + waits))
    why, outlook, lead = _explain(outcome)
    is_final = outcome.is_offline or len(outcome.refused) == len(outcome.missing)
    subject = f"{amount(outcome.missing, run_dir)} are not on the Hub{'' if is_final else ' yet'}"
    if announced and announced.missing == outcome.missing:
        subject = f"{run_dir}: that is not on the Hub{'' if is_final else ' yet'}"
    if announced and announced.reason == why:
        why = ""
    first = f"{subject}{f': {why}' if why else ''}".rstrip(".") + "."
    last = f"{outlook}." if announced else f"{outlook}{lead}: {sync_command(run_dir)}"
    return printable(" ".join(filter(None, [first, memory, last])))


def _explain(outcome: Outcome) -> tuple[str, str, str]:
    """Why something is missing, what comes next, and what leads to the command."""
    stays = "What is on disk stays there"
    if outcome.is_offline:
        return OFFLINE, stays, "; without it, this uploads it"
    if len(outcome.refused) == len(outcome.missing):
        first, *others = dict.fromkeys(outcome.refused.values())
        more = f", and {len(others)} more" if others else ""
        return f"it refuses {first}{more}", f"{stays}, and is tried again slowly", "; at once by"
    if not outcome.is_alive:
        last = f"; the last one tried until {_clock(outcome.left_at, outcome.at)}" if outcome.left_at else ""
        return outcome.reason, f"{stays}, but no uploader runs{last}", ". To finish"
    if outcome.stillness:
        return outcome.reason, f"{stays}, but the uploader does not work: {outcome.stillness}", ". To finish then"
    goes_on = "tries again now and then" if outcome.is_refused else "goes on trying"
    until = _clock(outcome.until, outcome.at)
    return outcome.reason, f"{stays}, and an uploader {goes_on}, until {until} at least", "; then"


def _in_memory(logged: Logged) -> str:
    why = f"the disk refuses them{f' ({logged.disk_error})' if logged.disk_error else ''}"
    if logged.in_memory:
        return f"{logged.in_memory} records wait in memory: {why}, and they are lost when the process ends."
    return f"{logged.dropped} records are lost: {why}." if logged.dropped else ""


def _clock(unix_time: float, now: float) -> str:
    """A time of day, with the date where that of the nearest day would be wrong."""
    is_near = abs(unix_time - now) < HALF_A_DAY
    return time.strftime("%H:%M" if is_near else "%Y-%m-%d %H:%M", time.localtime(unix_time))
