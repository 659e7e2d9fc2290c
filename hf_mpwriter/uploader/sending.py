"""What is sent of a run, and when: the ledger, both lanes, what is in flight, and what follows a verdict.

    uploader lock taken, or taken back -> ledger, outbox, lanes, in flight -> the status is published -> recover
    scan, or scan attachments -> parcel -> a push of the branch -> conclude

    Done     ledger saved -> record of what was in flight removed -> batch leaves its lane -> members are satisfied
    other    the lane splits, quarantines or waits -> ledger saved -> record removed -> the next push waits

Invariants:
- What is recovered comes from disk; nothing in memory counts. A batch that the ledger covers is dropped.
- The destination is that of the start record, with the folder that was settled: no other file tells where to send.
- The ledger is on disk before the record of what was in flight goes, see `in_flight`.
- A failed push of attachments delays event files only if the Hub refuses the destination or asks for a pause.
- The log has one line for each commit, and one for each try that fails, with the time of the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.verdicts import Done, Moved, Quarantine, Refused, Retry, Sent, Split, Unknown, Verdict
from hf_mpwriter.base.words import command_line, counted, size_text
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.delivery.sentences import of_other_writers
from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.outbox import Batch, Outbox
from hf_mpwriter.spool.pulled import pulled_files
from hf_mpwriter.spool.workers.losses import write_down
from hf_mpwriter.spool.workers.member_lines import AGAIN, CREATE, Member
from hf_mpwriter.spool.workers.members import ASK_FOR_ALL, ENDER
from hf_mpwriter.system.process import host_id
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.uploader.branch import Branch, Parcel, Result
from hf_mpwriter.uploader.decision import Situation
from hf_mpwriter.uploader.in_flight import InFlight
from hf_mpwriter.uploader.lanes import AttachmentLane, EventFileLane, Lane
from hf_mpwriter.uploader.pacing import Backoff, Retries, Step
from hf_mpwriter.uploader.peers import Peers
from hf_mpwriter.uploader.requests import Requests

logger = logging.getLogger("hf_mpwriter")

ASKED_FOR = 300.0  # seconds after the last request, in which the Hub that does not answer is asked again
NOTABLE_WAIT = 60.0  # seconds, from which on the user is told why
OTHER_RUNS = "has other runs below it: folders with a .hf_mpwriter of their own are not uploaded as part of it"
TOLD_REFUSALS = 3  # refused files of one push that are told by name


class Urgency(NamedTuple):
    """How urgent a batch is."""

    is_urgent: bool  # whether it may have one of the last commits of the hour
    is_last_chance: bool  # whether it is lost, or waited for in vain, unless it goes now


class Sending:
    """What waits to be sent of a run, and what the Hub has of it."""

    def __init__(
        self,
        spool: Spool,
        host: HostSpool,
        start: StartRecord,
        status: StatusFile,
        peers: Peers,
        requests: Requests,
        branch: Branch,
    ) -> None:
        self._spool, self._status, self._peers = spool, status, peers
        self.requests, self.branch, self._clocks = requests, branch, peers.clocks
        clocks = peers.clocks
        self._commits = 0
        self._asked_at = -math.inf  # monotonic seconds of the last request
        self._other_runs = frozenset[str]()  # the folders of those below this one that the user was told of
        self._left_out = frozenset[str]()  # what was left out of which the user was told
        self.next_commit = clocks.now() + clocks.timing.first_scan_after  # when the commit interval is over
        self.backoff = Backoff(clocks)  # after failures of this run alone; of attachments, see there
        self.ledger = _loaded(spool, host, start)
        self._outbox = Outbox(host, spool.run)
        self.retries = Retries(self.ledger, clocks)
        theirs = functools.partial(pulled_files, spool)
        self.events = EventFileLane(self._outbox, self.ledger, branch.size, self.retries, clocks, theirs)
        self.attachments = AttachmentLane(spool, host, self.ledger, branch.attachments, self.retries, clocks)
        self.in_flight = InFlight(spool, host, self._outbox, self.ledger, clocks)

    def recover(self) -> None:
        """Take over what earlier uploaders have left, once other hosts can see that this one is here."""
        self.in_flight.recover()
        for batch in list(self._outbox.batches):
            if all(map(self.ledger.covers, batch.files)):
                self._outbox.remove(batch)

    # what members ask for

    def note(self) -> None:
        """Take note of who is here, and of what is asked for."""
        members = self._peers.here
        # the settings: a sampler has those of the worker that has started it, which others may have changed since
        deciding = [one for one in members if one.works] or [one for one in members if not one.is_sampler]
        if deciding := deciding or (members if self.ledger.settings is None else []):
            self.ledger.settings = max(deciding, key=lambda member: member.started_at).settings
        for member in members:
            if self.requests.note(member):
                self._hurry(member)
        self.requests.keep(members)
        if self._peers.take_news():
            self._scan_again()

    def _hurry(self, member: Member) -> None:
        """A request or an end is news: it ends a wait of ours, not one that the Hub asked for."""
        self.attachments.request()
        self.retries.request()
        self.in_flight.may_create |= member.alive and CREATE in member.wishes
        if member.alive and AGAIN in member.wishes and self.ledger.send_again():
            self.in_flight.save_ledger()
            self._start_over()
        self.backoff.hurry(self._clocks.now())
        self.branch.pacing.requested()
        self._asked_at = self._clocks.now()
        if member.alive and member.name.worker == ENDER and member.name.host == host_id():
            self.terminate()

    def terminate(self) -> None:
        """SIGTERM or `stop`: try once more now, unless the Hub asked for a wait; do not wait for the unreadable."""
        self.requests.terminate()
        self.events.blind_scans = 0
        for backoff in (self.branch.pacing, self.backoff):
            backoff.end_wait(self._clocks.now())

    def catch_up(self) -> None:
        """Save what the disk has refused. When the settle time is over the Hub is read back."""
        if self.in_flight.catch_up():
            self.branch.distrust()

    def _scan_again(self) -> None:
        """Scan soon: of the last scan, something is not sent."""
        self.events.has_scanned = False
        self.next_commit = self._clocks.now()

    # what to do next

    def situation(self, *, is_abandoned: bool, sealing: bool) -> Situation:
        """What `decide` may know."""
        members = self._peers.here
        living = sum(member.works for member in members)
        return Situation(
            living=living,
            is_abandoned=is_abandoned,
            may_try=self._clocks.now() >= self.next_try,
            due=self.is_due or bool(self.retries.due(attachments=False)),
            outgoing=self.events.outgoing,
            settling=self.in_flight.is_settling,
            attached=self.attachments.state(living),
            ending=self.requests.ending,
            orphaned=self.requests.any_orphaned(members),
            undecided=self.retries.is_open or self._peers.awaits_more,
            sealing=sealing,
        )

    @property
    def next_try(self) -> float:
        """Monotonic seconds; no push of this run starts earlier."""
        return max(self.branch.pacing.next_try, self.backoff.next_try)

    @property
    def is_due(self) -> bool:
        """Whether event files should go: the commit interval of live workers is over, or they are urgent."""
        return (self._peers.works and self._clocks.now() >= self.next_commit) or self._is_urgent()

    @property
    def may_scan(self) -> bool:
        """Whether nothing of this run alone keeps it from a scan."""
        return self._clocks.now() >= self.backoff.next_try and not self.in_flight.is_settling

    @property
    def joins(self) -> bool:
        """Whether it goes along with a commit of others: half of its own interval is over."""
        half = 30 * self.events.settings.commit_every
        is_about_due = self._peers.works and self._clocks.now() >= self.next_commit - half
        return is_about_due and self.may_scan

    def _is_urgent(self) -> bool:
        """Whether event files should go at once: for a request, or for what was left behind."""
        unseen = not self._peers.works and not self.events.has_scanned
        return unseen or self._reads_back or self.requests.any_urgent(self._peers.here)

    @property
    def _reads_back(self) -> bool:
        """Whether the Hub is asked although there is nothing to send."""
        return self.requests.audit or self._asks

    @property
    def _asks(self) -> bool:
        """Whether it is asked for a worker: only for what has arrived, and not many times within seconds."""
        lately = self._clocks.timing.asked_within
        is_due = self.requests.asks and not self.ledger.was_asked_at(time.time(), lately)
        return is_due and self.ledger.has_arrived

    def _is_last(self) -> bool:
        return self.requests.is_ending or not self._peers.works

    # scan

    def scan(self) -> bool:
        """Put what the Hub lacks of the event files into the outbox; False if the disk refuses or there is more."""
        if self.requests.audit:  # a push is sure to come, even if there is nothing to send
            self.branch.prepare(self.in_flight)
        peers, quarantined = self._peers, dict(self.ledger.quarantined)
        everything = not peers.works or self.requests.audit or self._is_asked_for_all()
        try:
            files = self.events.scan(peers.members, peers.takes, everything=everything)
            if self.ledger.quarantined != quarantined:  # a large file is left out, or is not any more
                self.in_flight.save_ledger()
        except OSError as error:
            logger.info("cannot scan the event files: %s", error)
            self.backoff.hold(Step(self._clocks.timing.push_retry_first))
            return False
        interval = 60 * self.events.settings.commit_every if self.events.has_scanned else 0
        self.next_commit = self._clocks.now() + interval
        self.requests.scanned(peers.here, files)
        if not self.ledger.has_arrived:
            self.in_flight.of_others = printable(of_other_writers(file.path for file in files))
        self._satisfy()
        if self.events.reads_on:
            self.events.require_scan()
            return False
        self.requests.tried(is_last=not self.events.batches)
        self._tell_other_runs()
        for what in self._left_out.union(self.events.left_out) - self._left_out:
            self._status.notify([printable(f"{self._spool.logdir}: what is left out: {what}")])
        self._left_out |= frozenset(self.events.left_out)
        return True

    def _tell_other_runs(self) -> None:
        """Tell once that there are other runs below, and of those that began later what the Hub has of before."""
        new = self._other_runs.symmetric_difference(self._other_runs.union(self.events.other_runs))
        if new and not self._other_runs:
            self._status.notify([f"{self._spool.logdir} {OTHER_RUNS}, such as {printable(min(new))}"])
        self._other_runs |= new
        folders = tuple(f"{folder}/" for folder in new)
        known = self.ledger.known().items() if new else ()
        sent = [path for path, held in known if path.startswith(folders) and not held.is_gone]
        if sent:
            what = f"{counted(len(sent), 'file')} of them that were uploaded before, such as {printable(min(sent))},"
            self._status.notify([f"{what} stay at {self.ledger.resolved.url} until you delete them there"])

    def _satisfy(self) -> None:
        died = self.requests.satisfy(self.events.batches, self.ledger, self._peers.members)
        self._status.remember(died)

    @property
    def is_last_chance(self) -> bool:
        """Whether the run ends, as far as is known: what is not sent now may be lost with this machine."""
        return self._is_last() or self._is_asked_for_all()

    def _is_asked_for_all(self) -> bool:
        here = self._peers.here
        return self.requests.any_urgent(one for one in here if one.alive and one.name.worker in ASK_FOR_ALL)

    def scan_attachments(self) -> None:
        """Scan attachments, as no event file is due."""
        lane = self.attachments
        with contextlib.suppress(OSError):  # it counts on, and is told here; the next look writes it down
            write_down(self._spool, self._peers.here)
        if not lane.batches and lane.scan(self._peers.takes, alone=not self._peers.works):
            self.in_flight.save_ledger()

    # push

    def parcel(self, lane: Lane) -> Parcel | None:
        """What goes next, None if nothing does; who asks the Hub, and has nothing to send, gets an empty batch."""
        if lane.batches:
            return Parcel(self.in_flight, lane, lane.batches[0])
        return Parcel(self.in_flight, lane, Batch(0, ())) if lane is self.events and self._reads_back else None

    def question(self, parcel: Parcel) -> Parcel | None:
        """What asks the Hub for a worker while a parcel has to wait, None if none asks."""
        return parcel._replace(batch=Batch(0, ())) if parcel.lane is self.events and self._asks else None

    def urgency(self, batch: Batch) -> Urgency:
        """How urgent a batch is."""
        refused = any(file.path in self.ledger.quarantined for file in batch.files)
        urgent = not refused and (self._is_last() or self._is_urgent())
        return Urgency(urgent, self.requests.is_ending or self._is_asked_for_all())

    def has_to_wait(self) -> None:
        """The rate limit allows no push now: the user is told why, once of all runs."""
        self.events.require_scan()
        wait = self.branch.pacing.next_try - self._clocks.now()
        if (self.branch.pacing.is_alone or wait > NOTABLE_WAIT) and (text := self.branch.explain()):
            self._status.notify([text])
        if self.branch.pacing.due_at and wait > NOTABLE_WAIT:
            due = time.strftime("%H:%M", time.localtime(time.time() + wait))
            self._status.waits(f"the next commit is due at about {due}.")

    def starts(self, batch: Batch) -> bool:
        """A push of a batch starts; whether it squashes the history afterwards."""
        is_last_batch, settings = len(self.events.batches) <= bool(batch.files), self.events.settings
        self.requests.tried(is_last=is_last_batch)
        if not batch.files:  # it makes no commit
            return False
        final = self._is_last() and not batch.has_attachments and is_last_batch
        return settings.squash_history and self.branch.pacing.may_squash(0 if final else settings.commit_every)

    # what follows a verdict

    def conclude(self, verdict: Verdict, parcel: Parcel, result: Result) -> bool:
        """Take in the verdict on what was in flight; whether the Hub has it."""
        verdict = self.in_flight.judged(verdict)
        if not isinstance(verdict, Done):
            self._failed(verdict, parcel, result)
            return False
        self._commits += verdict.own
        if verdict.own:
            count, size = len(verdict.files), sum(self._new_bytes(*held) for held in verdict.files.items())
            files, took = f"{count} file{'s' * (count != 1)}", self.branch.took
            logger.info("pushed %s in %s, commit %s, %.1f s", size_text(size), files, verdict.commit[:8], took)
        self._done(verdict, parcel, in_time=result.in_time)
        self._status.recovered()
        self._satisfy()
        return True

    def _new_bytes(self, path: str, sent: Sent) -> int:
        """How much of a file the Hub did not have: an event file grows, an attachment is replaced as a whole."""
        held = self.ledger.files.get(path, ledger.NOWHERE)
        if is_attachment(path):
            return 0 if held.sent == sent else sent.length
        return max(0, sent.length - held.length)

    def _done(self, verdict: Done, parcel: Parcel, *, in_time: bool) -> None:
        _, lane, batch = parcel
        released = verdict.files.keys() & self.ledger.quarantined.keys()
        carried = {file.path for file in batch.files if batch.has_attachments}
        lost = {path: sent for path, sent in verdict.files.items() if self.ledger.is_ahead(path, sent)}
        deleted = [path for path, sent in lost.items() if sent.deleted]
        if lost.keys() - carried - set(deleted):
            logger.info("the Hub has less than it had: what is missing is sent again")
            self._start_over()
        if deleted:
            self._tell_deleted(deleted)
        self.in_flight.acknowledge(verdict, batch)
        self.requests.audit = self.requests.audit and not verdict.checked
        self.requests.asks = self.requests.asks and not verdict.asked
        self._backoff_of(lane).succeeded()
        lane.done(batch, committed=verdict.own, in_time=in_time)
        if released:  # the later files of their writers waited for them, and what refused them may be over
            self._scan_again()
            self.retries.request()

    def _start_over(self) -> None:
        """Scan everything again, as the Hub lacks something that it has had."""
        self._scan_again()
        self.attachments.restart()
        self.requests.forget()

    def _tell_deleted(self, paths: list[str]) -> None:
        """Tell once that files were deleted on the Hub, and stay so."""
        what = f"{counted(len(paths), 'file')}, such as {printable(min(paths))},"
        where, again = self.ledger.resolved.url, command_line("sync", self._spool.logdir, "--again")
        were, they = ("was", "is") if len(paths) == 1 else ("were", "are")
        self._status.notify([f"{what} {were} deleted at {where}, and {they} not sent again; to send again: {again}"])

    def _failed(self, verdict: Verdict, parcel: Parcel, result: Result) -> None:
        _, lane, batch = parcel
        self.events.require_scan()
        known = set(self.ledger.quarantined)
        if isinstance(verdict, Quarantine) and not verdict.committed:
            self._forget(verdict.paths)
        alone = self._backoff_of(lane) if result.failure is None else None
        attempts = alone.attempts + 1 if alone else result.attempts
        if not isinstance(verdict, Split) or len(result.outcomes) == 1:  # else it may be about another run
            verdict = lane.failed(verdict, batch, attempts)
        if alone:
            alone.failed(verdict)
        if batch.has_attachments or isinstance(verdict, Quarantine):
            self.in_flight.save_ledger()
        if not isinstance(verdict, Unknown):
            self.in_flight.clear()
        if isinstance(verdict, Quarantine):
            lane.drop(batch)
            self._scan_again()
            self._status.notify(_refusals({path: why for path, why in verdict.paths.items() if path not in known}))
        is_of_others = isinstance(verdict, Split) and len(result.outcomes) > 1
        lasts = isinstance(verdict, (Retry, Unknown, Moved)) and self._clocks.now() < self._asked_at + ASKED_FOR
        self.requests.asks = self.requests.asks and (bool(batch.files) or lasts)
        if not lane.yielded and not is_of_others:  # yielded: it was ended from here, which is no failure
            waits = bool(batch.files) or self.requests.audit
            self._tell_failure(verdict, attempts, of_events=lane is self.events and waits)

    def _backoff_of(self, lane: Lane) -> Backoff:
        """The wait after failures of this run alone, of what a lane sends."""
        return self.attachments.alone if lane is self.attachments else self.backoff

    def _tell_failure(self, verdict: Verdict, attempts: int, *, of_events: bool) -> None:
        is_outage = (of_events and isinstance(verdict, (Retry, Unknown))) or isinstance(verdict, Refused)
        self._status.failed(verdict, attempts, is_outage=is_outage)
        if isinstance(verdict, (Retry, Unknown, Refused)):
            wait = max(0.0, self._next_at - self._clocks.now())
            logger.info("failed: %s; next try in %.0f s", verdict.reason.rstrip("."), wait)

    def _forget(self, paths: Iterable[str]) -> None:
        """Claim nothing of event files in whose place a push has found something else on the Hub."""
        for path in paths:
            held = self.ledger.files.get(path)
            if held is not None and held.length and not is_attachment(path):
                gone = dataclasses.replace(held, length=0, sha256="", generation=held.generation + 1)
                self.ledger.files[path] = gone

    # waits and status

    @property
    def until_push(self) -> float | None:
        """Seconds until the next try of what waits, None if nothing waits."""
        return self.next_try - self._clocks.now() if self.events.batches else None

    @property
    def _next_at(self) -> float:
        """Monotonic seconds when the next try of what waits, or else the next commit, is due."""
        tries = self.next_try, self.branch.pacing.blocked_until
        return max(*tries, 0.0 if self.events.batches or self._reads_back else self.next_commit)

    def publish(self, phase: str = "") -> None:
        """Publish what waits, what is sent, and when the next push is due."""
        under_way = self.branch.push  # of this run, or of others: it tells whether the Hub answers
        push = under_way if self.branch.carries(self.in_flight) else None
        waiting = self.events.batches + self.attachments.batches
        self._status.publish(
            phase=phase or ("pushing" if push else "waiting" if self.events.batches else "idle"),
            waiting=len(waiting),
            push=push.pid if push else 0,
            commits=self._commits,
            blocked_until=self.branch.pacing.blocked_until,
            in_line=self.branch.pacing.due_at > self._clocks.now(),
            next_at=self._next_at,
            asked_at=under_way.asked_at if under_way else 0.0,
            is_answered=under_way is not None and under_way.is_answered,
            repo_id=self.ledger.repo_id,
            private=self.ledger.private,
        )

    def close(self) -> None:
        """Remove the copies."""
        self.attachments.close()
        self.branch.forget(self.in_flight)


def _loaded(spool: Spool, host: HostSpool, start: StartRecord) -> ledger.Ledger:
    if aside := ledger.set_aside(spool, host.root.basename):
        logger.info("the ledger could not be read, it is now %s; lengths are read back from the Hub", aside)
    loaded = ledger.load(spool, start.destination)
    if not start.destination.can_be(loaded.repo_id):
        loaded.repo_id = ""  # the first push resolves it again
    return loaded


def _refusals(paths: Mapping[str, str]) -> list[str]:
    """What the user is told of files that the Hub refuses now, with the reason of each."""
    more = [f"{len(paths) - TOLD_REFUSALS} more files are refused, see hf-mpwriter status"]
    told = [f"not uploading {path}: {why.rstrip('.')}; what else there is goes on" for path, why in paths.items()]
    return told[:TOLD_REFUSALS] + more * (len(paths) > TOLD_REFUSALS)
