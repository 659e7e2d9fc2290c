"""Shutdown: the bounded wait at the end of a process for what it answers for, and what the user is told of it.

What a process answers for is to be on the Hub if the run has a destination, and in the logdir if it is staged. Both are
waited for together, and told in one message; what is told of the logdir is in `spool/staging/logdir`.

How long a process waits: see `patience`.

What is told when a wait takes long (`announcement`), and at its end (`message`, the first row that fits):

    offline                       why; the command, for later
    all that is missing, refused  the first reason; it is tried again slowly; the command
    the uploader does not work    what lets it go on; the command, for then
    the destination is refused    why and what helps; until when it is tried at least; the command
    an uploader lives             the last failure; when it tries again, and until when at least; how to wait for that
    it ends with this process     that it does; the command, for the next start
    none lives                    when the last one left; the command

The reason that was announced, or told of an outage before, is not repeated. The command is: it ends the last line.

Invariants:
- Who tells it is in `messages/reporter`; the wait ends after `exit_timeout`, or by an interrupt.
- Where the run goes is told before a wait. A wait without a failure and its good end are information.
- Only what is in files is said to be on disk. Records that wait in memory, or are lost, are counted apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hf_mpwriter.base.settings import OFFLINE, is_offline
from hf_mpwriter.base.verdicts import Refused, Retry, Unknown
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool import progress
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Logged, Progress, sync_command
from hf_mpwriter.spool.staging.logdir import Logdir, Shortfall
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.worker import delivery
from hf_mpwriter.worker.delivery import Awaited, amount
from hf_mpwriter.worker.messages.reporter import Reporter
from hf_mpwriter.worker.messages.run import RunMessages
from hf_mpwriter.worker.patience import Outlook, Terms, patience

QUIET_WAIT = 5.0  # seconds; a longer wait is announced
SPEAKER_EVERY = 1.0  # seconds between two questions of a wait whether it is this process that speaks
HALF_A_DAY = 43_200.0  # seconds
MINUTES = 100.0  # seconds, from which on a time of day is told
INTERRUPT = "Ctrl-C ends the wait and nothing else"
WAIT = "to wait for it: close(wait=True), or"
_DOWN = frozenset(verdict.__name__ for verdict in (Refused, Retry, Unknown))  # of a push: nothing gets to the Hub


class End:
    """The end of a process in one run directory."""

    def __init__(
        self,
        view: Progress,
        spool: Spool,
        awaited: Awaited,
        reporter: Reporter,
        logged: Callable[[], Logged],
        clock: Callable[[], float] = time.monotonic,
        *,
        uploads: bool = True,
        messages: RunMessages | None = None,
        ends_with: str = "",
        exit_timeout: float = 0.0,
    ) -> None:
        self._view, self._spool, self._damage, self._reporter = view, spool, awaited.damage, reporter
        self._logdir, self._ends_with, self._exit_timeout = Logdir(spool, clock), ends_with, exit_timeout
        self._logged, self._clock, self._messages = logged, clock, messages
        self._ended_at = time.time()
        of_hub = awaited.lengths if uploads else {}
        self._lengths = delivery.without_removed(spool, view, of_hub, tells=reporter.reports)
        self._there = delivery.without_removed(spool, self._logdir, dict(awaited.there), tells=False)
        self._asked = view.changes(self._lengths)
        self._announced: Outcome | None = None
        self._next_question = 0.0

    def wait(
        self, terms: Terms, ensure_uploader: Callable[[], object], news: Callable[[], Awaited | None] = lambda: None
    ) -> bool:
        """Wait until Hub and logdir have these lengths; log what they do not have.

        Whether nothing is missing, and nothing was lost.
        """
        self._started = self._moved_at = self._clock()
        self._step: tuple[object, ...] = ()
        self._terms = terms
        longest = patience(terms, Outlook()).longest
        try:
            timeout = 0.0 if is_offline() else longest
            is_enough = lambda missing: self._is_enough(missing, terms)  # noqa: E731
            progress.wait(self._view, self._lengths, timeout, ensure_uploader, is_enough, asked=self._asked)
            left = max(0.0, self._started + longest - self._clock())
            self._logdir.wait(self._there, left, ensure_uploader, lambda missing: self._is_enough_there(missing, terms))
        finally:
            is_complete = self._tell(news)
        return is_complete

    def _is_enough(self, missing: dict[str, int], terms: Terms) -> bool:
        uploader, now = self._view.uploader(), time.time()
        step = (missing, uploader.process, uploader.push, uploader.commits)
        is_answered = bool(uploader.push) and uploader.is_answered
        outlook = Outlook(
            fails=uploader.kind in _DOWN and not uploader.is_over and not is_answered,
            stands=bool(uploader.stillness(now)) or not self._view.uploader_is_alive(),
            unanswered=now - uploader.asked_at if uploader.push and uploader.asked_at and not is_answered else 0.0,
            turn_in=max(0.0, uploader.blocked_until - time.monotonic()),
        )
        return self._has_waited(step, terms, outlook)

    def _is_enough_there(self, missing: dict[str, int], terms: Terms) -> bool:
        mirror = self._logdir.status()
        stands = bool(mirror.stillness(time.time())) or not self._logdir.is_alive()
        outlook = Outlook(fails=mirror.failures > 0 and not mirror.is_over, stands=stands)
        return self._has_waited((missing, mirror.process, mirror.copy), terms, outlook)

    def _has_waited(self, step: tuple[object, ...], terms: Terms, outlook: Outlook) -> bool:
        """Whether it has waited long enough."""
        now = self._clock()
        if step != self._step:
            self._step, self._moved_at = step, now
        allowed = patience(terms, outlook)
        longest = self._started + allowed.longest
        end = min(longest, self._moved_at + allowed.idle)
        self._view.until = end  # later again after progress, or when an outage is over
        if outlook.fails or now - self._started > QUIET_WAIT:
            self._announce(allowed.longest, longest - now)
        return now >= end

    def _announce(self, longest: float, left: float) -> None:
        """Tell once what is missing, before it is waited for: the process may be killed before the wait ends."""
        if self._announced or left < QUIET_WAIT or self._clock() < self._next_question:
            return
        self._next_question = self._clock() + SPEAKER_EVERY
        if self._reporter.may_tell_unsent(failed=self._terms.failed):
            self._announced = self._outcome()
            if self._messages is not None:
                self._messages.begin()
            fails = bool(self._announced.reason or self._announced.logdir.why)
            self._log(announcement(self._announced, longest), is_warning=fails)
            self._reporter.told_unsent(time.time())

    def _log(self, text: str, *, is_warning: bool) -> None:
        (logger.warning if is_warning else logger.info)("%s%s", self._reporter.label, text)

    def _tell(self, news: Callable[[], Awaited | None]) -> bool:
        if self._damage and self._reporter.reports:
            for damage in self._damage:
                logger.warning("%s: %s %s", self._spool.run_dir, printable(damage.path), damage)
        if self._view.missing(self._lengths, asked=self._asked) and (found := news()) is not None:
            self._lengths |= found.lengths
        outcome = self._outcome()
        text, is_late = message(outcome, self._announced), bool(outcome.missing or outcome.logdir.missing)
        if text and (self._announced or self._reporter.may_tell_unsent(failed=self._terms.failed)):
            if self._messages is not None and not self._terms.failed:
                self._messages.begin()
            self._log(text, is_warning=is_late or not outcome.logged.is_on_disk)
            self._reporter.told_unsent(time.time() if is_late else 0.0)
        if self._damage and self._reporter.reports:
            self._reporter.told_unsent(time.time())
        return outcome.logged.is_on_disk and not self._damage and not is_late

    def _outcome(self) -> Outcome:
        uploader, missing = self._view.uploader(), self._view.missing(self._lengths, asked=self._asked)
        told, waited = self._messages.told if self._messages else "", self._clock() - self._started
        return Outcome(
            run_dir=self._spool.run_dir,
            missing=missing,
            refused=self._view.refused(missing),
            is_offline=is_offline(),
            reason="" if uploader.why == told else uploader.why,
            is_refused=uploader.kind == Refused.__name__,
            is_alive=self._view.uploader_is_alive(),
            stillness=uploader.stillness(time.time()),
            until=uploader.tries_until(self._ended_at, time.monotonic(), time.time()),
            left_at=uploader.beat if uploader.is_over else 0.0,
            logged=self._logged(),
            at=time.time(),
            logdir=self._logdir.shortfall(self._there),
            uploads=bool(self._lengths),
            next_try=uploader.beat + uploader.next_in if uploader.next_in and not uploader.is_over else 0.0,
            is_short=not self._terms.is_long and waited < self._exit_timeout,
            ends_with=self._ends_with,
        )


@dataclass(frozen=True)
class Outcome:
    """What holds when the user is told: all that it depends on."""

    run_dir: str  # absolute path
    missing: Mapping[str, int]  # bytes per path that the Hub does not have
    refused: Mapping[str, str]  # of these, what will not arrive by itself soon, with the reason
    is_offline: bool  # whether nothing is sent
    reason: str  # why the last push failed and what helps, "" if nothing is known
    is_refused: bool  # whether the Hub refuses the destination
    is_alive: bool  # whether an uploader lives
    stillness: str  # what keeps it from its work, "" if nothing is known
    until: float  # unix time until which a living uploader tries at least
    left_at: float  # unix time when the last uploader left, 0 if that is not known
    logged: Logged  # what the process has logged
    at: float  # unix time when the user is told
    logdir: Shortfall = field(default_factory=Shortfall)  # what is not in the logdir, of a staged run
    uploads: bool = True  # whether it was to be on the Hub
    next_try: float = 0.0  # unix time when the uploader tries again, 0 if that is not known
    is_short: bool = False  # whether the user may wait for longer
    ends_with: str = ""  # what takes the uploader along, see `lifetime`

    @property
    def name(self) -> str:
        """The run as its user knows it: its logdir; where it is kept comes second."""
        return self.logdir.to or self.run_dir

    @property
    def stays(self) -> str:
        """What becomes of what is on disk."""
        return f"What is on disk{f' ({self.run_dir})' if self.logdir.to else ''} stays there"

    @property
    def command(self) -> str:
        """The command that finishes it."""
        return sync_command(self.name)


def announcement(outcome: Outcome, longest: float) -> str:
    """What is told when a wait takes long."""
    there = outcome.logdir
    what = amount({**there.missing, **outcome.missing}, outcome.name)
    places = ["on the Hub"] * bool(outcome.missing) + ["in the logdir"] * bool(there.missing)
    waits = f"waiting up to {longest:.0f} s until {what} are {' and '.join(places)}"
    reasons = [outcome.reason] * bool(outcome.missing) + [there.why] * bool(there.missing)
    found = "; ".join(reason.rstrip(".") for reason in reasons if reason)
    ways = f"{INTERRUPT}; if this process is killed before: {outcome.command}"
    return printable(f"{waits}{f' ({found})' if found else ''}. {ways}")


def message(outcome: Outcome, announced: Outcome | None = None) -> str:
    """The message at the end of a wait, "" if there is nothing to say. For its rows, see the head of this module."""
    name, memory = outcome.name, _in_memory(outcome.logged)
    there = outcome.logdir
    if not outcome.missing and there.missing:
        return printable(" ".join(filter(None, [there.sentence(), memory, there.outlook()])))
    if not outcome.missing:
        places = ["on the Hub"] * outcome.uploads + ["in the logdir"] * bool(there.to)
        told = [f"{name}: all of it is {' and '.join(places)} now."] if announced else []
        waits = [f"{name}: {memory}"] if outcome.logged.in_memory else []
        return printable(" ".join(told + waits))
    why, outlook, lead = _explain(outcome)
    is_final = outcome.is_offline or len(outcome.refused) == len(outcome.missing)
    subject = f"{amount(outcome.missing, name)} are not on the Hub{'' if is_final else ' yet'}"
    if announced and announced.reason == why:
        why = ""
    first = f"{subject}{f': {why}' if why else ''}".rstrip(".") + "."
    second = there.sentence() or ("All of it is in the logdir." if there.to else "")
    return printable(" ".join(filter(None, [first, second, memory, f"{outlook}{lead}: {outcome.command}"])))


def _explain(outcome: Outcome) -> tuple[str, str, str]:
    """Why something is missing, what comes next, and what leads to the command."""
    stays = outcome.stays
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
    if outcome.ends_with:
        return outcome.reason, f"{stays}; the uploader ends with {outcome.ends_with}", ". To finish"
    goes_on = "tries again now and then" if outcome.is_refused else "goes on trying"
    if (left := outcome.next_try - outcome.at) >= 1:
        goes_on = (
            f"tries again {f'in {left:.0f} s' if left < MINUTES else f'at {_clock(outcome.next_try, outcome.at)}'}"
        )
    until = _clock(outcome.until, outcome.at)
    lead = f"; {WAIT}" if outcome.is_short else "; then"
    return outcome.reason, f"{stays}, and an uploader {goes_on}, until {until} at least", lead


def _in_memory(logged: Logged) -> str:
    why = f"the disk refuses them{f' ({logged.disk_error})' if logged.disk_error else ''}"
    if logged.in_memory:
        return f"{logged.in_memory} records wait in memory: {why}, and they are lost when the process ends."
    return f"{logged.dropped} records are lost: {why}." if logged.dropped else ""


def _clock(unix_time: float, now: float) -> str:
    """A time of day, with the date where that of the nearest day would be wrong."""
    is_near = abs(unix_time - now) < HALF_A_DAY
    return time.strftime("%H:%M" if is_near else "%Y-%m-%d %H:%M", time.localtime(unix_time))
