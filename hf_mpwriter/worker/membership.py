"""Membership: the claim and the member file of this process in one run directory.

    outside --join--> joined --leave, or withdraw where no uploader will come--> outside
               ^         |
               +-rejoin--+   the spool was deleted

A process joins when its first writer is built, or at its first event after it left. While it is joined it holds the
lock of its claim and the lock of its member file, which takes:

    open, seal   a segment, reported by the event files of this process
    dropped      records that the disk refused for good
    requests     for a push of all that was written by then, one in REQUEST_EVERY on average

Invariants:
- A process has at most one name, also when a signal handler logs while it joins.
- Nothing is logged while the lock is held: the worker flushes the deferred log later.
- A forked child is outside: locks and files belong to its parent.
"""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from hf_mpwriter.base import job
from hf_mpwriter.base.errors import ForeignSpoolError, HfMpWriterError, SettingsError
from hf_mpwriter.base.names import worker_dir
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.search import SECONDS_OF_A_WAIT
from hf_mpwriter.spool import storage
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.spool.workers import members
from hf_mpwriter.spool.workers.members import Taken
from hf_mpwriter.system import locks, process_state
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.system.process import Process
from hf_mpwriter.worker import holders, role
from hf_mpwriter.worker.looking import publish_record
from hf_mpwriter.worker.role import Role

SHARED = "~shared"  # among the names that were told: no process can be called so
REQUEST_EVERY = 1.0  # seconds between two requests, of many: a script that asks at every step must not fill the disk
REQUESTS_AT_ONCE = 10  # a request in time may be the last that this process can make, as in a handler of a signal


class Joined(NamedTuple):
    """What a process holds while it is joined."""

    taken: Taken  # its name
    file: members.MemberFiles  # its member file, or several


