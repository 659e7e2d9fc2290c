"""Following: the inputs are read, aligned, and written as the derived run; one step after the other.

    look  -->  START is new  -->  wait until no more ranks join  -->  START in the derived run, read again
          -->  read  -->  settle  -->  append  -->  now and then: a mark

Invariants:
- What the derived files hold is not derived again: a new process reads from them how far they reach.
- Before a rewind is written, the checkpoint is taken back to a mark from which what follows can be derived again.
- While a rewind is to come, nothing is read, derived or marked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection

from hf_mpwriter.base import names
from hf_mpwriter.ranks_view.aligning import JOINING, MOST, Aligner
from hf_mpwriter.ranks_view.checkpoint import Checkpoint, Mark
from hf_mpwriter.ranks_view.inputs import Inputs
from hf_mpwriter.ranks_view.output import Output
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.workers import derived

MARK_EVERY = 60.0  # seconds between two marks


class Following:
    """The derived run of one process."""

    def __init__(self, spool: Spool, host: HostSpool, folder: str, only_host: str, clock: Callable[[], float]) -> None:
        self._host, self._clock = host, clock
        derived.clear(host)  # of an earlier process
        self._output, self._aligner = Output(spool.run, folder, host), Aligner()
        self._checkpoint = self._newest(spool, folder)
        newest = 0 if self._checkpoint.marks else self._output.newest_second()
        self._inputs = Inputs(
            spool.run,
            only_host,
            self._checkpoint.offsets,
            lambda path: names.event_second(os.path.basename(path)) < newest,
        )
        last = self._checkpoint.marks[-1] if self._checkpoint.marks else Mark(0.0)
        self._aligner.resume(last.settled, self._output.emitted(last.emitted, last.ends))
        self._aligner.highest = max(self._aligner.highest, last.highest)  # what is read later may have lower steps
        self._rewind_to: int | None = None
        self._rewind_at = 0.0
        self._mark: tuple[int, Mark] | None = None  # the mark that is not complete yet
        self._mark_at = clock() + MARK_EVERY

    def _newest(self, spool: Spool, folder: str) -> Checkpoint:
        """The newest checkpoint, of whichever host; an empty one if derived files have been lost since."""
        found = [Checkpoint.load(spool.host(host), folder) for host in spool.host_ids()]
        ends = self._output.end
        for checkpoint in sorted(found, key=lambda checkpoint: checkpoint.at, reverse=True):
            if all(ends.get(name, 0) >= end for mark in checkpoint.marks for name, end in mark.ends.items()):
                return checkpoint
        return Checkpoint(folder)

    def step(self, live: Collection[int], until: float, *, is_over: bool) -> bool:
        """Take in what is new; whether all was taken in."""
        self._aligner.begin(self._clock(), live)
        self._note_starts(self._inputs.look())
        while True:
            if self._rewind_to is not None:
                if not is_over and self._clock() < self._rewind_at:
                    return True
                self._rewind(self._rewind_to)
            may_go_on = lambda: self._clock() < until and self._aligner.waiting < MOST // 2  # noqa: E731
            self._note_starts(self._inputs.read(self._aligner.take, may_go_on))
            if self._rewind_to is not None:
                continue
            unread = self._inputs.unread
            self._output.append(self._aligner.settle(live, unread, is_over=is_over and not unread))
            self._keep_mark()
            if not unread or self._clock() >= until:
                return not unread

    def _note_starts(self, steps: list[int]) -> None:
        """Take note of START records that are new; other ranks may write theirs soon."""
        if steps and self._aligner.reaches(least := min(steps)):
            self._rewind_to = least if self._rewind_to is None else min(self._rewind_to, least)
            self._rewind_at = self._clock() + JOINING

    def _rewind(self, step: int) -> None:
        self._checkpoint, self._mark = self._checkpoint.before(step), None
        self._checkpoint.save(self._host)
        if self._aligner.has_emitted(step):
            self._output.rewind(step)
        self._aligner.rewind(step)
        self._inputs.restart(self._checkpoint.offsets)
        self._rewind_to = None

    def _keep_mark(self) -> None:
        """Make a mark when it is time; keep it when it is complete."""
        if self._mark is None:
            if self._clock() >= self._mark_at:
                self._mark_at = self._clock() + MARK_EVERY
                aligner = self._aligner
                self._mark = (
                    aligner.mark,
                    Mark(
                        time.time(),
                        self._inputs.offsets,
                        aligner.settled,
                        aligner.emitted,
                        self._output.end,
                        aligner.highest,
                    ),
                )
        elif not self._aligner.is_behind(self._mark[0]):
            self._checkpoint = self._checkpoint.with_mark(self._mark[1])
            self._checkpoint.save(self._host)
            self._mark = None

    def seal(self) -> None:
        """Complete the derived file; what is derived after that goes into the next one."""
        self._output.seal()
