"""Rewind: hide the later steps of curves that this process continues, or that no process continues.

A rank that resumes hides its own later steps, because its first segment begins with START. Other directories get a
segment that holds nothing but START:

    rank_00001      that an orphan of an earlier attempt held, so this rank is rank_00001~2
    rank_00001~2    where this rank was while rank_00001 was held
    rank_00007      of a rank that the world does not have any more; rank 0 does it

    free  --purge_step-->  START
    held  --purge_step-->  noted  --the holder is gone-->  START, by the process that noted it or by the next holder

    claims/<worker>.lock    empty, or a note: its step in twenty digits, as a line

Invariants:
- A directory is written only under the claim of its name. So is a note taken back.
- A note is left only while the lock is held by a member of an earlier attempt: it joined before this process, has
  another launcher, and is not of another array task. It says nothing of those who come later. Who takes a name takes
  its note first, and acts on it before its own first segment.
- Directories of missing ranks are rewound only if the launcher says how many ranks there are.
- Of the run directory itself, only directories of event files of ours are rewound that belong to no other name.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator

from hf_mpwriter.base.names import (
    MAIN_WORKER,
    SPOOL_NAME,
    is_event_file,
    is_ours,
    is_reserved,
    last_second,
    rank_of_directory,
    worker_dir,
)
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.events.series import FileHome
from hf_mpwriter.snapshot.search import SECONDS_OF_A_WAIT, RunSearch
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import Listing
from hf_mpwriter.spool.workers.members import Members, Taken
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.worker import holders
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.role import Role, launcher_of

NOTE_LENGTH = 21  # bytes


class Rewind:
    """Which steps are hidden: per directory of this process, and in the directories of other names."""

    def __init__(self, membership: Membership, home: FileHome) -> None:
        self._membership, self._home = membership, home
        self.steps: dict[str, int] = {}  # from which on, per directory of this process
        self._step: int | None = None  # of the last writer that has one
        self._role: Role | None = None  # when the others were rewound
        self._waiting: set[str] = set()  # names with a note of this process
        self._own: Taken | None = None  # the name of which the note was taken

    def forget(self) -> None:
        """In a forked child: what waits is the parent's."""
        self._waiting.clear()

    def start(self, step: int, *, is_alone: bool) -> bool:
        """Hide the steps from `step` on in directories of other names; False if another open writer has done so."""
        if not is_alone and self._step == step:
            return False
        self._step = step
        self._rewind_others(step)
        return True

    def catch_up(self) -> None:
        """Before a segment of this process: rewind others if it has got a rank meanwhile, and what it has taken over.

        The disk may refuse the latter by OSError.
        """
        if self._step is not None and self._role != self._membership.role:
            self._rewind_others(self._step)
        taken = self._membership.taken
        if taken is not None and taken is not self._own:
            self._hide_noted(taken.name, taken.claim)
            self._sort_behind(taken)
            self._own = taken

    def _sort_behind(self, taken: Taken) -> None:
        """Have what this rank logs sort behind all that it has logged under other names, whatever the clocks say."""
        if self._membership.role.rank is None or self._membership.role.child is not None:
            return
        run = self._membership.spool.run
        for name in set(self._other_names(taken, [])) - {taken.name}:
            with suppress(OSError):  # else it is not of ours, or says nothing
                self._home.after = max(self._home.after, last_second(Place(run, worker_dir(name)).names()))

    def _rewind_others(self, step: int) -> None:
        """Rewind the other names of this rank, and missing ranks.

        A process without a rank is not the only one that may be called `main`, so nothing is hidden for it.
        """
        role, taken, spool = self._membership.role, self._membership.taken, self._membership.spool
        self._role = role
        if role.child is not None:
            return
        try:
            if role.rank is None:
                self._membership.tell_holder(resumes=True)
            elif taken is not None:
                tops = _top_names(spool)
                missing = _missing_ranks(tops, role.world) if role.rank == 0 and role.world is not None else ()
                for name in {*self._other_names(taken, tops), *missing} - {taken.name}:
                    with self._claimed(name) as claim:
                        if claim is not None:
                            self._hide_noted(name, claim, step)
                    if claim is None:
                        self._note(name, step, role)
        except ours(OSError) as error:
            logger.warning("%s: not all other directories are rewound: %s", spool.logdir, error)

    def _other_names(self, taken: Taken, tops: list[str]) -> Iterator[str]:
        """The other names of this rank; OSError if the disk does not tell."""
        yield taken.wanted
        number = 2  # names are taken in this order, and lock files stay
        spool = self._membership.spool
        while _is_there(spool.claim(name := f"{taken.substitute}~{number}")) or _is_there(Place(spool.run, name)):
            yield name
            number += 1
        start = f"{taken.substitute}~"  # of those that were pulled there is no lock file, and perhaps not all
        for name in tops:
            if name.startswith(start) and name[len(start) :].isdecimal():
                yield name

    @contextlib.contextmanager
    def _claimed(self, name: str) -> Iterator[int | None]:
        """The claim of a name, None if a process holds it."""
        claim = locks.try_exclusive(self._membership.spool.claim(name))
        try:
            yield claim
        finally:
            if claim is not None:
                locks.release(claim)

    def _hide_noted(self, name: str, claim: int, step: int | None = None) -> None:
        """Act on the note of a name that is held here, if it is still there; hide from `step` on in any case."""
        noted = _read_note(claim)
        steps = [one for one in (step, noted) if one is not None]
        if steps:
            self._hide(name, min(steps))
        if noted is not None:
            locks.check(claim)
            os.ftruncate(claim, 0)

    def _note(self, name: str, step: int, role: Role) -> None:
        """Leave a note for the time when the holder is gone."""
        spool = self._membership.spool
        holder = holders.find(spool, name)
        if holder is None or holder.started_at > self._membership.joined_at or holders.is_ancestor(holder):
            return
        if holders.is_sibling(holder, launcher_of(role)) or holders.is_of_other_task(holder):
            return
        _write_note(spool.claim(name), step)
        after = holders.find(spool, name)
        if after is None or after.name == holder.name:
            self._waiting.add(name)
        else:  # it may be of a newer attempt
            _write_note(spool.claim(name), None)

    def retry(self) -> None:
        """Rewind what was held and is free now; costs nothing where nothing waits. What the disk refuses waits on."""
        for name in sorted(self._waiting):
            with suppress(OSError), self._claimed(name) as claim:
                if claim is not None:
                    self._hide_noted(name, claim)
                    self._waiting.discard(name)

    def _hide(self, name: str, step: int) -> None:
        for directory in _directories(self._membership.spool, name):
            file = EventFile(_Elsewhere(directory, self._home))
            file.purge(step)
            file.ensure_open()
            is_written = file.is_open
            file.close()
            if is_written:
                continue
            if directory.name == worker_dir(name):  # the first one, so nothing is done twice
                raise OSError(f"{directory} cannot be rewound to step {step} yet")
            logger.warning("%s cannot be rewound to step %d: its steps from there on stay visible", directory, step)