class Membership:
    """This process as a member of a run."""

    def __init__(self, spool: Spool) -> None:
        self.said: int | None = None  # the rank that the program has given to a writer by `rank=`, None if none
        self._parent: int | None = None
        self.spool = spool  # of the run directory
        self.destination: Destination | None = None  # that the writers ask for, None if the run is local
        self.settings = Settings()  # how it is uploaded
        self.is_stopped = False  # whether this process asks for no uploads
        self.joined_at = time.time()  # unix time of the last join
        self._lock = process_state.thread_lock()
        self.start_fresh()

    def start_fresh(self) -> None:
        """Be outside, as at the start and in a forked child."""
        self._parent = self._parent if self.said is None else self.said
        self.said = None
        self.role: Role = role.current_role(None, self._parent)
        self._has_told_rank = False
        self.name = ""
        self.has_logged = False
        self._told_holders: set[str] = set()
        self._joined: Joined | None = None
        self._said_again: list[Place] = []  # member files that are gone, or whose mount was away; another one counts
        self._repeated = ""  # the first member file of those whose counts the next one says again
        self._counted = 0  # records that were dropped, and that member files count which were left
        self._is_joining = False
        self._is_push_requested, self._next_request = False, 0.0
        self.is_late = False  # whether this process has told its end, or is about to

    def configure(self, destination: Destination | None, settings: Settings) -> None:
        """Take the settings of the newest writer; a local writer does not change how others are uploaded."""
        if destination is not None or self.destination is None:
            self.destination, self.settings = destination, settings

    def descends_from(self, rank: int | None) -> None:
        """Take the rank of the process from which this one has got a writer."""
        self._parent = rank if self._parent is None else self._parent

    def check_rank(self, rank: int | None, *, is_free: bool) -> None:
        """Take what the program says of its rank."""
        is_known = self.role.rank if self.said is None and self.role.child is None else self.said
        if rank is None or rank == is_known:
            self.said = self.said if rank is None else rank
            return
        if not is_free and (self.said is not None or self.has_logged):
            name = f"rank {self.said}" if self.said is not None else self.name
            raise SettingsError(
                f"rank is {rank}, but this process logs in {self.spool.logdir} as {name} already.",
                hint="A process is one rank of a run: close its other writers first, or give this one another logdir.",
            )
        self.said, self.has_logged = rank, False

    @property
    def uploads(self) -> bool:
        """Whether what is logged is to be uploaded."""
        return self.destination is not None and not self.is_stopped

    # join

    @property
    def is_joined(self) -> bool:
        """Whether claim and member file are held."""
        return self._joined is not None

    def directory(self) -> Place:
        """The worker directory; joins if necessary."""
        with self._lock:
            was_joined = self.is_joined
            if was_joined and not self.has_logged and self._role_now() != self.role:  # it has got a rank meanwhile
                self._let_go(dropped=0)
                was_joined = False
            if not was_joined:
                self._join()
            name = self.name
        # without the lock: the disk may be slow, and a signal handler that interrupts this may wait for other threads
        if was_joined and not self.spool.run.is_at_path():  # deleted, or moved: what comes goes where the user looks
            if self.spool.is_away():
                raise OSError(errno.ENOTCONN, "what was mounted there is away", self.spool.run_dir)
            self.spool.run.release()
        return Place(self.spool.run, worker_dir(name))

    def _join(self) -> None:
        if self._is_joining:  # a signal handler logs while we join: it must not take a second name
            raise OSError(errno.EBUSY, "this process is joining the run at the moment")
        try:
            self._is_joining = True
            self._avoid_foreign_spool()
            joined = self._take_name()
            # `clean` looks for members after it has taken the name away
            if not (self.spool.directory.is_at_path() or self.spool.is_away()):
                self._let_go(dropped=0, is_gone=True)
                joined = self._take_name()
            self.joined_at = joined.file.files[0].started_at
            if self.role.child is None and not self.role.is_task:
                self.tell_holder()
        finally:
            self._is_joining = False

    def _unsay(self) -> None:
        """Remove what is said again, once it was; what the disk refuses to remove, as a mount that dies, goes later."""
        self._said_again = [file for file in self._said_again if not members.unsay(file)]

    def _take_name(self) -> Joined:
        if not self.spool.exists():
            self.ensure_spool()
        self.role = self._role_now()
        with locks.taking():
            taken = members.claim(self.spool, self.role.worker, self.role.substitute)
            make = functools.partial(
                members.MemberFile,
                self.spool,
                taken.name,
                Process.current(),
                self.settings,
                agent=role.agent_of(self.role),
                launcher=role.launcher_of(self.role),
                rank=self.role.rank,
                is_daemon=role.is_daemon(),
                task=job.array_task(os.environ),
                is_late=self.is_late,
                says_again=self._repeated,
            )
            joined = Joined(taken, members.MemberFiles(make, self._counted))
            self._joined, self.name = joined, taken.name
        return joined

    def _role_now(self) -> Role:
        """The role; one that has begun to log keeps it."""
        if self.has_logged:
            return self.role
        found = role.current_role(self.said, self._parent)
        if found.is_child and found.rank is None and self._parent is None:
            self._parent = holders.rank_above(self.spool)
            found = found if self._parent is None else role.current_role(self.said, self._parent)
        return found

    def tell_rank(self) -> None:
        """Tell once that torch.distributed has given this process a rank too late for its name."""
        if self._has_told_rank or not self.has_logged or self.said is not None:
            return
        group = role.distributed()
        if group is None or Role(group.rank, None).worker == self.role.worker:
            return
        self._has_told_rank = True
        logger.warning(
            "%s: this process has logged as %s before torch.distributed gave it rank %s, and keeps that name. Build "
            "the writer after init_process_group, or pass rank= to it.",
            self.spool.logdir,
            self.name,
            group.rank,
        )

    @property
    def taken(self) -> Taken | None:
        """The name that this process holds, None while it is outside."""
        joined = self._joined
        return None if joined is None else joined.taken

    def tell_holder(self, *, resumes: bool = False) -> None:
        """Tell once which process holds the name that this one wants, unless that one has started this one.

        Processes without a rank may share on purpose: unless one resumes, it is told only where this one logs.
        """
        taken = self.taken
        if taken is None or taken.name == taken.wanted:
            return
        holder, shares = holders.find(self.spool, taken.wanted), self.role.rank is None and not resumes
        told = SHARED if shares else "" if holder is None else str(holder.name)
        if told in self._told_holders or (holder is not None and holders.is_ancestor(holder)):
            return
        self._told_holders.add(told)
        is_task = holder is not None and holders.is_of_other_task(holder)
        if shares:
            text = holders.sharing(self.spool.logdir, taken.name, holder)
            (logger.warning if is_task else logger.info)("%s", text)
        elif not is_task or not (self.role.rank or SHARED in self._told_holders):  # one process of a task tells it once
            is_sibling = holder is not None and holders.is_sibling(holder, role.launcher_of(self.role))
            hides = self.role.rank is not None
            text = holders.warning(
                self.spool.logdir, taken.wanted, taken.name, holder, is_sibling=is_sibling, hides=hides
            )
            logger.warning("%s", text)

    def _avoid_foreign_spool(self) -> None:
        """Use a spool aside if ours was replaced or opened to others: what is logged is kept all the same."""
        self.spool.refresh()
        try:
            check_ownership(self.spool.directory)
        except ours(ForeignSpoolError) as error:
            logger.warning("%s What is logged goes to %s and is not uploaded.", error, self.spool.run_dir)
            self.spool, self.is_stopped, self.destination = storage.aside(self.spool), True, None

    def ensure_spool(self) -> None:
        """Create the spool, with the destination, where it was deleted."""
        try:
            self.spool.create()
            publish_record(self.spool)
            if self.destination is not None:
                self.spool.record_destination(self.destination)
        except ours(HfMpWriterError) as error:
            raise OSError(str(error)) from error

    def rejoin(self, is_needed: Callable[[], bool]) -> bool:
        """Join again if the member file is gone; whether the process has joined now; `name` may be another one."""
        with self._lock:  # another thread may be leaving
            was_joined = self._joined is not None
            if self._joined is None:
                if not is_needed():
                    return False
            elif self._joined.file.is_there() or self.spool.is_away():
                return False
            self.spool.refresh()
            came_back = self.spool.exists()
            self._let_go(dropped=0, is_gone=True)
            self._join()
        if was_joined and came_back:
            logger.warning("%s was mounted anew while it was in use; the run goes on there", self.spool.root)
        elif was_joined:
            logger.warning("%s was removed while it was in use; it was created again", self.spool.root)
        return True

    # record

    def record_opened(self, path: str) -> None:
        """Record an event file that is about to be made; OSError if the disk refuses."""
        self.has_logged = True
        if self._joined is not None:
            self._joined.file.opened(path)

    def record_sealed(self, path: str) -> None:
        """Record that an event file is complete; OSError if the disk refuses."""
        if self._joined is not None:
            self._joined.file.sealed(path)

    def record_dropped(self, dropped: int, in_memory: int = 0, why: str = "") -> None:
        """Record the number of dropped records if it has grown; OSError if the disk refuses."""
        if self._joined is not None:
            self._joined.file.record_dropped(dropped, in_memory, why)
            self._unsay()

    def request_push(self) -> None:
        """Have the next `record_request` ask for a push."""
        self._is_push_requested = True

    def record_request(self) -> None:
        """Record a request for a push of all that was written, if there is one and there were not many before."""
        now, ahead = time.monotonic(), (REQUESTS_AT_ONCE - 1) * REQUEST_EVERY
        if not self._is_push_requested or self._joined is None or now < self._next_request - ahead:
            return
        self._is_push_requested, self._next_request = False, max(now, self._next_request) + REQUEST_EVERY
        self._joined.file.request()

    # leave

    @property
    def needs_uploader(self) -> bool:
        """Whether an uploader has to come for this process: it has logged, or it answers for attachments."""
        if self.destination is None:
            return False
        if self.has_logged:
            return True
        if not self.role.answers_for_attachments:
            return False
        until = time.monotonic() + SECONDS_OF_A_WAIT
        return bool(attachments.sizes(self.spool.run, self.settings.allows, until=until))

    @property
    def is_unfinished(self) -> bool:
        """Whether an uploader has to come for this process, or for others of the run."""
        if self.destination is None:
            return False
        return self.needs_uploader or self.spool.is_unfinished(self.destination.endpoint)

    def lend_name(self) -> None:
        """Give up the name, if nothing was logged under it: the process that is being started may be that rank."""
        if not self.has_logged:
            self.leave(0)

    def leave(self, dropped: int, why: str = "") -> None:
        """Give up claim and member file; so many records were dropped, and why."""
        with self._lock:
            self._let_go(dropped, why)

    def _let_go(self, dropped: int, why: str = "", *, is_gone: bool = False) -> None:
        """Release what is held; what is gone leaves no trace: all of it is said again in the next member file."""
        joined = self._joined
        if joined is None:
            return

        def end() -> None:
            if is_gone:
                self._said_again += joined.file.forget()
            else:
                (joined.file.leave if self.needs_uploader else joined.file.withdraw)(dropped, why)

        try:
            self._release(joined, end)
        except BaseException:  # a signal handler's: what is released is released, the rest is now
            self._release(joined, end)
            raise
        if is_gone:
            self._repeated = self._repeated or str(joined.file.files[0].name)
        else:
            self._repeated, self._counted = "", joined.file.dropped
            if joined.file.dropped >= dropped:
                self._unsay()
        self.spool.refresh()

    def _release(self, joined: Joined, end: Callable[[], None]) -> None:
        end()
        locks.release(joined.taken.claim)
        self._joined = None
