"""The waits of a process in one run directory: at the end of a `with` block, of `close(wait=True)`, of the interpreter.

Invariants:
- What was waited for is not waited for again, unless the user asks for it by `close(wait=True)`.
- One wait in vain is enough for a process, over all its run directories: the next ones tell what is missing, and do not
  wait, until what was waited for is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink
from hf_mpwriter.delivery.status import Logged
from hf_mpwriter.delivery.wait import Wanted
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.system import contact
from hf_mpwriter.system.process_state import after_fork
from hf_mpwriter.worker import answers
from hf_mpwriter.worker.answers import Awaited
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.messages.reporter import Reporter
from hf_mpwriter.worker.messages.run import RunMessages
from hf_mpwriter.worker.patience import Terms, ends_here
from hf_mpwriter.worker.shutdown import End, Teller

_in_vain: list[Waits] = []  # of this process: the last wait that was


class Waits:
    """The waits of one process."""

    def __init__(
        self,
        membership: Membership,
        reporter: Reporter,
        logged: Callable[[], Logged],
        keep_house: Callable[[], object],
        clock: Callable[[], float],
        timing: Timing = USUAL,
    ) -> None:
        self._membership, self._reporter = membership, reporter
        self._logged, self._keep_house, self._clock, self._timing = logged, keep_house, clock, timing
        self._waited_for = Awaited(Wanted(HubSink(membership.spool), {}), Wanted(LogdirSink(membership.spool), {}))
        self._is_there = False  # whether the last wait ended well
        self._sizes: dict[str, int] = {}  # of what does not grow any more, when it was found out what to wait for

    def wait(
        self,
        own: dict[str, int],
        terms: Terms,
        messages: RunMessages | None = None,
        *,
        is_last: bool = False,
        is_asked: bool = False,
    ) -> Ledger | None:
        """Wait, bounded, until what the process answers for is delivered; see `shutdown`.

        What the Hub has, if that is all; None if something is missing. If nothing is new, it is as it was the
        last time: while this process began to end once more, another one may have taken it for one that goes
        on.
        """
        spool, uploads, started = self._membership.spool, self._membership.uploads, self._clock()
        reports = self._reporter.reports

        def to_await() -> Awaited:
            self._sizes = answers.final_sizes(self._membership) if reports else {}
            alone = is_last or (reports and not self._reporter.has_others())
            self._waited_for = answers.to_await(self._membership, own, reports=reports, is_last=alone)
            return self._waited_for

        before, awaited = self._waited_for, to_await()
        is_new = is_asked or (is_last and not self._reporter.is_told)
        if awaited.is_as(before) and (self._is_there or not is_new):  # the end of a with block has waited already
            return HubSink(spool).ledger() if self._is_there else None  # of now: others may have logged more since
        self._is_there = False
        if not is_asked and any(waits.is_missing(before if waits is self else None) for waits in _in_vain):
            terms = terms._replace(exit_timeout=0.0)
        _in_vain.clear()
        ends_with = ends_here() if uploads else ""
        is_long = is_asked or bool(ends_with) or contact.supervisor() is not None
        terms = terms._replace(spent=terms.spent + self._clock() - started, is_long=is_long)
        end = End(
            spool,
            awaited,
            Teller(self._reporter, messages, failed=terms.failed),
            self._logged,
            ends_with=ends_with,
            exit_timeout=self._membership.settings.exit_timeout,
            quiet_wait=self._timing.quiet_wait,
        )
        try:
            again = lambda: to_await() if reports and self.have_news() else None  # noqa: E731 - of these names
            self._is_there = end.wait(terms, self._keep_house, again) and uploads
        finally:
            if self.is_missing():
                _in_vain[:] = [self]
        return HubSink(spool).ledger() if self._is_there else None

    def have_news(self) -> bool:
        """Whether others have left something since it was found out what to wait for."""
        return self._sizes != answers.final_sizes(self._membership)

    def is_missing(self, awaited: Awaited | None = None) -> bool:
        """Whether something that was waited for is still missing, and has not been refused for good."""
        wanted = (awaited or self._waited_for).wanted
        for one in wanted:
            one.sink.until = math.inf  # that of the wait is over
        results = (one.result() for one in wanted)
        return any(result.missing.keys() - result.refused.keys() for result in results)


after_fork(_in_vain.clear)
