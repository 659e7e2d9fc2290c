"""The loop of an uploader: the process that holds the uploader locks of the runs of one branch.

    look at each run -> take in what the push says -> decide for each run -> scan, push together, or leave a run
                                                                          -> no run is left: over

Invariants:
- The runs that it serves could each have started it: they have all in common that `meeting.Key` names. It is started
  for one, and takes in others that are handed over.
- What one run's disk, files or spool refuse keeps no other run back. A run that goes wrong is let go.
- It imports no network client; that lives in the push only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import Environment
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.base.verdicts import Refused
from hf_mpwriter.daemon.background import prepare_process
from hf_mpwriter.daemon.loop import REFUSALS, end_in_time
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.system import hf_home, launch, locks
from hf_mpwriter.system.directory import identity
from hf_mpwriter.system.process import host_id
from hf_mpwriter.uploader.branch import Branch, Parcel, Result
from hf_mpwriter.uploader.decision import Action, decide, pause
from hf_mpwriter.uploader.lanes import AttachmentLane, Lane
from hf_mpwriter.uploader.live import LiveLane
from hf_mpwriter.uploader.meeting import Asked, Descriptors, Meeting
from hf_mpwriter.uploader.pacing import Clocks, Step
from hf_mpwriter.uploader.rate_limit import RateLimit, folder_of
from hf_mpwriter.uploader.sending import Urgency
from hf_mpwriter.uploader.siblings import Search
from hf_mpwriter.uploader.upload import HeldRun, RunUpload

logger = logging.getLogger("hf_mpwriter")

MAY_JOIN = (Action.WAIT, Action.ATTACH)  # of runs that may go along with a commit of others
SEARCH_EVERY = 60.0  # seconds between two searches of a directory
MOST_SERVED = 500  # runs; each has four descriptors
ResultT = TypeVar("ResultT")


class Uploader:
    """The uploads of the runs of one branch."""

    def __init__(
        self,
        start: StartRecord,
        clock: Callable[[], float],
        rng: random.Random,
        timing: Timing = USUAL,
    ) -> None:
        limit = RateLimit(
            start.destination,
            Environment.read().commits_per_hour,
            folder_of(os.environ),
            nodes=start.nodes,
            host=host_id(),
            rng=rng,
        )
        self._clock, self._timing = clock, timing
        self.branch = Branch(start.destination, limit, Clocks(clock, time.time, rng, timing))
        self.live = LiveLane(self.branch)
        self.uploads: list[RunUpload] = []
        self._token_stamp = hf_home.token_stamp(os.environ)
        self._refused = set[RunUpload]()  # whose disk has refused something in this round
        self._searches: list[Search] = []
        self._next_search: dict[str, float] = {}  # monotonic seconds, by the directory that is searched
        self._meeting: Meeting | None = None
        self._declined = set[tuple[int, int]]()  # spools of runs that have gone wrong here
        self._is_ending = False  # whether SIGTERM has come

    def add(self, held: HeldRun) -> RunUpload:
        """Serve a run from now on; HfMpWriterError or OSError if that cannot be."""
        upload = RunUpload(held, self.branch)
        self.uploads.append(upload)
        self.branch.serves = len(self.uploads)
        self._search(held.start)
        if self._is_ending:  # it came while the run was being read
            upload.sending.terminate()
        with upload.logging():
            logger.info("took the uploader lock of %s", upload.run_dir)
        return upload

    def _search(self, start: StartRecord) -> None:
        """Search for unfinished runs beside one, unless that was done a moment ago."""
        parent, now = os.path.dirname(start.run_dir), self._clock()
        if start.seeks_siblings and now >= self._next_search.get(parent, now):
            self._next_search[parent] = now + SEARCH_EVERY
            self._searches.append(Search(start, self._timing.sibling_search))

    # tick

    def tick(self) -> bool:
        """One round; False when it is time to end."""
        self._take_in()
        self._searches = [search for search in self._searches if not search.reap()]
        self._refused = set()
        at_work = [upload for upload in list(self.uploads) if self._is_there(upload)]
        self.branch.pacing.saw(*_hosts(at_work))
        self._listen()
        is_hurried = False
        self._live(at_work)
        self._end_overdue()
        if self.branch.push is None:
            self.branch.spare.reap()
            self._notice_token()
            is_hurried = self._act([upload for upload in at_work if upload in self.uploads])
        else:
            self._finish_meanwhile([upload for upload in at_work if upload in self.uploads])
        for upload in list(self.uploads):
            self._guarded(upload, upload.publish)
            upload.refusals = upload.refusals if upload in self._refused else 0
        if self.uploads and not is_hurried:
            self._sleep()
        if not self.uploads:
            self._take_in()
        return bool(self.uploads)

    def _take_in(self) -> None:
        """Serve the runs that others hand over."""
        if self._meeting is None:
            return
        for asked in self._meeting.asked():
            spool = identity(os.fstat(asked.descriptors.spool))
            if self._is_ending or spool in self._declined or len(self.uploads) >= MOST_SERVED:
                asked.refuse()
            elif asked.take() and not self._adds(asked):
                self._declined.add(spool)

    def _adds(self, asked: Asked) -> bool:
        """Serve a run that was taken; one that cannot be served is free again, for an uploader of its own."""
        try:
            self.add(HeldRun.of(asked.record, asked.descriptors))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the others go on
            logger.info("a run that was handed over is not uploaded: %s", error)
            locks.free(asked.descriptors.lock)
            os.close(asked.descriptors.log)
            return False
        return True

    def _is_there(self, upload: RunUpload) -> bool:
        """Look at a run; whether that went well. One whose spool was removed is let go."""
        found = self._guarded(upload, upload.look)
        if found is False:
            self._drop(upload)
        return bool(found)

    def _guarded(self, upload: RunUpload, step: Callable[..., ResultT], *arguments: Any) -> ResultT | None:
        """Do something for one run, in its log; what goes wrong is of this run alone. None then."""
        try:
            with upload.logging():
                return step(*arguments)
        except OSError as error:
            self._refused.add(upload)
            upload.refusals += 1
            logger.info("the disk refuses: %s", error)
            if upload.sending.backoff.next_try < self._clock() + self._timing.uploader_tick:
                upload.sending.backoff.hold(Step(self._timing.uploader_tick))
        except Exception:
            logger.exception("%s cannot be uploaded any more", upload.run_dir)
            upload.refusals = REFUSALS + 1
            self._declined.add(upload.identity)
        if upload.refusals > REFUSALS:
            self._drop(upload)
        return None

    def _drop(self, upload: RunUpload) -> None:
        """Let a run go; a push of it is ended before its lock is free."""
        if upload in self.uploads:
            if self.branch.push is not None and self.branch.carries(upload.sending.in_flight):
                self.branch.push.end(launch.GRACE)
            self.live.forget(upload.live)
            self.uploads.remove(upload)
            self.branch.serves = len(self.uploads)
            upload.drop()

    def _end_overdue(self) -> None:
        """Let runs go whose end takes too long. A push of one is ended first: nothing of it may be under way then."""
        for upload in [upload for upload in self.uploads if upload.is_overdue]:
            if self.branch.push is not None and self.branch.carries(upload.sending.in_flight):
                self.branch.push.kill()
            else:
                self._guarded(upload, upload.close)
                self._drop(upload)

    def _notice_token(self) -> None:
        """`hf auth login`: the next push reads the new token."""
        refused = [upload for upload in self.uploads if upload.status.status.kind == Refused.__name__]
        if refused and (stamp := hf_home.token_stamp(os.environ)) != self._token_stamp:
            self._token_stamp = stamp
            self.live.token_changed()
            for backoff in (self.branch.pacing, *(upload.sending.backoff for upload in refused)):
                backoff.hold(Step(0.0))

    def _live(self, at_work: Iterable[RunUpload]) -> None:
        """The next step of the live lane."""
        wanting = [upload for upload in at_work if upload in self.uploads and upload.live.bucket]
        for upload in wanting:
            self._guarded(upload, upload.live.look, self._clock())
        with wanting[0].logging() if wanting else contextlib.nullcontext():  # what the push prints goes there, too
            self.live.tick([upload.live for upload in wanting])

    def _act(self, at_work: list[RunUpload]) -> bool:
        """Do for each run what is next, then start one push for all; whether the next tick follows at once."""
        actions = {upload: self._guarded(upload, self._decided, upload) for upload in at_work}
        scanned = [upload for upload, action in actions.items() if action is Action.SCAN]
        # their event files give way to attachments, see `decide`
        starved = [one for one, action in actions.items() if action is Action.ATTACH and one.sending.is_due]
        if scanned or Action.PUSH in actions.values():
            may_join = [one for one, action in actions.items() if action in MAY_JOIN and one not in starved]
            scanned += [upload for upload in may_join if upload in self.uploads and upload.sending.joins]
        for upload in scanned:
            if self._guarded(upload, upload.sending.scan):
                actions[upload] = Action.PUSH
        pushing = [upload for upload, action in actions.items() if action is Action.PUSH]
        attaching = [upload for upload, action in actions.items() if action is Action.ATTACH]
        has_left_or_taken = Action.LEAVE in actions.values()
        if self._attach(starved) or self._push((upload, upload.sending.events) for upload in pushing) or not attaching:
            return has_left_or_taken
        # there may be more to scan, or it is time to leave
        return not self._attach([upload for upload in attaching if upload not in starved]) or has_left_or_taken

    def _attach(self, uploads: list[RunUpload]) -> bool:
        """Scan attachments, and start a push of what was found; whether one has started."""
        for upload in uploads:
            self._guarded(upload, upload.sending.scan_attachments)
        return self._push((upload, upload.sending.attachments) for upload in uploads)

    def _decided(self, upload: RunUpload) -> Action:
        upload.sending.catch_up()
        if upload.is_better_token_there():
            logger.info("a newer worker may have a better token; leaving the uploader lock to it")
            upload.close()
            self._drop(upload)
            return Action.WAIT
        return self._next(upload)

    def _next(self, upload: RunUpload) -> Action:
        """What is next for a run; one that is finished is let go."""
        action = decide(upload.situation())
        if action is Action.LEAVE and upload.leave():
            logger.info("left the uploader lock")
            self._drop(upload)
        return action

    def _finish_meanwhile(self, at_work: Iterable[RunUpload]) -> None:
        """Find out whether runs are finished, and leave them, although a push of others is under way."""
        for upload in at_work:
            is_ending = upload.requests.is_ending or not upload.peers.works
            if not is_ending or self.branch.carries(upload.sending.in_flight):
                continue
            action = self._guarded(upload, self._next, upload)
            if action is Action.SCAN:
                self._guarded(upload, upload.sending.scan)
            elif action is Action.ATTACH:
                self._guarded(upload, upload.sending.scan_attachments)

    # push

    def _push(self, lanes: Iterable[tuple[RunUpload, Lane]]) -> bool:
        """Start a push of what waits in these lanes, unless it has to wait for the rate limit; whether it started."""
        parcels = {upload: upload.sending.parcel(lane) for upload, lane in lanes if upload in self.uploads}
        found = {upload: parcel for upload, parcel in parcels.items() if parcel is not None}
        if not found:
            return False
        wishes = {upload: upload.sending.urgency(parcel.batch) for upload, parcel in found.items()}
        found = {upload: found[upload] for upload in sorted(found, key=lambda one: not wishes[one].is_urgent)}
        chosen = self.branch.choose(list(found.values()))
        going = [upload for upload, parcel in found.items() if parcel in chosen]
        if any(parcel.batch.files for parcel in chosen) and not self._may_push(going, [wishes[one] for one in going]):
            # whose own data is there waits for no commit
            found = {one: parcel for one in going if (parcel := one.sending.question(found[one])) is not None}
            if not found:
                return False
            going, chosen = list(found), list(found.values())
        squashing = [upload for upload in going if upload.sending.starts(found[upload].batch)]
        audit = any(upload.requests.audit for upload in going)
        with going[0].logging():  # what the push prints goes there, too
            result = self.branch.start(chosen, squash=bool(squashing), audit=audit)
        self._conclude(result)
        self.uploads.sort(key=going.__contains__)  # what was left behind comes first the next time
        return self.branch.push is not None

    def _may_push(self, going: list[RunUpload], wishes: list[Urgency]) -> bool:
        """Whether the rate limit allows a push, else the users are told why; a mere read-back needs no token."""
        urgent, at_once = any(wish.is_urgent for wish in wishes), any(wish.is_last_chance for wish in wishes)
        if self.branch.pacing.take(urgent=urgent, at_once=at_once):
            return True
        if self.branch.pacing.used_up:
            for upload in sorted(going, key=lambda one: not one.peers.works):  # a process that lives can tell it
                self._guarded(upload, upload.sending.has_to_wait)
        return False

    def _listen(self) -> None:
        """Take in what the push says; one of attachments is ended if it is in the way."""
        if (push := self.branch.push) is None:
            return
        due = any(upload.sending.is_due and upload.sending.may_scan for upload in self.uploads)
        ending = any(upload.requests.is_ending for upload in self.uploads)
        carried = [one.lane for one in self.branch.parcels if isinstance(one.lane, AttachmentLane)]
        if [lane for lane in carried if lane.must_yield(due=due, terminating=ending)]:
            push.kill()
        told, result = self.branch.listen()
        for parcel, text in told:
            for upload in self._of(parcel):
                self._guarded(upload, upload.status.notify, [text])
        if result is not None:
            self._conclude(result)

    def _conclude(self, result: Result) -> None:
        for parcel, verdict in result.outcomes:
            for upload in self._of(parcel):
                self._guarded(upload, upload.conclude, verdict, parcel, result)

    def _of(self, parcel: Parcel) -> list[RunUpload]:
        """The upload that a parcel is of; none if the run was let go meanwhile."""
        return [upload for upload in self.uploads if upload.sending.in_flight is parcel.run]

    # sleep, end

    def _sleep(self) -> None:
        tick = self._timing.uploader_tick
        if self.branch.push is None:
            looks = sum(upload.peers.look_took for upload in self.uploads)
            waits = [wait for upload in self.uploads if (wait := upload.sending.until_push) is not None]
            tick = pause(tick, looks, min(waits, default=None))
        meeting = self._meeting.fd if self._meeting is not None else -1
        if self.branch.push is not None:
            self.branch.push.wait(tick, meeting)
        else:
            launch.wait_for_input([meeting], tick)

    def terminate(self) -> None:
        """SIGTERM: one last scan and push of each run, and what dead members left behind, then leave."""
        self._is_ending = True
        for upload in self.uploads:
            upload.sending.terminate()
        end_in_time()

    def close(self) -> None:
        """End what waits for this process."""
        if self._meeting is not None:
            self._meeting.close()
        self.branch.spare.let_go()
        self.live.spare.let_go()

    def serve(self, meeting: Meeting | None = None) -> None:
        """Work until no run is left."""
        self._meeting = meeting
        signal.signal(signal.SIGTERM, lambda *_: self.terminate())
        while self.tick():
            pass
        self.close()


def _hosts(uploads: Iterable[RunUpload]) -> tuple[set[str], set[str]]:
    """The hosts that share one of the runs with this one, and those that have an uploader of their own."""
    shared, apart = set[str](), set[str]()
    for upload in uploads:
        apart |= upload.peers.hosts
        shared |= {member.name.host for member in upload.peers.here}
    return shared, apart - shared


def serve(record: bytes, meeting: Meeting | None) -> None:
    """Be the uploader of the run that `system/launch` names by descriptors, and of those that come to the meeting."""
    try:
        held = HeldRun.of(record, Descriptors(launch.LOCK_FD, launch.RUN_DIR_FD, launch.SPOOL_FD, log=os.dup(2)))
    except HfMpWriterError as error:
        raise SystemExit(f"no uploader: {error}") from None
    work(held, meeting)


def work(held: HeldRun, meeting: Meeting | None = None) -> None:
    """Be the uploader of a run, and of those that come to the meeting."""
    prepare_process()
    try:
        uploader = Uploader(held.start, time.monotonic, random.Random(), Timing.of())  # noqa: S311 - jitter
        uploader.add(held)
    except (HfMpWriterError, OSError) as error:
        raise SystemExit(f"no uploader: {error}") from None
    uploader.serve(meeting)
