"""Files: the event files that this process has open in one run directory, and what it has written there.

    writer --open--> EventFile --directory, opened, sealed--> WorkerFiles (its home) --> Membership

Writers with the same directory and suffix share an event file. A forked child keeps the event files that its writers
hold, and each of them opens a segment of the child's own at its next record.

Other directories that hold steps which this process repeats are rewound, see `rewind`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hf_mpwriter.base.names import worker_dir
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.events.boundary import Boundary
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.events.series import SEGMENT_MIN, sync_together
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.rewind import Rewind
from hf_mpwriter.worker.role import Attempt

FEW = 32  # segments of a worker, up to which they are small where a bucket follows them
SEGMENT_OF_ONE = 4 << 20  # bytes of the smallest segments, for each rank; at most SEGMENT_MIN
CHECKED_AT_ONCE = 100  # files of which one housekeeping sees whether they are there: each of 5,000 in 150 seconds


@dataclass
class _Past:
    """What is known of segments that are sealed, and of files that are forgotten."""

    sealed: dict[str, int] = field(default_factory=dict)  # bytes per path
    damaged: dict[str, int] = field(default_factory=dict)  # see `WorkerFiles.damaged`
    lost: int = 0  # records that were dropped
    told: int = 0  # of all that were, also of open files, those that were told


class WorkerFiles:
    """The event files of this process; their home."""

    def __init__(self, membership: Membership, limits: Limits, attempt: Attempt, timing: Timing = USUAL) -> None:
        self._membership, self._timing = membership, timing
        self.limits = limits  # shared by all event files of the process
        self.attempt = attempt
        self.after = 0  # second; the names of segments lie behind it
        self.rewind = Rewind(membership, self)  # of other directories
        self._files: dict[tuple[str, str], EventFile] = {}
        self._past = _Past()
        self._boundary, self._next_check = Boundary(lambda: membership.spool.logdir), 0

    def after_fork(self) -> None:
        """In the child: forget what is the parent's, but for its attempt."""
        self.attempt = self.attempt._replace(is_inherited=True)
        self._past = _Past()
        self.rewind.forget()
        for (sub, _), file in self._files.items():
            file.abandon()
            if (step := self.rewind.steps.get(sub)) is not None:
                file.purge(step, self._purge_unless)

    # the home of event files

    def directory(self) -> Place:
        """The worker directory; joins if necessary, OSError if that fails."""
        directory = self._membership.directory()
        self.rewind.catch_up()
        return directory

    def shown(self, sub: str) -> str:
        """The path or URL of a directory below the worker directory as the user knows it; joins if necessary."""
        return os.path.join(self._membership.spool.logdir, self.directory().name, sub).rstrip("/")

    def opened(self, path: Place) -> None:
        """Record a segment that is about to be created."""
        self._membership.record_opened(path.name)

    def sealed(self, path: Place, length: int) -> None:
        """Record a segment that is complete."""
        if length:
            self._past.sealed[path.name] = length
        self._membership.record_sealed(path.name)

    @property
    def segment_min(self) -> int:
        """Bytes that the smallest segments have.

        Each push reads the open segment from its start, so small ones cost less to upload. TensorBoard's default reader
        keeps a descriptor for each file of a run, so where many ranks write, segments are larger. A round of a live
        bucket reads the open one, too, every few seconds.
        """
        role = self._membership.role
        if self._membership.settings.live and len(self._past.sealed) < FEW:
            return SEGMENT_OF_ONE
        ranks = 1 if role.rank is None else role.world
        return SEGMENT_MIN if ranks is None or role.child is not None else min(SEGMENT_MIN, ranks * SEGMENT_OF_ONE)

    # for writers

    def open(self, sub: str, suffix: str, purge_step: int | None) -> EventFile:
        """The event file of a directory; writers with the same suffix share it."""
        file = self._files.get((sub, suffix))
        if file is None:
            made = EventFile(self, sub, suffix, self.limits, timing=self._timing)
            file = self._files.setdefault((sub, suffix), made)
        if purge_step is not None:
            self.rewind.steps[sub] = purge_step
            with self._boundary:
                file.purge(purge_step, self._purge_unless)
                if any(other.is_open for (where, _), other in list(self._files.items()) if where == sub):
                    file.ensure_open()  # now: what goes into the other file from here on is not to be hidden
        return file

    @property
    def mark(self) -> str:
        """In the first record of each segment: of this attempt."""
        return self.attempt.mark

    @property
    def _purge_unless(self) -> str:
        """The mark of files that hold what this attempt has logged, which another process of it does not hide."""
        return self.attempt.mark if self.attempt.is_inherited else ""

    def finish(self, sub: str, suffix: str, *, forget: bool) -> None:
        """Seal the event file of a directory in which nothing more is expected."""
        file = self._files.get((sub, suffix))
        if file is not None:
            file.close()
            if forget and not file.waiting:
                self._past.lost += file.dropped
                self._past.damaged |= _by_name(file)
                self._files.pop((sub, suffix), None)

    def segments(self, sub: str) -> list[Place]:
        """The event files that this process has written in a directory, in order."""
        directory = self.directory() / sub
        paths = sorted(path for path in self.written() if os.path.dirname(path) == directory.name)
        return [Place(directory.directory, path) for path in paths]

    def last_step(self, tag: str | None, *, only_scalars: bool) -> int | None:
        """The step of the last record in the worker directory that no purge hides, see `events/last_step`."""
        from hf_mpwriter.events.last_step import last_step  # most trainings never ask

        directory = self.own_directory()
        lengths = {Place(directory.directory, path): length for path, length in self.written().items()}
        own = {place.basename: length for place, length in lengths.items() if place.parent == directory}
        return last_step(directory, tag, own, self.pending_purge(), only_scalars=only_scalars)

    def own_directory(self) -> Place:
        """The worker directory; a process that has left does not join for this."""
        name = self._membership.name
        return Place(self._membership.spool.run, worker_dir(name)) if name else self.directory()

    def pending_purge(self) -> int | None:
        """The step from which on the next segment of the worker directory hides what is there."""
        directory = self.own_directory()
        purges = (file.pending_purge(directory) for (sub, _), file in list(self._files.items()) if not sub)
        return min((step for step in purges if step is not None), default=None)

    # for the worker

    def written(self) -> dict[str, int]:
        """Bytes of all event files that this process has written, per path, whatever the patterns."""
        opened = {file.place.name: file.length for file in self._all() if file.is_open and file.place}
        return {**self._past.sealed, **opened}  # in this order: another thread may seal one meanwhile

    def _all(self) -> list[EventFile]:
        return list(self._files.values())

    @property
    def are_open(self) -> bool:
        """Whether a segment is open."""
        return any(file.is_open for file in self._all())

    @property
    def have_work(self) -> bool:
        """Whether a segment is open or a record waits."""
        return any(file.is_open or file.waiting for file in self._all())

    @property
    def dropped(self) -> int:
        """Records that the disk refused for good."""
        return self._past.lost + sum(file.dropped for file in self._all())

    @property
    def damaged(self) -> dict[str, int]:
        """Bytes to upload that this process wrote to each file that holds less now, per path."""
        found = dict(self._past.damaged)
        for file in self._all():
            found |= _by_name(file)
        return {path: length for path, length in found.items() if self._membership.settings.allows(path)}

    @property
    def in_memory(self) -> int:
        """Records that wait in memory because the disk refuses them."""
        return 0 if self.limits.is_calm else sum(file.waiting for file in self._all())

    @property
    def disk_error(self) -> str:
        """Why the disk refuses records, "" while it accepts them."""
        return next((file.error for file in self._all() if file.error), "")

    @property
    def why_dropped(self) -> str:
        """Why the disk refused records last, "" if it did not."""
        return next((file.last_error for file in self._all() if file.last_error), "")

    def count_lost(self, count: int) -> None:
        """Count data that is not in records and that the disk refused."""
        self._past.lost += count

    def check(self) -> None:
        """See that the files are where they were, and try again what the disk refused."""
        self._each(EventFile.check)

    def check_in_turn(self) -> None:
        """As `check`, but of thousands of files only those that matter now, and the next CHECKED_AT_ONCE of all.

        What matters is an open descriptor, and a record that waits. Of a file that rests and was deleted nothing can
        be saved, and its next record finds out.
        """
        files, first = self._all(), self._next_check
        self._next_check = first + CHECKED_AT_ONCE if first + CHECKED_AT_ONCE < len(files) else 0
        now = set(self.limits.awake())
        waiting = () if self.limits.is_calm else (file for file in files if file.waiting)
        now.update(waiting, files[first : first + CHECKED_AT_ONCE])
        self._each(EventFile.check, [file for file in files if file in now])

    def flush(self) -> None:
        """Make everything logged so far survive a power cut."""
        self._sync_many()
        self._each(EventFile.flush)

    def _sync_many(self) -> None:
        """Sync many files at once; what that leaves, each does by itself."""
        with self._boundary:
            sync_together([file.segments for file in self._all()], Place(self._membership.spool.run))

    def seal_older(self, opened_before: float = math.inf) -> None:
        """Seal the segments that hold records and were opened before then (monotonic seconds)."""
        self._each(lambda file: file.seal_older(opened_before))

    def close(self) -> None:
        """Seal all files; a record opens the next segment."""
        with self._boundary:
            self.rewind.retry()
        self._sync_many()
        self._each(EventFile.close)

    def _each(self, step: Callable[[EventFile], object], files: Iterable[EventFile] | None = None) -> None:
        """Do a step with each file, or with some; one that fails never keeps the others from theirs."""
        for file in self._all() if files is None else files:
            try:
                step(file)
            except ours(Exception) as error:
                self._boundary.tell(error, file.path)

    def give_up(self) -> None:
        """Drop and count what the disk has refused until now, and tell how much that is."""
        why = self.disk_error
        for file in self._all():
            file.give_up()
        lost, self._past.told = self.dropped - self._past.told, max(self.dropped, self._past.told)
        if lost > 0:
            text = "%s: %d records were lost, the disk refused them%s"
            logger.warning(text, self._membership.spool.logdir, lost, f" ({why})" if why else "")

    def register_again(self) -> None:
        """Record the open segments in a new member file; OSError if the disk refuses."""
        for file in self._all():
            file.register_again()


def _by_name(file: EventFile) -> dict[str, int]:
    return {place.name: length for place, length in file.damaged.items()}
