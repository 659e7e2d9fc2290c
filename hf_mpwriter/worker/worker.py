"""The worker: this process in one run directory. It joins, appends, keeps house, leaves.

    Worker -- Membership    claim and member file
           -- WorkerFiles   event files
           -- Election      an uploader lives

There is one worker per run directory and process, shared by all writers. It has no thread. Everything beside appending
happens when it keeps house: a few system calls, every few seconds, as part of an `add_*` call.

    a writer is built       join: spool, destination, claim, member file; bad input is refused here
    the first event         open a segment, keep house
    the last writer closes  seal the segments, give up claim and member file, keep house once more
    fork                    the child has nothing of this; it joins at its first event

Invariants:
- A child never touches what it inherited: descriptors are closed, records that wait stay with the parent.
- Nothing of ours raises into training, see `events/boundary`; the constructor of a writer alone refuses what is wrong.
- Locks have one order: an event file joins under its own lock, so no event file is called under the lock of the
  membership.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.daemon.starts import SamplerStart, uploader_start
from hf_mpwriter.delivery.status import Logged, Status
from hf_mpwriter.events.boundary import Boundary
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import contact, process_state
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.worker import answers
from hf_mpwriter.worker.ending import Ends
from hf_mpwriter.worker.files import WorkerFiles
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.messages import Messages
from hf_mpwriter.worker.mirroring import Mirroring, Sealing
from hf_mpwriter.worker.patience import Terms
from hf_mpwriter.worker.reporter import Reporter
from hf_mpwriter.worker.role import Attempt, Role
from hf_mpwriter.worker.step_count import StepCount

STUCK_AFTER = 60.0  # seconds; housekeeping never takes so long
REAP_EVERY = 0.2  # seconds until the next housekeeping while a started process is to be reaped


class Worker:
    """This process in one run directory."""

    def __init__(
        self,
        spool: Spool,
        limits: Limits,
        attempt: Attempt | None = None,
        timing: Timing = USUAL,
    ) -> None:
        self._timing = timing
        self.users: set[object] = set()  # the writers
        self.boundary = Boundary(lambda: self.spool.logdir)  # around what training calls
        self.membership = Membership(spool)  # claim and member file
        self._reporter = Reporter(self.membership)
        self._started_at = time.time()  # unix time when this worker was made
        attempt = attempt or Attempt.of_this_process(is_child=self.role.is_child)
        self.files = WorkerFiles(self.membership, limits, attempt, timing)  # event files
        self.steps = StepCount(self._next_step)  # to come in the worker directory
        # of the event files of a staged run
        self.sealing = Sealing(self.files, lambda: self.membership.settings.commit_every)
        self._election, self._sampling = Election(spool, "uploader"), Election(spool, "sampler")
        self._token: str | None = None  # for the uploader, None leaves it to the environment
        self._mirroring = Mirroring(spool, lambda: self._reporter.reports, timing=timing)
        self._messages = Messages(self.membership, self._reporter, attempt.started_at)
        keep_house = functools.partial(self.keep_house, at_end=True)
        self._ending = Ends(self.membership, self._reporter, self._messages, self.logged, keep_house, timing)
        self._start_fresh()

    def _start_fresh(self) -> None:
        self.next_housekeeping = 0.0
        self._turn = process_state.Turn()  # to keep house
        self.has_failed, self._has_told = False, False  # the last: the supervisor, if any
        self._is_over = False  # whether the end was told, and nothing has come since
        self.steps.forget()
        self._asks = answers.Asks(self._timing.asked_within)
        self._left_at = self._started_at  # unix time
        self._reporter.forget()

    @property
    def spool(self) -> Spool:
        """The spool of the run."""
        return self.membership.spool

    @property
    def role(self) -> Role:
        """The role of this process."""
        return self.membership.role

    # configure

    def configure(self, destination: Destination | None, settings: Settings, token: str | None) -> None:
        """Take destination, settings and token of the newest writer."""
        self.has_failed = False
        self.membership.configure(destination, settings)
        if token is not None:
            self._token = token

    def stop(self) -> None:
        """Ask for no more pushes, start no uploader, do not wait at the end."""
        self.membership.is_stopped = True

    @property
    def is_stopped(self) -> bool:
        """Whether this process asks for no uploads."""
        return self.membership.is_stopped

    # join and leave

    def try_to_join(self, *, is_behind: bool = False) -> None:
        """Take a name now, so that a process that starts at the same time takes another; else at the first event.

        What of a logdir is not here is on its way from now on, so that it is here when it is asked for.
        """
        with self.boundary:
            try:
                self.membership.directory()
            except ours(OSError) as error:
                logger.warning("%s: cannot join yet: %s", self.spool.logdir, error)
            if is_behind:
                self._mirroring.begin()
            logger.flush()

    def enter_again(self, user: object, rank: int | None) -> None:
        """Join for a closed writer that logs again; its event file meets what may be wrong with the disk now."""
        self.has_failed = False
        with self.boundary:
            self.membership.check_rank(rank, is_free=not self.users)
        self.users.add(user)
        self.try_to_join()

    def leave(self, user: object, *, waits: bool = False) -> None:
        """Take a writer off; the last one makes the process leave."""
        self.users.discard(user)
        with self.boundary:
            if self.users:
                self.sealing.request(at_once=False)
                self.files.check()
                return
            self.leave_all()
            if not waits:
                self._let_go()

    def leave_all(self) -> None:
        """Seal the files, give up claim and member file; a process that logs again joins again.

        It goes on reporting, if it does, until `wait` is over.
        """
        for step in (functools.partial(self._finish, self.files.close), self.files.give_up, self.steps.forget):
            with self.boundary:
                step()
        self._left_at = time.time()
        with self.boundary:
            self.membership.leave(self.dropped, self.files.why_dropped)
        with self.boundary:
            if self.membership.is_unfinished or (self.membership.has_logged and self._mirroring.is_needed()):
                self.keep_house()

    def _let_go(self) -> None:
        """Hold nothing open while there is nothing to do: the user may unmount it, and another one may report."""
        if not self.membership.is_joined:
            self._reporter.give_up()
            self.spool.release()

    @property
    def is_active(self) -> bool:
        """Whether there is something to leave."""
        return self.membership.is_joined or self.files.have_work

    # housekeeping

    def keep_house_if_due(self) -> None:
        """Keep house if the time has come; called after every record."""
        if time.monotonic() >= self.next_housekeeping:
            self.keep_house()

    def keep_house(self, *, at_end: bool = False) -> None:
        """See that files are there and an uploader lives, also in a wait `at_end`; never waits, never raises."""
        with self.boundary:
            if self._turn.take(lambda: self._keep_house(at_end=at_end), STUCK_AFTER):
                logger.flush()

    def _keep_house(self, *, at_end: bool) -> None:
        self.next_housekeeping = time.monotonic() + self._timing.housekeeping_every
        self.files.check_in_turn()
        self._rejoin()
        self.sealing.seal_due()
        self.files.rewind.retry()
        self.membership.record_dropped(self.dropped, self.files.in_memory, self.files.why_dropped)
        self.membership.record_request()
        self.membership.tell_rank()
        if self.delivers:
            self._has_told = self._has_told or contact.tell(self.spool.run_dir)
            self._reporter.take()
            self._ensure_processes(at_end=at_end)
            self._note_late()
            self._reporter.give_back()
        settings = self.membership.settings
        if settings.system_metrics and self.membership.is_joined and not self.membership.is_stopped:
            self._sampling.ensure(SamplerStart(**vars(self.spool.paths), settings=settings))
        if self._sampling.children and self._sampling.reap():
            self.next_housekeeping = time.monotonic() + REAP_EVERY

    def _note_late(self) -> None:
        """Tell that something came after the end was told; until then each call looks, as any may be the last."""
        if self._is_over and self.membership.is_joined:
            self._is_over = False
            self._messages.late()
        elif self._is_over:
            self.next_housekeeping = 0.0

    def _rejoin(self) -> None:
        """Join again if the spool was deleted, or if a record came in while the process left."""
        before = self.membership.name
        if not self.membership.rejoin(lambda: self.files.are_open):
            return
        self._reporter.give_up()
        if before in ("", self.membership.name):
            self.files.register_again()
        else:  # the old directory may belong to another process by now
            self.files.close()

    def _ensure_processes(self, *, at_end: bool) -> None:
        """Make sure that an uploader lives, and a mirror; tell what they have to tell."""
        if self.membership.uploads:
            if self.spool.exists() and not self.spool.has_destination():  # refused when the spool was recreated
                self.membership.ensure_spool()
            if (to := self.membership.destination) is not None:
                start = uploader_start(self.spool, to, self.membership.joined_at, seeks_siblings=True)
                self._election.ensure(start, self._token)
            self._messages.tell(at_end=at_end)
        if self._mirroring.keep_house() | self._election.reap():
            self.next_housekeeping = time.monotonic() + REAP_EVERY

    # log, push, wait

    def note_logged(self) -> None:
        """Note that an attachment was written: an uploader has to come for it."""
        self.membership.has_logged = True
        self.keep_house_if_due()

    @property
    def dropped(self) -> int:
        """Records that the disk refused for good."""
        return self.files.dropped

    def flush(self) -> None:
        """Make everything logged so far survive a power cut."""
        with self.boundary:
            self._finish(self.files.flush)
        self.keep_house_if_due()

    def _finish(self, step: Callable[[], object]) -> None:
        """Flush or close all files; once more, with another member file, where a mount that was away has come back."""
        step()
        if self.files.in_memory:
            self._rejoin()
            step()

    def purge(self, step: int) -> bool:
        """Hide what was logged until now from `step` on, also in the directories of ranks that are missing.

        Whether a new writer is to purge its own directories; not if another open writer does the same.
        """
        with self.boundary:
            purges = self.files.rewind.start(step, is_alone=len(self.users) == 1)
            if purges and self.role.child is None:
                self.steps.start(step)
            return purges
        return False

    def last_step(self, tag: str | None, *, only_scalars: bool = False) -> int | None:
        """The step of the last record in the worker directory that no purge hides, see `events/last_step`."""
        self._mirroring.wait_until_back(self.files.own_directory().name)
        return self.files.last_step(tag, only_scalars=only_scalars)

    def _next_step(self) -> int:
        """The step that follows on what is in the worker directory, and from which on a purge hides it; else 0."""
        if (purge := self.files.pending_purge()) is not None:
            return purge
        last = self.last_step(None, only_scalars=True)
        return 0 if last is None else last + 1

    def logged(self) -> Logged:
        """What this process has logged until now."""
        return answers.logged(self.membership, self.files)

    def request_push(self, *, at_once: bool = False) -> Logged:
        """Ask for a push of what was logged so far, and say what that is; for `at_once` see `Sealing.request`."""
        before = self.logged() if at_once and self._mirroring.is_needed() else None
        self.sealing.request(at_once=at_once)
        self.membership.request_push()
        self.keep_house()
        return before or self.logged()  # what other threads log after the seal comes with the next one

    @property
    def delivers(self) -> bool:
        """Whether what is logged is to be on the Hub, or in a logdir beside the run directory."""
        return self.membership.uploads or self._mirroring.is_needed()

    def push(self, wait: float) -> bool:
        """Ask for a push and wait for it, at most `wait` seconds; see `answers`."""
        delivered = False
        with self.boundary:
            if self.delivers:
                request = functools.partial(self.request_push, at_once=wait > 0)
                delivered = answers.push(self.membership, request, wait, self.keep_house, self._asks)
                self._messages.tell()
        return delivered

    def status(self) -> Status:
        """How much of what this process has logged is on the Hub, and in the logdir of a staged run."""
        try:
            return answers.status(self.membership, self.logged())
        except ours(Exception) as error:
            self.boundary.tell(error)
            return Status(error=f"the status cannot be told: {error!r}")

    def wait(self, spent: float = 0.0, *, failed: bool = False, is_asked: bool = False) -> None:
        """Wait, bounded, until what this process answers for is delivered; see `ending`.

        A child waits only if it reports: else the member from which it descends waits, or the reporter.
        """
        try:
            with self.boundary:
                self._reporter.give_back()
                if self.delivers and (self._reporter.take(at_end=True) or is_asked or not self.role.is_child):
                    own, left_at = self.files.written(), time.time() if self.membership.is_joined else self._left_at
                    self.sealing.request(at_once=True)  # what other writers log from here on comes later
                    terms = Terms(self.membership.settings.exit_timeout, failed, self.role.has_peers, spent)
                    self._ending.wait(own, terms, left_at, is_asked=is_asked)
                elif not self.delivers and not self.role.is_child and not self.role.rank:
                    self._messages.tell_lost()
        finally:
            with self.boundary:
                self._let_go()
                logger.flush()

    def end(self) -> None:
        """Have an uploader come at once for what is logged from here on: the end was told."""
        self._is_over, self.next_housekeeping = self.delivers, 0.0

    def after_fork(self) -> None:
        """In the child: forget everything that is the parent's."""
        self._election.forget()
        self._sampling.forget()
        self._mirroring.forget()
        self.membership.start_fresh()
        self._start_fresh()
        self.files.after_fork()
