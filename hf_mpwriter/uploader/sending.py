"""What is sent, and when: the ledger, both lanes, their waits, what is in flight, and what follows a verdict.

    uploader lock taken, or taken back -> ledger, outbox, lanes, in flight -> the status is published -> recover
    scan, or attach -> start -> listen -> conclude

    Done     ledger saved -> record of what was in flight removed -> batch leaves its lane -> members are satisfied
    other    the lane splits, quarantines or waits -> ledger saved -> record removed -> the next push waits

Invariants:
- What is recovered comes from disk; nothing in memory counts. A batch that the ledger covers is dropped.
- The destination is that of the start record: a file does not tell where to send.
- The ledger is on disk before the record of what was in flight goes, see `in_flight`.
- A failed push of attachments delays event files only if the Hub refuses the destination or asks for a pause.
- The log has one line for each commit, and one for each try that fails, with the time of the next.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterable, Mapping

from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.settings import Environment
from hf_mpwriter.base.verdicts import Done, Quarantine, Refused, Retry, Sent, Unknown, Verdict
from hf_mpwriter.base.words import size_text
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.spool.outbox import Batch, Outbox
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.spool.workers.members import ASK_FOR_ALL
from hf_mpwriter.system import filesystem
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.uploader.decision import Situation
from hf_mpwriter.uploader.in_flight import InFlight
from hf_mpwriter.uploader.lanes import AttachmentLane, EventFileLane, Lane
from hf_mpwriter.uploader.pacing import Backoff, Clocks, Pacing, Retries, Step
from hf_mpwriter.uploader.peers import Peers
from hf_mpwriter.uploader.rate_limit import RateLimit, folder_of
from hf_mpwriter.uploader.requests import Requests

logger = logging.getLogger("hf_mpwriter")

NOTABLE_WAIT = 60.0  # seconds, from which on the user is told why
OTHER_RUNS = "has other runs below it: folders with a .hf_mpwriter of their own are not uploaded as part of it"
TOLD_REFUSALS = 3  # refused files of one push that are told by name


class Sending:
    """What waits to be sent, what is being sent, and what the Hub has."""

    def __init__(
        self,
        spool: Spool,
        host: HostSpool,
        start: StartRecord,
        status: StatusFile,
        peers: Peers,
        requests: Requests,
        clocks: Clocks,
    ) -> None:
        self._spool, self._status, self._peers = spool, status, peers
        self.requests, self._clocks = requests, clocks
        self._commits = 0
        self._knows_other_runs = False  # whether the user was told of them
        self.ledger = _loaded(spool, host, start)
        self._outbox = outbox = Outbox(host, spool.run)
        self._limit = limit = RateLimit(
            start.destination,
            Environment.read().commits_per_hour,
            folder_of(os.environ),
            nodes=start.nodes,
            host=host.root.basename,
            rng=clocks.rng,
        )
        self.pacing, self.retries = Pacing(clocks, limit), Retries(self.ledger, clocks)
        self.events = EventFileLane(outbox, self.ledger, self.pacing, self.retries, clocks)
        self.attachments = AttachmentLane(spool, host, self.ledger, Backoff(clocks), self.retries, clocks)
        self.in_flight = InFlight(spool, host, outbox, self.ledger, self.pacing, clocks)

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
        self.pacing.saw({member.name.host for member in members}, self._peers.hosts)
        if self._peers.take_news():
            self._scan_again()

    def _hurry(self, member: Member) -> None:
        """A request or an end is news: it ends a wait of ours, not one that the Hub asked for."""
        self.attachments.request()
        self.retries.request()
        self.in_flight.may_create |= member.alive and member.create
        self.pacing.requested()

    def terminate(self) -> None:
        """SIGTERM: try once more now, unless the Hub asked for a wait; do not wait for what cannot be read."""
        self.requests.terminate()
        self.events.blind_scans = 0
        self.pacing.end_wait(self._clocks.now())

    def try_now(self) -> None:
        """Let the next push start at once: what the last one failed for has changed."""
        self.pacing.hold(Step(0.0))

    def _scan_again(self) -> None:
        """Scan soon: of the last scan, something is not sent."""
        self.events.has_scanned = False
        self.pacing.soon()

    # what to do next

    def situation(self, *, abandoned_for: float, sealing: bool) -> Situation:
        """What `decide` may know."""
        members = self._peers.here
        living = sum(member.works for member in members)
        return Situation(
            living=living,
            abandoned_for=abandoned_for,
            may_try=self._clocks.now() >= self.pacing.next_try,
            due=self._is_due() or bool(self.retries.due(attachments=False)),
            outgoing=self.events.outgoing,
            settling=self.in_flight.is_settling,
            attached=self.attachments.state(living),
            ending=self.requests.ending,
            orphaned=self.requests.any_orphaned(members),
            undecided=self.retries.is_open or self._peers.awaits_more,
            sealing=sealing,
        )

    def _is_due(self) -> bool:
        """Whether event files should go: the commit interval of live workers is over, or they are urgent."""
        return (self._peers.works and self._clocks.now() >= self.pacing.next_commit) or self._is_urgent()

    def _is_urgent(self) -> bool:
        """Whether event files should go at once: for a request, or for what was left behind."""
        unseen = not self._peers.works and not self.events.has_scanned
        return unseen or self.requests.audit or self.requests.any_urgent(self._peers.here)

    def _is_last(self) -> bool:
        return self.requests.is_ending or not self._peers.works

    # scan and push

    def scan(self) -> None:
        """Put what the Hub lacks of the event files into the outbox, unless the disk refuses."""
        if self.requests.audit:  # a push is sure to come, even if there is nothing to send
            self.in_flight.prepare(self.events)
        peers, quarantined = self._peers, dict(self.ledger.quarantined)
        everything = not peers.works or self.requests.audit or self._is_asked_for_all()
        try:
            files = self.events.scan(peers.members, peers.takes, everything=everything)
            if self.ledger.quarantined != quarantined:  # a large file is left out, or is not any more
                self.in_flight.save_ledger()
        except OSError as error:
            logger.info("cannot scan the event files: %s", error)
            self.pacing.hold(Step(self._clocks.timing.push_retry_first))
            return
        self.pacing.scanned(self.events.settings.commit_every)
        self.requests.scanned(peers.here, files)
        self._satisfy()
        self.requests.tried(is_last=not self.events.batches)
        if self.events.other_runs and not self._knows_other_runs:
            self._knows_other_runs = True
            name = printable(min(self.events.other_runs))
            self._status.notify([f"{self._spool.logdir} {OTHER_RUNS}, such as {name}"])
        # nothing to send, but a request asks what the Hub really has
        if self.requests.audit and not self.events.batches:
            self.push_events()

    def _satisfy(self) -> None:
        died = self.requests.satisfy(self.events.batches, self.ledger, self._peers.members)
        self._status.remember(died)

    def _is_asked_for_all(self) -> bool:
        here = self._peers.here
        return self.requests.any_urgent(one for one in here if one.alive and one.name.worker in ASK_FOR_ALL)

    def push_events(self) -> None:
        """Push the oldest batch of event files; if there is none, the push reads back what the Hub has."""
        self.push(self.events, self.events.batches[0] if self.events.batches else Batch(0, ()))

    def attach(self) -> None:
        """Scan attachments, as no event file is due; push what the Hub lacks of them, if something was found yet."""
        lane = self.attachments
        if not lane.batches and lane.scan(self._peers.takes, alone=not self._peers.works):
            self.in_flight.save_ledger()
        if lane.batches:
            self.push(lane, lane.batches[0])

    def push(self, lane: Lane, batch: Batch) -> None:
        """Start a push, unless it has to wait for the rate limit."""
        if not self._may_push(batch):
            return
        try:
            self._start(lane, batch)
        except OSError as error:  # of the disk or the system
            self._conclude(Retry(filesystem.explained(error, "cannot start a push")))

    def _may_push(self, batch: Batch) -> bool:
        """Whether the rate limit allows a push, else the user is told why; a mere read-back needs no token."""
        refused = any(file.path in self.ledger.quarantined for file in batch.files)
        urgent = not refused and (self._is_last() or self._is_urgent())
        at_once = self.requests.is_ending or self._is_asked_for_all()
        if not batch.files or self.pacing.take(urgent=urgent, at_once=at_once):
            return True
        if self.pacing.used_up:
            self.events.require_scan()
            self._explain_wait()
        return False

    def _explain_wait(self) -> None:
        """Tell the user why a push has to wait for the rate limit."""
        wait = self.pacing.next_try - self._clocks.now()
        if self.pacing.is_alone or wait > NOTABLE_WAIT:
            self._status.notify([self._limit.explanation])
        if self.pacing.due_at and wait > NOTABLE_WAIT:
            due = time.strftime("%H:%M", time.localtime(time.time() + wait))
            self._status.waits(f"the next commit is due at about {due}.")

    def _start(self, lane: Lane, batch: Batch) -> None:
        if self.requests.audit:  # whatever was in flight when it was asked for
            self.in_flight.own_head = None
        is_last_batch, settings = len(self.events.batches) <= 1, self.events.settings
        self.requests.tried(is_last=is_last_batch)
        final = self._is_last() and not batch.has_attachments and is_last_batch
        squash = settings.squash_history and self.pacing.may_squash(0 if final else settings.commit_every)
        self.in_flight.start(lane, batch, squash=squash)

    @property
    def is_pushing(self) -> bool:
        """Whether a push runs."""
        return self.in_flight.push is not None

    def listen(self) -> bool:
        """Take in what the push says; True if it has ended well. One of attachments is ended if it is in the way."""
        if (push := self.in_flight.push) is None:
            return False
        if self.in_flight.carries(self.attachments):
            due, terminating = self._is_due(), self.requests.is_ending
            if self.attachments.must_yield(due=due, terminating=terminating):
                push.kill()
        notices, verdict = push.listen()
        self._status.notify(notices)
        return verdict is not None and self._conclude(verdict)

    # what follows a verdict

    def _conclude(self, verdict: Verdict) -> bool:
        """Take in the verdict on what was in flight; whether the Hub has it."""
        verdict, lane, batch = self.in_flight.end(verdict)
        if not isinstance(verdict, Done):
            self._failed(verdict, lane, batch)
            return False
        self._commits += verdict.own
        if verdict.own:
            count, size = len(verdict.files), sum(self._new_bytes(*held) for held in verdict.files.items())
            files, took = f"{count} file{'s' * (count != 1)}", self.in_flight.took
            logger.info("pushed %s in %s, commit %s, %.1f s", size_text(size), files, verdict.commit[:8], took)
        self._done(verdict, lane, batch)
        self._status.recovered()
        self._satisfy()
        return True

    def _new_bytes(self, path: str, sent: Sent) -> int:
        """How much of a file the Hub did not have: an event file grows, an attachment is replaced as a whole."""
        held = self.ledger.files.get(path, ledger.NOWHERE)
        if is_attachment(path):
            return 0 if held.sent == sent else sent.length
        return max(0, sent.length - held.length)

    def _done(self, verdict: Done, lane: Lane, batch: Batch) -> None:
        released = verdict.files.keys() & self.ledger.quarantined.keys()
        carried = {file.path for file in batch.files if batch.has_attachments}
        if any(self.ledger.is_ahead(path, sent) for path, sent in verdict.files.items() if path not in carried):
            logger.info("the Hub has less than it had: what is missing is sent again")
            self._scan_again()
            self.attachments.restart()
            self.requests.forget()
        self.in_flight.acknowledge(verdict, batch)
        beside_others = None if self.requests.audit else verdict.checked  # an audit reads back what was not moved, too
        self.requests.audit = self.requests.audit and not verdict.checked
        lane.done(batch, committed=verdict.own)
        if released:  # the later files of their writers waited for them, and what refused them may be over
            self._scan_again()
            self.retries.request()
        if self.events.settings.squash_history:
            self.in_flight.own_head = None
        self.pacing.done(committed=verdict.own, beside_others=beside_others)

    def _failed(self, verdict: Verdict, lane: Lane, batch: Batch) -> None:
        self.pacing.learn(verdict)
        self.events.require_scan()
        known = set(self.ledger.quarantined)
        if isinstance(verdict, Quarantine) and not verdict.committed:
            self._forget(verdict.paths)
        verdict, step = lane.failed(verdict, batch)
        if batch.has_attachments or isinstance(verdict, Quarantine):
            self.in_flight.save_ledger()
        if not isinstance(verdict, Unknown):
            self.in_flight.clear()
        if isinstance(verdict, Quarantine):
            lane.drop(batch)
            self._scan_again()
            self._status.notify(_refusals({path: why for path, why in verdict.paths.items() if path not in known}))
        if lane is self.attachments and (isinstance(verdict, Refused) or not step.may_hurry):
            self.pacing.hold(step)
        if lane.yielded:  # it was ended from here, which is no failure
            return
        of_events = lane is self.events and isinstance(verdict, (Retry, Unknown))
        self._status.failed(verdict, lane.backoff.attempts, is_outage=of_events or isinstance(verdict, Refused))
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
        return self.pacing.next_try - self._clocks.now() if self.events.batches else None

    @property
    def _next_at(self) -> float:
        """Monotonic seconds when the next try of what waits, or else the next commit, is due."""
        tries = self.pacing.next_try, self.pacing.blocked_until
        return max(*tries, 0.0 if self.events.batches else self.pacing.next_commit)

    def publish(self, phase: str = "") -> None:
        """Publish what waits, what is sent, and when the next push is due."""
        push, waiting = self.in_flight.push, self.events.batches + self.attachments.batches
        self._status.publish(
            phase=phase or ("pushing" if push else "waiting" if self.events.batches else "idle"),
            waiting=len(waiting),
            push=push.pid if push else 0,
            commits=self._commits,
            blocked_until=self.pacing.blocked_until,
            next_at=self._next_at,
            asked_at=push.asked_at if push else 0.0,
            is_answered=push is not None and push.is_answered,
            repo_id=self.ledger.repo_id,
            private=self.ledger.private,
        )

    def close(self) -> None:
        """Remove the copies, and end the processes that wait for another batch."""
        self.attachments.close()
        self.in_flight.let_go()


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
