"""A follower: what a run has in its bucket comes into a run directory while the run goes on.

    the repository --pull--> LOGDIR, then round after round:
    feed, or listing --> what the bucket has --`turns`--> one range of each file --`bucket`--> appended, whole records

A bucket that is not there is looked for again and again.

Invariants:
- One follower works in a run directory, and no other pull: it holds the locks of both.
- An event file here is a beginning of the bucket's that ends with a whole record, and grows in its place, as readers
  keep it open. One that a pull has brought and that the bucket's does not continue is fetched anew, beside it, and
  swapped; one that no pull has brought stays, and is named.
- Nothing here becomes shorter, whatever the bucket has.
- It makes at most half of the requests that the account has left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import math
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hf_mpwriter.base import names
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.events import framing
from hf_mpwriter.pull.bucket import PIECE, UnfitError, extend
from hf_mpwriter.pull.feed import Feed
from hf_mpwriter.pull.repository import (
    DIFFERS,
    FOLLOWED,
    IN_USE,
    LOCK,
    NO_BUCKET,
    PULLING,
    is_of_disk,
    is_wanted,
    locked,
    unfit,
)
from hf_mpwriter.pull.turns import Turns
from hf_mpwriter.push.classify import explained, status_of
from hf_mpwriter.push.client import Hub
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.pulled import note_pulled, pulled_files
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place

LIST_EVERY = 10.0  # seconds between two listings without a feed
LIST_AGAIN = 300.0  # the same with one
LIST_SOONEST = 1.0  # the same where the feed wants one
LONGEST_ROUND = 5.0  # seconds, then news are taken in
LONGEST_PAUSE = 10.0  # seconds after a failed request; the first one is a second
TICK = 1.0  # seconds between two looks at the clock

_WALL_TIME = struct.Struct("<d")


@dataclass
class Seen:
    """What a follower has seen and done."""

    has_bucket: bool = True  # as of the last look
    status: int = 0  # of HTTP, that says why there is none
    why: str = ""  # nothing came in the last round
    files: set[str] = field(default_factory=set)  # of which something came
    came: int = 0  # bytes
    at: float = field(default_factory=time.monotonic)  # when something came last, monotonic seconds
    lacks: int = 0  # bytes that the bucket has and that are not here
    step: int | None = None  # of the newest record that came
    wall_time: float = 0.0  # of it, unix time
    left: dict[str, str] = field(default_factory=dict)  # the reason, per file that cannot be had


@contextlib.contextmanager
def following(spool: Spool) -> Iterator[None]:
    """A block in which this process alone brings something into a run directory."""
    spool.create()
    if (fd := locks.try_exclusive(spool.directory / LOCK)) is None:
        raise HfMpWriterError(FOLLOWED.format(spool.run_dir))
    try:
        with locked(spool):  # a pull that goes on ends first; the next one sees the lock
            disk.remove_tree(spool.directory / PULLING)
        yield
    finally:
        locks.release(fd)


class Follower:
    """Brings what a bucket has of a run, in the block of `following`."""

    def __init__(
        self, spool: Spool, hub: Hub, bucket: str, destination: Destination, wanted: Callable[[str], bool]
    ) -> None:
        self._spool, self._hub, self._bucket, self._wanted = spool, hub, bucket, wanted
        self._below, self._place = destination.path(""), dataclasses.replace(destination, repo_id=bucket)
        self._turns, self.seen = Turns(), Seen()
        self._feed: Feed | None = None
        self._members = Members(spool)
        self._listed_at, self._wants_list = -math.inf, True
        self._rest_until, self._pause = 0.0, TICK
        self._anew = set[str]()  # files that are fetched anew
        self._ends = dict[str, int]()  # where the whole records of a file end that was read

    def rounds(self) -> Iterator[Seen]:
        """Round after round, what was seen; disk errors end it."""
        while True:
            self._hub.clock.give(math.inf)
            try:
                if self._is_list_due():
                    self._list()
                if self.seen.has_bucket and time.monotonic() >= self._rest_until:
                    self._read_on()
                    self._pause, self.seen.why = TICK, ""
            except Exception as error:
                if is_of_disk(error):
                    raise
                self._failed(error)
            self.seen.lacks = self._turns.lacks
            yield self.seen
            self._wait()

    def use(self, hub: Hub) -> None:
        """Go on by another client: all that was made before go by the newest one's clock."""
        self._hub = hub

    def close(self) -> None:
        """End what waits for the feed."""
        if self._feed is not None:
            self._feed.close()

    # what the bucket has

    def _is_list_due(self) -> bool:
        since = time.monotonic() - self._listed_at
        is_told = self._feed is not None and self._feed.is_up
        return since >= (LIST_SOONEST if self._wants_list else LIST_AGAIN if is_told else LIST_EVERY)

    def _list(self) -> None:
        self._listed_at = time.monotonic()
        try:
            found = self._hub.bucket_sizes(self._bucket, self._below.rstrip("/"))
        except Exception as error:
            self.seen.status = status_of(error) or 0
            self.seen.has_bucket = self.seen.status not in NO_BUCKET
            raise
        self.seen.has_bucket, self._wants_list = True, False
        self._turns.listed({path: size for path, size in found.items() if self._takes(path)})
        if self._feed is None:
            self._feed = Feed(self._hub, self._bucket)

    def _takes(self, path: str) -> bool:
        return names.is_event_file(os.path.basename(path)) and is_wanted(path, self._wanted)

    def _wait(self) -> None:
        """Wait for news, or until it is time to look again."""
        is_resting = time.monotonic() < self._rest_until
        timeout = TICK if is_resting or not self._turns.has_next else 0.0
        if self._feed is None or not self.seen.has_bucket:
            time.sleep(TICK)
            return
        changed, has_gap = self._feed.wait(timeout)
        own = {path.removeprefix(self._below): size for path, size in changed.items() if path.startswith(self._below)}
        self._turns.told({path: size for path, size in own.items() if self._takes(path)})
        self._wants_list = self._wants_list or has_gap

    def _failed(self, error: Exception) -> None:
        self.seen.why = explained(error, self._place, os.environ)[0].rstrip(".")
        self._rest_until = time.monotonic() + self._pause
        self._pause, self._wants_list = min(2 * self._pause, LONGEST_PAUSE), False

    # what comes

    def _read_on(self) -> None:
        """One range of each file that has grown, as long as this round lasts."""
        for path in self._turns.unknown():
            self._look(path)
        if not (paths := self._turns.turn()):
            return
        in_use = set(map(os.path.dirname, self._members.growing()))
        paths = [path for path in paths if os.path.dirname(path) not in in_use or self._leave(path, IN_USE)]
        ours = pulled_files(self._spool)
        note_pulled(self._spool, {path: 0 for path in paths if self._turns.is_new(path)})
        until = time.monotonic() + LONGEST_ROUND
        for path in paths:
            if time.monotonic() + self._hub.pause > until:
                self._rest_until = time.monotonic() + min(self._hub.pause, LONGEST_PAUSE)
                return
            time.sleep(self._hub.pause)
            self._turns.serve(path)
            try:
                self._read(path, is_pulled=path in ours or self._turns.is_new(path))
            except (PermissionError, UnfitError) as error:
                self._leave(path, str(error))

    def _leave(self, path: str, why: str) -> bool:
        """Give a file up, and say why; False."""
        self._turns.leave(path)
        self.seen.left[path] = why
        return False

    def _look(self, path: str) -> None:
        """See what is here of a file."""
        if why := unfit(self._spool, path):
            self._leave(path, why)
            return
        try:
            fd = disk.open_beneath(self._spool.run / path)
        except FileNotFoundError:
            self._turns.is_not_here(path)
        except OSError as error:
            if error.errno not in (*disk.NOT_REGULAR, errno.ENOTDIR) and not isinstance(error, PermissionError):
                raise
            self._leave(path, str(error))
        else:
            self._turns.came(path, os.fstat(fd).st_size)
            os.close(fd)

    def _read(self, path: str, *, is_pulled: bool) -> None:
        """Read on in a file."""
        if why := unfit(self._spool, path):  # since it was looked for
            self._leave(path, why)
            return
        place, before = self._spool.run / path, self._turns.here(path)
        scratch = self._spool.directory / PULLING / hashlib.sha256(os.fsencode(path)).hexdigest()
        is_anew, known = path in self._anew, self._ends.get(path, 0)
        length = self._extend(path, scratch if is_anew else place)
        if length is None and (is_anew or not is_pulled):
            self._leave(path, DIFFERS)
        elif length is None:
            self._anew.add(path)
            self._ends.pop(path, None)
        elif not is_anew or length > before:
            if is_anew:
                disk.move(scratch, place, "pull.file")
                self._anew.discard(path)
            elif not is_pulled:
                note_pulled(self._spool, {path: length})
            self._came(path, place, before, length)
        elif length <= known:  # the bucket has less than it told
            self._turns.came(path, before)

    def _extend(self, path: str, place: Place) -> int | None:
        """One range more of a file, at a place; where its whole records end then, None if it is another one there."""
        there, known = self._turns.there(path), self._ends.get(path, 0)
        disk.make_dirs(place.parent, disk.DIR_MODE if path in self._anew else 0o777)
        read = functools.partial(self._hub.read_bucket, self._bucket, self._below + path)
        end = extend(place, min(there, known + PIECE), read, known)
        if end is not None and end == known < there:  # one record is longer than a range
            end = extend(place, there, read, known)
        if end is not None:
            self._ends[path] = end
        return end

    def _came(self, path: str, place: Place, before: int, length: int) -> None:
        """Take in that more of a file is here."""
        self._turns.came(path, length)
        if length <= before:
            return
        self.seen.at = time.monotonic()
        self.seen.came += length - before
        self.seen.files.add(path)
        fd = disk.open_beneath(place)
        try:
            while before < length:
                found, end = framing.records(fd, before, length)
                if end == before:
                    break
                before = end
                for _, payload in reversed(found[-1:]):
                    self._newest(payload)
        finally:
            os.close(fd)

    def _newest(self, payload: bytes) -> None:
        """Take in the last of some records."""
        step = framing.step_of(payload)
        wall_time = _WALL_TIME.unpack_from(payload, 1)[0] if payload[:1] == b"\x09" and len(payload) > 8 else 0.0
        if step is not None and wall_time >= self.seen.wall_time:
            self.seen.step, self.seen.wall_time = step, wall_time