def _is_there(place: Place) -> bool:
    """Whether something is there; OSError if the disk does not tell: on a mount that died every name would be taken."""
    try:
        place.stat()
    except ours(FileNotFoundError, NotADirectoryError):
        return False
    return True


def _read_note(claim: int) -> int | None:
    """The step of the note in the file of a claim that is held; None if there is none."""
    with suppress(OSError):  # the program may have closed the descriptor
        locks.check(claim)
        return _noted(claim)
    return None


def _noted(fd: int) -> int | None:
    """The step in a file, None without one. `int` is not asked: its error may replace what a signal handler raises."""
    text = os.pread(fd, NOTE_LENGTH, 0).strip()
    return int(text) if text.isdigit() else None


def _write_note(place: Place, step: int | None) -> None:
    """Leave a note in the file of a claim that another process holds; the lowest step stays. None removes it."""
    fd = disk.open_ours(place, os.O_RDWR)
    try:
        if step is None:
            os.ftruncate(fd, 0)
            return
        step = step if (noted := _noted(fd)) is None else min(step, noted)
        os.pwrite(fd, f"{step:020d}\n".encode(), 0)
    finally:
        os.close(fd)


def _to_come_back(spool: Spool) -> set[str]:
    """The directories of event files that are still to come back from the logdir: their steps are to be hidden, too."""
    return {os.path.dirname(path) for path in Listing.read(spool).still_missing(spool)}


def _top_names(spool: Spool) -> list[str]:
    """The names in the run directory, also of what is still to come back."""
    return sorted({*Place(spool.run).names(), *(path.partition("/")[0] for path in _to_come_back(spool))} - {""})


def _missing_ranks(tops: list[str], world: int) -> Iterator[str]:
    """The names of ranks that this world lacks."""
    for name in tops:
        rank = rank_of_directory(name)
        if rank is not None and rank >= world:
            yield name


def _directories(spool: Spool, name: str) -> list[Place]:
    """The directories of a name that hold event files, or will."""
    back = _to_come_back(spool)
    if name != MAIN_WORKER:
        is_of_it = lambda directory: f"{directory}/".startswith(f"{name}/")  # noqa: E731
        found = _event_directories(spool, name, is_of_it, is_event_file) | set(filter(is_of_it, back))
        return [spool.run / directory for directory in sorted(found)]
    others = {lock.removesuffix(".lock") for lock in spool.claim(MAIN_WORKER).parent.names()} | {SPOOL_NAME}
    is_of_main = lambda path: not path or _is_of_main(path.partition("/")[0], others)  # noqa: E731
    found = _event_directories(spool, "", is_of_main, is_ours) | set(filter(is_of_main, back))
    return [spool.run / directory for directory in sorted(found)]


def _event_directories(spool: Spool, top: str, has: Callable[[str], bool], counts: Callable[[str], bool]) -> set[str]:
    """The directories from `top` downwards that are of a name and hold event files, or below it those that count."""
    search = RunSearch(spool.run, None, time.monotonic() + SECONDS_OF_A_WAIT, top, has)
    paths = set(search)
    if search.left_out:  # others have put very much there
        members = Members(spool)
        members.all()
        paths |= members.named().files
    found = set()
    for path in paths:
        directory, _, basename = path.rpartition("/")
        if has(directory) and (is_event_file if directory == top else counts)(basename):
            found.add(directory)
    return found


def _is_of_main(name: str, others: Collection[str]) -> bool:
    """Whether a directory of the run directory belongs to no other name."""
    return name not in others and not is_reserved(name) and name[:5] != "proc_"


class _Elsewhere:
    """The home of event files outside of the worker directory."""

    def __init__(self, directory: Place, home: FileHome) -> None:
        self._directory = directory
        self.opened, self.sealed, self.after = home.opened, home.sealed, home.after
        self.segment_min, self.mark = home.segment_min, home.mark

    def directory(self) -> Place:
        """See `FileHome.directory`."""
        return self._directory
