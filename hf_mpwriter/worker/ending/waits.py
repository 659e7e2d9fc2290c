"""The waits of a process in one run directory: at the end of a `with` block, of `close(wait=True)`, of the interpreter.

Invariants:
- What was waited for is not waited for again.
- One wait in vain is enough: the next ones tell what is missing, and do not wait, until Hub and logdir are back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.progress import Logged, Progress
from hf_mpwriter.spool.staging.logdir import Logdir
from hf_mpwriter.worker import delivery, role, shutdown
from hf_mpwriter.worker.ending.patience import Terms, has_peers
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.telling.teller import Teller
from hf_mpwriter.worker.telling.voice import Voice


class Waits:
    """The waits of one process.

    Args:
        membership: of the process.
        clock: monotonic seconds.

    Attributes:
        began: unix time when the last wait for something new began.
    """

    def __init__(self, membership: Membership, clock: Callable[[], float]) -> None:
        self._membership, self._clock = membership, clock
        # lengths and changes, see `Progress`, and lengths in the logdir
        self._waited_for: tuple[dict[str, int], dict[str, int], Mapping[str, int]] = {}, {}, {}
        self._is_there = False  # whether the last wait ended well
        self.began = 0.0

    def wait(
        self,
        own: dict[str, int],
        voice: Voice,
        logged: Callable[[], Logged],
        keep_house: Callable[[], object],
        spent: float,
        *,
        failed: bool,
        teller: Teller | None = None,
    ) -> Ledger | None:
        """Wait, bounded, until what the process answers for is delivered; see `shutdown`.

        Args:
            own: bytes per path of the event files that the process has written.
            voice: of the process.
            logged: returns what it has logged.
            keep_house: makes sure that an uploader lives, and a mirror.
            spent: seconds of the allowed time that other run directories have taken.
            failed: whether the process ends after an exception.
            teller: of the run, None if it has no destination.

        Returns:
            What the Hub has, if that is all; None if something is missing. If nothing is new, it is as it was the
            last time: while this process began to end once more, another one may have taken it for one that goes on.
        """
        spool, uploads, started = self._membership.spool, self._membership.uploads, self._clock()
        view = Progress(spool)
        awaited = delivery.to_await(self._membership, own, view, is_first=voice.is_first())
        now = (awaited.lengths, view.changes(awaited.lengths), awaited.there)
        before, self._waited_for = self._waited_for, now
        if before == self._waited_for:  # the end of a with block has waited already
            return view.ledger() if self._is_there else None  # of now: others may have logged more since
        self._is_there, self.began = False, time.time()
        missing = view.missing(before[0], asked=before[1]) if uploads else {}
        there = Logdir(spool)
        late = there.missing(before[2])
        in_vain = (missing and not view.is_hopeless(missing)) or late.keys() - there.refused(late).keys()
        timeout, spent = 0.0 if in_vain else self._membership.settings.exit_timeout, spent + self._clock() - started
        membership_role = self._membership.role
        terms = Terms(timeout, failed, has_peers(membership_role, role.world_size_of(os.environ)), spent)
        end = shutdown.End(view, spool, awaited, voice, logged, uploads=uploads, teller=teller)
        self._is_there = end.wait(terms, keep_house) and uploads
        return view.ledger() if self._is_there else None
