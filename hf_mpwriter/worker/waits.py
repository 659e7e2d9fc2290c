"""The waits of a process in one run directory: at the end of a `with` block, of `close(wait=True)`, of the interpreter.

Invariants:
- What was waited for is not waited for again, unless the user asks for it by `close(wait=True)`.
- One wait in vain is enough for a process, over all its run directories: the next ones tell what is missing, and do not
  wait, until what was waited for is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.progress import Logged, Progress
from hf_mpwriter.spool.staging.logdir import Logdir
from hf_mpwriter.system import contact
from hf_mpwriter.worker import delivery, shutdown
from hf_mpwriter.worker.delivery import Awaited
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.messages.reporter import Reporter
from hf_mpwriter.worker.messages.run import RunMessages
from hf_mpwriter.worker.patience import Terms, ends_here

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
    ) -> None:
        self._membership, self._reporter = membership, reporter
        self._logged, self._keep_house, self._clock = logged, keep_house, clock
        # lengths and changes, see `Progress`, and lengths in the logdir
        self._waited_for: tuple[dict[str, int], dict[str, int], Mapping[str, int]] = {}, {}, {}
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
        view, reports = Progress(spool), self._reporter.reports

        def to_await() -> Awaited:
            self._sizes = delivery.final_sizes(self._membership) if reports else {}
            alone = is_last or (reports and not self._reporter.has_others())
            found = delivery.to_await(self._membership, own, view, reports=reports, is_last=alone)
            self._waited_for = found.lengths, view.changes(found.lengths), found.there
            return found

        before, awaited = self._waited_for, to_await()
        is_new = is_asked or (is_last and not self._reporter.is_told)
        if before == self._waited_for and (self._is_there or not is_new):  # the end of a with block has waited already
            return view.ledger() if self._is_there else None  # of now: others may have logged more since
        self._is_there = False
        if not is_asked and any(waits.is_missing(before if waits is self else None) for waits in _in_vain):
            terms = terms._replace(exit_timeout=0.0)
        _in_vain.clear()
        ends_with = ends_here() if uploads else ""
        is_long = is_asked or bool(ends_with) or contact.supervisor() is not None
        terms = terms._replace(spent=terms.spent + self._clock() - started, is_long=is_long)
        end = shutdown.End(
            view,
            spool,
            awaited,
            self._reporter,
            self._logged,
            uploads=uploads,
            messages=messages,
            ends_with=ends_with,
            exit_timeout=self._membership.settings.exit_timeout,
        )
        try:
            again = lambda: to_await() if reports and self.have_news() else None  # noqa: E731 - of these names
            self._is_there = end.wait(terms, self._keep_house, again) and uploads
        finally:
            if self.is_missing():
                _in_vain[:] = [self]
        return view.ledger() if self._is_there else None

    def have_news(self) -> bool:
        """Whether others have left something since it was found out what to wait for."""
        return self._sizes != delivery.final_sizes(self._membership)

    def is_missing(self, awaited: tuple[Mapping[str, int], Mapping[str, int], Mapping[str, int]] | None = None) -> bool:
        """Whether something that was waited for is still missing, and has not been refused for good."""
        lengths, asked, there = awaited or self._waited_for
        view, logdir = Progress(self._membership.spool), Logdir(self._membership.spool)
        missing = view.missing(lengths, asked=asked) if self._membership.uploads else {}
        late = logdir.missing(there)
        return bool(missing and not view.is_hopeless(missing)) or bool(late.keys() - logdir.refused(late).keys())


os.register_at_fork(after_in_child=_in_vain.clear)
