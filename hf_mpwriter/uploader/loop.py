"""The loop of an uploader, the process that holds the uploader lock.

    recover -> tick:  note members -> take in what the push says -> decide -> SCAN    put what is new into the outbox
                                                                           -> PUSH    start a push of the oldest batch
                                                                           -> ATTACH  scan or push attachments
                                                                           -> WAIT
                                                                           -> LEAVE

Who is here is in `peers`, what goes to the Hub in `sending`, what is asked for in `requests`.

Order of writes: fsync(event files) -> put batch -> drop superseded batches -> in_flight -> push -> ledger -> drop
in_flight and batch. Of attachments: copies -> in_flight -> push -> ledger -> drop in_flight and copies. After an
interruption the next uploader derives the rest from what the ledger does not cover.

Invariants:
- The destination is that of the start record. A run that is recorded for another one is left alone.
- It imports no network client; that lives in the push only.
- While a request without a parent may still be under way, all that is sent names its parent and is nothing newer.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.base.verdicts import Refused
from hf_mpwriter.daemon import loop
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import filesystem_time
from hf_mpwriter.spool.status import LINGER
from hf_mpwriter.system import hf_home
from hf_mpwriter.uploader.decision import Action, Situation, abandoned_for, decide, pause
from hf_mpwriter.uploader.pacing import Clocks
from hf_mpwriter.uploader.peers import Peers
from hf_mpwriter.uploader.requests import Requests
from hf_mpwriter.uploader.sending import Sending
from hf_mpwriter.uploader.siblings import Search

logger = logging.getLogger("hf_mpwriter")


class Uploader(loop.Daemon[StartRecord]):
    """The holder of the uploader lock."""

    kind = "uploader"
    status: StatusFile

    def __init__(
        self,
        spool: Spool,
        start: StartRecord,
        lock: int,
        clock: Callable[[], float],
        rng: random.Random,
        timing: Timing = USUAL,
    ) -> None:
        super().__init__(spool, start, lock, clock, rng, timing)
        self._clocks = Clocks(clock, lambda: filesystem_time(self.host), rng, timing)
        self._token_stamp = hf_home.token_stamp(os.environ)
        self.status = StatusFile(  # what it publishes
            self.host, self._process, clock, start.token_issued_at, beat_every=timing.heartbeat_every
        )
        self.requests, self._seals = Requests(), loop.Seals(clock)
        self._abandoned_since, self._waited_until = clock(), 0.0
        self.recover()
        self._search = Search(start, timing.sibling_search)

    def recover(self) -> None:
        """Read what is on disk; nothing in memory counts but what was asked for, and what was told."""
        self._check_recorded()
        # first what the disk may refuse: nothing is sent before it is known what was in flight
        self.peers = Peers(self._spool, self.host, self.status, self._clocks)
        self.sending = Sending(
            self._spool, self.host, self._start, self.status, self.peers, self.requests, self._clocks
        )
        self.status.change(elsewhere=None)
        # those of other hosts name their parents from here on, or we see their records
        self.sending.publish("idle")
        self.sending.recover()

    def _check_recorded(self) -> None:
        """Refuse to work if the run is recorded for another destination: the token belongs to ours."""
        recorded, ours = self._spool.destination(), self._start.destination
        if recorded is None or recorded.is_same(ours):
            return
        reason = f"the recorded destination has changed; it is {recorded}, but this run goes to {ours}"
        hint = f"If others have not changed it, use another logdir. Else remove run.json in {self._spool.root}."
        self.status.failed(Refused(reason, hint), 1)
        self.status.publish(phase="left", waiting=0, push=0, commits=0, blocked_until=0.0)
        raise HfMpWriterError(f"{reason}.", hint=hint)

    # tick

    def tick(self) -> bool:
        """One round; False when it is time to end."""
        self._search.reap()
        if not self.is_in_place():
            return False
        self.peers.look()
        self.sending.note()
        has_progressed = self.sending.listen()
        if has_progressed or self.peers.works:
            self._abandoned_since = self._clock()  # progress is as good a reason to stay as a worker
        if not self.sending.is_pushing:
            if self._is_better_token_there():
                logger.info("a newer worker may have a better token; leaving the uploader lock to it")
                self.close()
                return False
            self.sending.in_flight.catch_up()
            action = decide(self._situation())
            if action is Action.LEAVE:
                return not self.leave()
            if self._act(action):
                return True
        self._publish()
        self._sleep()
        return True

    def _act(self, action: Action) -> bool:
        """Act; True if the next tick follows at once."""
        if action is Action.SCAN:
            self.sending.scan()
        elif action is Action.PUSH:
            self.sending.push_events()
        elif action is Action.ATTACH:
            self.sending.attach()
            if not self.sending.is_pushing:  # there may be more, or it is time to leave
                self._publish()
                return True
        return False

    def _is_better_token_there(self) -> bool:
        """Whether a younger worker may have a better token; it may have closed already and wait for its data."""
        if self.status.status.kind != Refused.__name__:
            return False
        if (stamp := hf_home.token_stamp(os.environ)) != self._token_stamp:  # `hf auth login`: the next push reads it
            self._token_stamp = stamp
            self.sending.try_now()
        younger = (member for member in self.peers.here if member.started_at > self._start.token_issued_at)
        return any(one.works or not self.requests.is_satisfied(one) for one in younger if not one.is_sampler)

    def _situation(self) -> Situation:
        sealing = self._seals.are_pending(self.peers.here)
        return self.sending.situation(abandoned_for=self._abandoned_for(), sealing=sealing)

    def _abandoned_for(self) -> float:
        """Seconds since a member was last seen alive, the Hub last took something, or a wait was over.

        What counts as a wait is what the Hub has asked for, or the share of this node in the rate limit.
        """
        self._waited_until = max(self._waited_until, self.sending.pacing.blocked_until)
        return abandoned_for(self._clock(), self._abandoned_since, self._waited_until)

    # status, sleep, leave

    def _publish(self, phase: str = "") -> None:
        self.forget_starts(is_over=phase == "left")
        self.sending.publish(phase)

    def _sleep(self) -> None:
        tick, push = self._clocks.timing.uploader_tick, self.sending.in_flight.push
        if push is not None:
            push.wait(tick)
        else:
            time.sleep(pause(tick, self.peers.look_took, self.sending.until_push))

    def close(self) -> None:
        """Publish that this uploader leaves, and end the processes that wait for it."""
        self._publish("left")
        self.sending.close()

    def leave(self) -> bool:
        """Give up the uploader lock, look once more, take it back if something came in between; True if it is over."""
        self.peers.sweep()  # again: at the start a killed process may not have been reaped yet
        return super().leave()

    def is_over(self) -> bool:
        """Whether nobody works, and nobody asks for more."""
        over = self.requests.is_ending or self._abandoned_for() > LINGER
        self.peers.look()
        return over or not (self.peers.works or self.requests.any_urgent(self.peers.here))

    def terminate(self) -> None:
        """SIGTERM: one last scan and push, and what dead members left behind, then leave."""
        self.sending.terminate()
        super().terminate()


def main() -> None:
    """Entry point of the process."""
    loop.main(Uploader, StartRecord)
