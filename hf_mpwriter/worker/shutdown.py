"""Shutdown: the bounded wait at the end of a process for what it answers for, and what the user is told of it.

What a process answers for is to be on the Hub if the run has a destination, and in the logdir if it is staged. Both are
waited for together, and told in one message, whose words are in `delivery/sentences`.

    wait       looks at the sinks; how long it goes on, for each: see `patience`
    Teller    what is told of it, when it takes long and when it is over

Invariants:
- Who tells it is in `messages/reporter`; the wait ends after `exit_timeout`, or by an interrupt.
- Where the run goes is told before a wait. A wait without a failure and its good end are information.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.delivery.sentences import ProcessEnd, announcement, message
from hf_mpwriter.delivery.sinks import Delivery, Outlook, name_of
from hf_mpwriter.delivery.status import Logged
from hf_mpwriter.delivery.wait import wait_for
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.snapshot.event_files import Damage
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.worker.answers import Awaited, without_removed
from hf_mpwriter.worker.messages.reporter import Reporter
from hf_mpwriter.worker.messages.run import RunMessages
from hf_mpwriter.worker.patience import Patience, Terms, patience

SPEAKER_EVERY = 1.0  # seconds between two questions of a wait whether it is this process that speaks


class Teller:
    """What is told of the end of a process in one run directory, if it is this process that tells it."""

    def __init__(self, reporter: Reporter, messages: RunMessages | None, *, failed: bool = False) -> None:
        self._reporter, self._messages, self._failed = reporter, messages, failed
        self._announced: ProcessEnd | None = None
        self._next_question = 0.0  # monotonic seconds

    @property
    def reports(self) -> bool:
        """Whether this process is the reporter."""
        return self._reporter.reports

    @property
    def told(self) -> str:
        """What the user knows of an outage that goes on, "" if there is none."""
        return self._messages.told if self._messages else ""

    def announce(self, now: float, longest: float, found: Callable[[], ProcessEnd]) -> None:
        """Tell once what is missing, before it is waited for: the process may be killed before the wait ends."""
        if self._announced or now < self._next_question:
            return
        self._next_question = now + SPEAKER_EVERY
        if self._reporter.may_tell_unsent(failed=self._failed):
            self._announced = ending = found()
            if self._messages is not None:
                self._messages.begin()
            fails = any(delivery.missing and ending.why(delivery) for delivery in ending.deliveries)
            self._log(announcement(ending, longest), is_warning=fails)
            self._reporter.told_unsent(time.time())

    def tell(self, ending: ProcessEnd, damage: Iterable[Damage]) -> None:
        """Tell the end, and which records no reader reaches."""
        found = list(damage) if self.reports else []
        for one in found:
            logger.warning("%s: %s %s", ending.run_dir, printable(one.path), one)
        text = message(ending, self._announced)
        if text and (self._announced or self._reporter.may_tell_unsent(failed=self._failed)):
            if self._messages is not None and not self._failed:
                self._messages.begin()
            self._log(text, is_warning=bool(ending.late) or not ending.logged.is_on_disk)
            self._reporter.told_unsent(time.time() if ending.late else 0.0)
        if found:
            self._reporter.told_unsent(time.time())

    def _log(self, text: str, *, is_warning: bool) -> None:
        (logger.warning if is_warning else logger.info)("%s%s", self._reporter.label, text)


class End:
    """The end of a process in one run directory."""

    def __init__(
        self,
        spool: Spool,
        awaited: Awaited,
        teller: Teller,
        logged: Callable[[], Logged],
        *,
        ends_with: str = "",
        exit_timeout: float = 0.0,
        quiet_wait: float = USUAL.quiet_wait,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool, self._teller, self._logged, self._clock = spool, teller, logged, clock
        hub = without_removed(spool, awaited.of_hub, tells=teller.reports)
        self._awaited = Awaited(hub, without_removed(spool, awaited.of_logdir, tells=False), awaited.damage)
        self._ends_with, self._exit_timeout, self._quiet_wait = ends_with, exit_timeout, quiet_wait
        self._started = clock()

    def wait(
        self, terms: Terms, keep_house: Callable[[], object], news: Callable[[], Awaited | None] = lambda: None
    ) -> bool:
        """Wait until the sinks have all; tell what they do not have. Whether nothing is missing, and nothing was lost.

        `news` tells what else is to be there, which others have left meanwhile.
        """
        self._started = self._clock()
        try:
            self._wait(terms, keep_house)
        finally:
            is_complete = self._tell(terms, news)
        return is_complete

    def _wait(self, terms: Terms, keep_house: Callable[[], object]) -> None:
        wanted, moved_at, before = self._awaited.wanted, self._started, tuple[object, ...]()
        for look in wait_for(wanted, self._started + patience(terms, Outlook()).longest, self._clock):
            if look.is_due:
                keep_house()
            now, steps = self._clock(), tuple(delivery.step for delivery in look.deliveries)
            if steps != before:
                before, moved_at = steps, now
            allowed, end = self._allowed(terms, look.deliveries, moved_at)
            for one in wanted:
                one.sink.until = end  # later again after progress, or when an outage is over
            fails = any(delivery.carrier.outlook.fails for delivery in look.deliveries)
            left = self._started + allowed.longest - now
            if (fails or now - self._started > self._quiet_wait) and left >= self._quiet_wait:
                self._teller.announce(now, allowed.longest, lambda: self._ending(terms))
            if now >= end:
                break

    def _allowed(self, terms: Terms, deliveries: Iterable[Delivery], moved_at: float) -> tuple[Patience, float]:
        """How long it waits for that sink that is worth the longest wait, and the end of that (monotonic seconds)."""
        found = [patience(terms, delivery.carrier.outlook) for delivery in deliveries]
        ends = ((one, min(self._started + one.longest, moved_at + one.idle)) for one in found)
        return max(ends, key=lambda one: one[1])

    def _tell(self, terms: Terms, news: Callable[[], Awaited | None]) -> bool:
        if self._awaited.of_hub.missing() and (found := news()) is not None:
            hub = self._awaited.of_hub
            lengths = {**hub.lengths, **found.of_hub.lengths}
            self._awaited = self._awaited._replace(of_hub=hub._replace(lengths=lengths))
        ending = self._ending(terms)
        self._teller.tell(ending, self._awaited.damage)
        return ending.logged.is_on_disk and not self._awaited.damage and not ending.late

    def _ending(self, terms: Terms) -> ProcessEnd:
        is_short = not terms.is_long and self._clock() - self._started < self._exit_timeout
        return ProcessEnd(
            name_of(self._spool),
            self._spool.run_dir,
            tuple(one.result() for one in self._awaited.wanted),
            at=time.time(),
            logged=self._logged(),
            told=self._teller.told,
            is_short=is_short,
            ends_with=self._ends_with,
        )
