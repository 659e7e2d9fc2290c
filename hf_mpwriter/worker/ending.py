"""Ending: the bounded wait of a process for what it answers for, and what the user is told of it.

A process waits at the end of a `with` block, of `close(wait=True)`, and of the interpreter. SIGTERM ends it without a
wait: the uploader goes on, and below `hf-mpwriter run` the supervisor waits. A handler of the program that leaves by
`sys.exit` leads to the end of the interpreter.

    answers    what is to be on the Hub if the run has a destination, and in the logdir if it is staged
    End        one wait for both, and what is told of it, in the words of `delivery/sentences`; how long: see `patience`
    Ends       whether to wait at all, and once more for what others have left meanwhile

Who tells it is in `reporter`: rank 3 tells its end only if it fails, or if no lower rank is left.

Invariants:
- A wait ends after `exit_timeout`, or by an interrupt; so does the search for what to wait for.
- What was waited for is not waited for again, unless the user asks for it by `close(wait=True)`.
- One wait in vain is enough for a process, over all its run directories: the next ones tell what is missing, and do not
  wait, until what was waited for is there.
- Where the run goes is told before a wait. A wait without a failure and its good end are information.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.delivery.sentences import ProcessEnd, announcement, message
from hf_mpwriter.delivery.sinks import Delivery, HubSink, LogdirSink, Outlook, name_of
from hf_mpwriter.delivery.status import Logged
from hf_mpwriter.delivery.wait import Wanted, wait_for
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.system import contact
from hf_mpwriter.system.process_state import after_fork
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.worker import answers
from hf_mpwriter.worker.answers import Awaited, without_removed
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.messages import Messages
from hf_mpwriter.worker.patience import Patience, Terms, ends_here, patience
from hf_mpwriter.worker.reporter import Reporter

SPEAKER_EVERY = 1.0  # seconds between two questions of a wait whether it is this process that speaks

_in_vain: list[Ends] = []  # of this process: the last wait that was


class Ends:
    """The waits of one process in one run directory."""

    def __init__(
        self,
        membership: Membership,
        reporter: Reporter,
        messages: Messages,
        logged: Callable[[], Logged],
        keep_house: Callable[[], object],
        timing: Timing = USUAL,
    ) -> None:
        self._membership, self._reporter, self._messages = membership, reporter, messages
        self._logged, self._keep_house, self._timing = logged, keep_house, timing
        self._waited_for = Awaited(Wanted(HubSink(membership.spool), {}), Wanted(LogdirSink(membership.spool), {}))
        self._is_there = False  # whether the last wait ended well
        self._end = math.inf  # monotonic seconds; what is looked for here is looked for until then
        self._sizes: dict[str, int] = {}  # of what does not grow any more, when it was found out what to wait for

    def wait(self, own: dict[str, int], terms: Terms, left_at: float, *, is_asked: bool) -> None:
        """Wait for what this process has written, and has left at a unix time; the reporter waits for all.

        It waits again until nothing is missing that others have left meanwhile.
        """
        started, is_over, is_last = time.monotonic(), False, False
        self._end = started + max(0.0, terms.exit_timeout - terms.spent)
        self._reporter.begin_end(left_at)
        while not is_over:
            is_last = self._reporter.reports and not self._reporter.has_others()
            left = terms._replace(spent=terms.spent + time.monotonic() - started)
            try:
                ledger = self._wait(own, left, is_last=is_last, is_asked=is_asked)
            finally:
                self._messages.tell(at_end=True)
            if ledger is not None and is_last and not self._has_news():
                self._messages.done(ledger, left_at)
            self._reporter.give_up()
            # others may have come or gone while this process held the lock, and have found it held
            is_late = time.monotonic() - started > terms.exit_timeout
            is_told = is_last or self._reporter.is_told
            is_over = self._reporter.has_others() or (is_told and (is_late or not self._has_news()))
            is_over = is_over or not self._reporter.take(at_end=True)
        if is_last:
            self._messages.tell_lost()

    def _wait(self, own: dict[str, int], terms: Terms, *, is_last: bool, is_asked: bool) -> Ledger | None:
        """What the Hub has, if that is all; None if something is missing.

        If nothing is new, it is as it was the last time: while this process began to end once more, another one may
        have taken it for one that goes on.
        """
        hub, uploads, started = HubSink(self._membership.spool), self._membership.uploads, time.monotonic()
        before, awaited = self._waited_for, self._find_out(own, is_last=is_last)
        is_new = is_asked or (is_last and not self._reporter.is_told)
        if awaited.is_as(before) and (self._is_there or not is_new):  # the end of a with block has waited already
            return hub.ledger() if self._is_there else None  # of now: others may have logged more since
        self._is_there = False
        spent = terms.spent + time.monotonic() - started
        if not is_asked and any(one.is_missing(before if one is self else None) for one in _in_vain):
            spent = terms.exit_timeout
        _in_vain.clear()
        ends_with = ends_here() if uploads else ""
        is_last_time = bool(ends_with) or contact.supervisor() is not None
        terms = terms._replace(spent=spent, is_asked=is_asked, is_last=is_last_time, ends_with=ends_with)
        end = End(awaited, terms, self._reporter, self._messages, self._logged, self._timing.quiet_wait)
        try:
            self._is_there = end.wait(self._keep_house, lambda: self._found_since(own, is_last=is_last)) and uploads
        finally:
            if self.is_missing():
                _in_vain[:] = [self]
        return hub.ledger() if self._is_there else None

    def _find_out(self, own: dict[str, int], *, is_last: bool) -> Awaited:
        reports = self._reporter.reports
        self._sizes = answers.final_sizes(self._membership, self._end) if reports else {}
        alone = is_last or (reports and not self._reporter.has_others())
        self._waited_for = answers.to_await(self._membership, own, reports=reports, is_last=alone, end=self._end)
        return self._waited_for

    def _found_since(self, own: dict[str, int], *, is_last: bool) -> Awaited | None:
        return self._find_out(own, is_last=is_last) if self._reporter.reports and self._has_news() else None

    def _has_news(self) -> bool:
        """Whether others have left something since it was found out what to wait for."""
        return self._sizes != answers.final_sizes(self._membership, self._end)

    def is_missing(self, awaited: Awaited | None = None) -> bool:
        """Whether something that was waited for is still missing, and has not been refused for good."""
        wanted = (awaited or self._waited_for).wanted
        for one in wanted:
            one.sink.until = math.inf  # that of the wait is over
        results = (one.result() for one in wanted)
        return any(result.missing.keys() - result.refused.keys() for result in results)


after_fork(_in_vain.clear)


class End:
    """One wait of a process in one run directory, and what is told of it if it is this process that tells it."""

    def __init__(
        self,
        awaited: Awaited,
        terms: Terms,
        reporter: Reporter,
        messages: Messages,
        logged: Callable[[], Logged],
        quiet_wait: float = USUAL.quiet_wait,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._terms, self._reporter, self._messages, self._logged = terms, reporter, messages, logged
        self._quiet_wait, self._clock, self._started = quiet_wait, clock, clock()
        hub = without_removed(reporter.spool, awaited.of_hub, tells=reporter.reports)
        self._awaited = Awaited(hub, without_removed(reporter.spool, awaited.of_logdir, tells=False), awaited.damage)
        self._announced: ProcessEnd | None = None
        self._next_question = 0.0  # monotonic seconds

    def wait(self, keep_house: Callable[[], object], news: Callable[[], Awaited | None] = lambda: None) -> bool:
        """Wait until the sinks have all; tell what they do not have. Whether nothing is missing, and nothing was lost.

        `news` tells what else is to be there, which others have left meanwhile.
        """
        try:
            self._wait(keep_house)
        finally:
            is_complete = self._tell(news)
        return is_complete

    def _wait(self, keep_house: Callable[[], object]) -> None:
        wanted, moved_at, before = self._awaited.wanted, self._started, tuple[object, ...]()
        for look in wait_for(wanted, self._started + patience(self._terms, Outlook()).longest, self._clock):
            if look.is_due:
                keep_house()
            now, steps = self._clock(), tuple(delivery.step for delivery in look.deliveries)
            if steps != before:
                before, moved_at = steps, now
            allowed, end = self._allowed(look.deliveries, moved_at)
            for one in wanted:
                one.sink.until = end  # later again after progress, or when an outage is over
            fails = any(delivery.carrier.outlook.fails for delivery in look.deliveries)
            left = self._started + allowed.longest - now
            if (fails or now - self._started > self._quiet_wait) and left >= self._quiet_wait:
                self._announce(now, allowed.longest)
            if now >= end:
                break

    def _allowed(self, deliveries: Iterable[Delivery], moved_at: float) -> tuple[Patience, float]:
        """How long it waits for that sink that is worth the longest wait, and the end of that (monotonic seconds)."""
        found = [patience(self._terms, delivery.carrier.outlook) for delivery in deliveries]
        ends = ((one, min(self._started + one.longest, moved_at + one.idle)) for one in found)
        return max(ends, key=lambda one: one[1])

    def _announce(self, now: float, longest: float) -> None:
        """Tell once what is missing, before it is waited for: the process may be killed before the wait ends."""
        if self._announced or now < self._next_question:
            return
        self._next_question = now + SPEAKER_EVERY
        if self._reporter.may_tell_unsent(failed=self._terms.failed):
            self._announced = ending = self._ending()
            self._messages.begin()
            fails = any(delivery.missing and ending.why(delivery) for delivery in ending.deliveries)
            self._log(announcement(ending, longest), is_warning=fails)
            self._reporter.told_unsent(time.time())

    def _tell(self, news: Callable[[], Awaited | None]) -> bool:
        """Tell the end, and which records no reader reaches; whether all is there."""
        if self._awaited.of_hub.missing() and (found := news()) is not None:
            hub = self._awaited.of_hub
            lengths = {**hub.lengths, **found.of_hub.lengths}
            self._awaited = self._awaited._replace(of_hub=hub._replace(lengths=lengths))
        ending, is_damaged = self._ending(), bool(self._awaited.damage)
        tells_damage = is_damaged and self._reporter.reports
        for one in self._awaited.damage if tells_damage else ():
            logger.warning("%s: %s %s", ending.run_dir, printable(one.path), one)
        text = message(ending, self._announced)
        if text and (self._announced or self._reporter.may_tell_unsent(failed=self._terms.failed)):
            if not self._terms.failed:
                self._messages.begin()
            self._log(text, is_warning=bool(ending.late) or not ending.logged.is_on_disk)
            self._reporter.told_unsent(time.time() if ending.late else 0.0)
        if tells_damage:
            self._reporter.told_unsent(time.time())
        return ending.logged.is_on_disk and not is_damaged and not ending.late

    def _ending(self) -> ProcessEnd:
        return ProcessEnd(
            name_of(self._reporter.spool),
            self._reporter.spool.run_dir,
            tuple(one.result() for one in self._awaited.wanted),
            at=time.time(),
            logged=self._logged(),
            told=self._messages.told,
            is_short=not (self._terms.is_asked or self._terms.is_last)
            and self._clock() - self._started < self._terms.exit_timeout,
            ends_with=self._terms.ends_with,
        )

    def _log(self, text: str, *, is_warning: bool) -> None:
        (logger.warning if is_warning else logger.info)("%s%s", self._reporter.label, text)
