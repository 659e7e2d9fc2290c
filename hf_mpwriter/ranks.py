"""Ranks: what all ranks of a run log, as one more run of their mean, bounds and slowest rank; `hf-mpwriter ranks`.

    runs/exp1/events.out...                     rank 0      --Inputs-->  values by rank, tag and step
    runs/exp1/rank_00003/, rank_00003~2/        rank 3      --Aligner->  points of the steps that are settled
    runs/exp1/_all_ranks/events.out...                      <-Derived--  loss/mean, loss/min, loss/max
    runs/exp1/_all_ranks/<host>/events.out...   where each host has a run directory, or an uploader, of its own

A step of a tag is settled when every rank that may still log it has logged that tag at this step or a later one:

    has data that was not read yet    holds all steps of a tag beyond its last one
    lives, and has logged the tag     the same, for HELD seconds
    lives, and has not logged it      all steps of the tag, until NEW seconds after the tag or the rank was seen first
    joins                             all steps of all tags, for `Timing.ranks_joining`
    is dead                           nothing

Invariants:
- Each process computes all from scratch, into a new file. That begins with START below any step, twice: it hides what
  earlier ones have derived, here and on the Hub, where nothing is ever removed. TensorBoard's default reader does not
  know START; it drops what an earlier file has of a tag from the first step of the new one on.
- The file only grows. A member file says that it does, as for that of a worker, so an uploader need not know the rest.
- Of a tag, steps are settled in order, each once. What comes later for a settled step is dropped: TensorBoard's default
  reader would delete all later points.
- What a later START of the same directory hides is never taken. So START is looked for first, at the beginning of each
  new file; where one that comes later hides what was taken, all is derived anew.
- A file is read up to its last whole record. Behind damage nothing is read, as no reader of TensorBoard gets there.
- Only event files of this library are read, and none of a directory below: not those of `add_scalars`, of children, of
  `_system/`, nor what is derived.
- At most MOST values wait. Beyond that, the older half of the steps of each tag is settled as it is.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from hf_mpwriter.base import names
from hf_mpwriter.base.job import host_directory, nodes_of
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.events import framing
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.events.series import SEGMENT_MIN, Purge, SegmentSeries
from hf_mpwriter.snapshot.search import PATHS, other_run_above
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import Listing
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.spool.workers.members import DERIVER, MemberFile, MemberFiles, Members
from hf_mpwriter.spool.workers.peers import is_apart, seen_from_here
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Directory, Place
from hf_mpwriter.system.filesystem import mount_of_descriptor
from hf_mpwriter.system.process import Process, host_id, host_name

HELD = 600.0  # seconds for which a rank that lives, and does not log a tag any more, holds a step of it
NEW = 60.0  # seconds in which a tag that one rank logs may come from the others, too
MOST = 400_000  # values that wait, about a hundred bytes each
PART = 1.0  # seconds that are read before what is complete is written
HEAD = 512  # bytes at the beginning of a file in which START is looked for
CHUNK = 64 << 10  # bytes that are read of one file at once
BEFORE, NEVER = -(1 << 63) - 1, 1 << 64  # below and above any step

_RANK = re.compile(r"rank_(?P<rank>\d{5})(?:~\d+)?")
_TIME = r"(?:time|duration|latency|seconds|second|secs|sec|milliseconds|ms)"
_STEP = r"(?:step|iteration|iter|batch)"
_STEP_TIME = re.compile(  # step_time, iteration_seconds, batch_duration_ms, time_per_step, but not steps_per_second
    rf"(?:^|[^a-z]|train){_STEP}[ _.-]?{_TIME}s?(?![a-z])|(?:^|[^a-z])(?:{_TIME}|s)[ _.-]?per[ _.-]?{_STEP}(?![a-z])",
    re.IGNORECASE,
)
_START = 1  # status of a SessionLog
_SCHEMA = """
syntax: "proto3" name: "ranks.proto"
message_type { name: "Event"
  field { name: "wall_time" number: 1 type: TYPE_DOUBLE }
  field { name: "step" number: 2 type: TYPE_INT64 }
  field { name: "summary" number: 5 type: TYPE_MESSAGE type_name: ".Summary" }
  field { name: "session_log" number: 7 type: TYPE_MESSAGE type_name: ".SessionLog" } }
message_type { name: "SessionLog" field { name: "status" number: 1 type: TYPE_INT32 } }
message_type { name: "Summary"
  field { name: "value" number: 1 type: TYPE_MESSAGE type_name: ".Value" label: LABEL_REPEATED } }
message_type { name: "Value" oneof_decl { name: "kind" }
  field { name: "tag" number: 1 type: TYPE_STRING }
  field { name: "simple_value" number: 2 type: TYPE_FLOAT oneof_index: 0 } }
"""


def _event_class() -> Any:
    """The protobuf class of what is read of an event. That of tensorboardX would import torch, for 200 MiB."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Event"))


Event = _event_class()


class Point(NamedTuple):
    """What is derived of a tag at a step."""

    step: int  # global step
    wall_time: float  # unix time, the latest one among the ranks
    values: dict[str, float]  # per derived tag


@functools.lru_cache(1 << 12)
def is_step_time(tag: str) -> bool:
    """Whether a tag is the time of a step, by its last part: then the slowest rank is the one with the greatest."""
    return _STEP_TIME.search(tag.rsplit("/", 1)[-1]) is not None


def combine(tag: str, by_rank: Mapping[int, float]) -> dict[str, float]:
    """The derived tags of a tag; mean and bounds are NaN if the value of one rank is."""
    values = by_rank.values()
    try:
        mean = math.fsum(values) / len(values)  # exact: the order of the ranks does not matter
    except ValueError:  # both infinities
        mean = math.nan
    least, greatest = (math.nan, math.nan) if any(map(math.isnan, values)) else (min(values), max(values))
    found = {f"{tag}/mean": mean, f"{tag}/min": least, f"{tag}/max": greatest}
    if is_step_time(tag):
        numbers = {rank: value for rank, value in by_rank.items() if not math.isnan(value)}
        found[f"{tag}/slowest_rank"] = min(numbers, key=lambda rank: (-numbers[rank], rank), default=-1)
    return found


@dataclass(slots=True)
class _Step:
    """What the ranks have logged at a step of a tag."""

    since: float  # monotonic seconds when its first value was read
    wall_time: float = 0.0  # the latest one
    by_rank: dict[int, float] = field(default_factory=dict)  # the last value of each


@dataclass
class _Tag:
    """A tag as the ranks log it."""

    since: float  # monotonic seconds when it was seen first
    settled: int = BEFORE  # the last step that is settled
    last: dict[int, int] = field(default_factory=dict)  # step of each rank, since that was seen first
    pending: dict[int, _Step] = field(default_factory=dict)


class Aligner:
    """The values of all ranks; `new`, `joining`: seconds in which a rank may log a tag that is new to it, or join."""

    def __init__(self, new: float, joining: float) -> None:
        self._new, self._joining = new, joining
        self.waiting, self.highest = 0, BEFORE  # values that wait; the highest step that was taken
        self._now, self._last_joined = 0.0, -math.inf
        self._tags: dict[str, _Tag] = {}
        self._joined: dict[int, float] = {}

    def begin(self, now: float, live: Collection[int]) -> None:
        """Take note of the time, in monotonic seconds, and of who lives, before what is read then is taken."""
        self._now = now
        for rank in set(live) - self._joined.keys():
            self._last_joined = now
            for tag in self._tags.values():
                tag.last.pop(rank, None)
        self._joined = {rank: self._joined.get(rank, now) for rank in live}

    def take(self, rank: int, event: Any) -> None:
        """Take in what a rank has logged."""
        step = event.step
        self.highest = max(self.highest, step)
        for value in event.summary.value:
            if not (value.tag and value.HasField("simple_value")):
                continue
            tag = self._tags.get(value.tag) or self._tags.setdefault(value.tag, _Tag(self._now))
            tag.last[rank] = max(step, tag.last.get(rank, BEFORE))
            if step <= tag.settled:
                continue
            there = tag.pending.get(step) or tag.pending.setdefault(step, _Step(self._now))
            self.waiting += rank not in there.by_rank
            there.by_rank[rank] = value.simple_value
            there.wall_time = max(there.wall_time, event.wall_time)

    def settle(self, live: Collection[int], unread: Collection[int], *, is_over: bool = False) -> list[Point]:
        """The points that are complete, in the order of their steps; all of them if nothing more comes."""
        points = list[Point]()
        if is_over or self._now - self._last_joined >= self._joining:
            for name, tag in self._tags.items():
                points += self._settle(name, tag, math.inf if is_over else self._bound(tag, live, unread))
        if self.waiting > MOST:
            for name, tag in self._tags.items():
                steps = sorted(tag.pending) or [BEFORE]
                points += self._settle(name, tag, steps[len(steps) // 2])
        return sorted(points, key=lambda point: point.step)

    def _bound(self, tag: _Tag, live: Collection[int], unread: Collection[int]) -> float:
        """The last step of a tag that no rank holds."""
        held, bound = math.inf, min((tag.last.get(rank, BEFORE) for rank in unread), default=math.inf)
        for rank in live:
            if rank in tag.last:
                held = min(held, tag.last[rank])
            elif self._now - max(tag.since, self._joined[rank]) < self._new:
                return BEFORE
        overdue = (step for step, there in tag.pending.items() if self._now - there.since >= HELD)
        return min(bound, max(held, max(overdue, default=BEFORE)))

    def _settle(self, name: str, tag: _Tag, bound: float) -> Iterator[Point]:
        """Settle all steps of a tag up to this one."""
        for step in sorted(step for step in tag.pending if step <= bound):
            there, tag.settled = tag.pending.pop(step), step
            self.waiting -= len(there.by_rank)
            if len(there.by_rank) > 1:
                yield Point(step, there.wall_time, combine(name, there.by_rank))


@dataclass(slots=True)
class _File:
    """An event file of a rank."""

    rank: int
    path: str
    size: int = 0
    offset: int = 0  # up to where it was read
    torn: int = 0  # its size when nothing more could be read of it
    highest: int = BEFORE  # step that was read
    hidden_from: int = NEVER  # step from which later files hide it
    starts: dict[int, int] = field(default_factory=dict)  # steps of its START records by their offset

    @property
    def has_more(self) -> bool:
        """Whether there is something to read."""
        return self.size > max(self.offset, self.torn)

    def bound(self, at: int) -> int:
        """The step from which what begins at an offset is hidden."""
        return min([self.hidden_from, *(step for start, step in self.starts.items() if start > at)])


class Inputs:
    """The event files of the ranks of a run, or of those that one host has written."""

    def __init__(self, run: Directory, host: str = "") -> None:
        self._run, self._host = run, host
        self._files: dict[str, _File] = {}
        self.starts: list[int] = []  # steps of START records that were met, and not asked for yet

    def look(self) -> None:
        """See which files there are, and how long they are."""
        found = list[_File]()
        directories, listed, _ = Place(self._run).scan(most=PATHS, keep=_counts)
        ranks = sorted((rank, name) for name in directories if (rank := rank_of(name)) is not None)
        if ranks:  # else there is nothing to compare
            found += self._look_in(Place(self._run), 0, "", listed)
        for rank, name in ranks:
            with contextlib.suppress(FileNotFoundError), Place(self._run, name).entered() as directory:
                listed = directory.scan(most=PATHS, keep=names.is_ours)[1]
                if not other_run_above(self._run, name):
                    found += self._look_in(directory, rank, f"{name}/", listed)
        self._files = {file.path: file for file in found}

    def _look_in(self, directory: Place, rank: int, prefix: str, listed: list[str]) -> Iterator[_File]:
        """The files of a directory, the newest first."""
        hidden_from = NEVER
        for name in sorted(filter(names.is_ours, listed), reverse=True):
            if self._host not in ("", names.event_host(name)):
                continue
            file = self._files.get(prefix + name) or _File(rank, prefix + name)
            try:
                file.size = (directory / name).stat().st_size
                if file.path not in self._files:
                    head, end = _records(directory / name, 0, min(file.size, HEAD), HEAD)
                    if not end:  # it has no whole record yet
                        continue
                    self._note_starts(file, head)
            except OSError as error:
                if isinstance(error, FileNotFoundError) or error.errno in disk.NOT_REGULAR:
                    continue
                raise
            file.hidden_from = hidden_from
            hidden_from = min([hidden_from, *file.starts.values()])
            yield file

    def _note_starts(self, file: _File, records: list[tuple[int, Any]]) -> None:
        new = {at: event.step for at, event in records if event.session_log.status == _START and at not in file.starts}
        file.starts |= new
        self.starts += new.values()

    @property
    def unread(self) -> set[int]:
        """The ranks with data that was not read yet."""
        return {file.rank for file in self._files.values() if file.has_more}

    def restart(self) -> None:
        """Read all files again."""
        for file in self._files.values():
            file.offset, file.torn, file.highest = 0, 0, BEFORE

    def read(self) -> Iterator[tuple[int, list[Any]]]:
        """Read until nothing is left, always on of the rank that is furthest behind: its events that no START hides."""
        queues: dict[int, list[_File]] = {}  # of each rank, the oldest file last: what is read last came last
        for file in sorted(self._files.values(), key=lambda file: os.path.basename(file.path), reverse=True):
            if file.has_more:
                queues.setdefault(file.rank, []).append(file)
        while queues:
            rank = min(queues, key=lambda rank: queues[rank][-1].highest)
            file = queues[rank][-1]
            yield rank, self._read_part(file)
            if not file.has_more:
                queues[rank].pop()
                if not queues[rank]:
                    del queues[rank]

    def _read_part(self, file: _File) -> list[Any]:
        """Read the next part of a file."""
        found, end = list[tuple[int, Any]](), file.offset
        with contextlib.suppress(FileNotFoundError):  # removed since it was listed
            found, end = _records(Place(self._run, file.path), file.offset, file.size, CHUNK)
        if end == file.offset:
            file.torn = file.size
        file.offset = end
        self._note_starts(file, found)
        events = [event for at, event in found if event.step < file.bound(at)]
        file.highest = max([file.highest, *(event.step for event in events)])
        return events


def _counts(name: str) -> bool:
    """Whether a name in the run directory is one of a rank's directory or of an event file of ours."""
    return names.is_ours(name) or rank_of(name) is not None


def rank_of(worker: str) -> int | None:
    """The rank of a worker by its name, None if it has none."""
    match = _RANK.fullmatch(worker)
    return int(match["rank"]) if match else 0 if worker == names.MAIN_WORKER else None


def _records(place: Place, start: int, end: int, size: int) -> tuple[list[tuple[int, Any]], int]:
    """The next events of a file with their offsets, and where the one behind them begins."""
    fd = disk.open_beneath(place)
    try:
        payloads, end = framing.records(fd, start, end, size)
    finally:
        os.close(fd)
    found = list[tuple[int, Any]]()
    for at, payload in payloads:
        with contextlib.suppress(DecodeError):  # it is not an event
            found.append((at, Event.FromString(payload)))
    return found, end


class Derived:
    """The derived event file, and the member file by which others know that it grows."""

    segment_min, mark = SEGMENT_MIN, ""

    def __init__(self, spool: Spool, folder: str, settings: Settings) -> None:
        self.folder, self.points, self.after = folder, 0, Listing.read(spool).last
        self._place, self._is_sent = Place(spool.run, folder), spool.has_destination()
        self._member = MemberFiles(functools.partial(MemberFile, spool, DERIVER, Process.current(), settings))
        self._series = SegmentSeries(self, "", "", logger)
        self._series.purge = Purge(BEFORE + 1)

    def directory(self) -> Place:
        """The directory of the derived run."""
        return self._place

    def opened(self, path: Place) -> None:
        """Record a segment that is about to be created."""
        self._member.opened(path.name)

    def sealed(self, path: Place, length: int) -> None:  # noqa: ARG002 - as all homes of event files have it
        """Record a segment that is complete."""
        self._member.sealed(path.name)

    def append(self, points: Iterable[Point]) -> None:
        """Append points, in the order of their steps; OSError if the disk refuses."""
        self._series.replace_removed()
        for point in points:
            self.points += 1
            scalars = framing.scalars(point.values.items())
            self._series.write((framing.frame(framing.summary_event(point.wall_time, point.step, scalars)),))

    def close(self) -> None:
        """Seal the file, and leave the run."""
        with contextlib.suppress(OSError):
            self._series.sync()
        self._series.close()
        (self._member.leave(0) if self._is_sent else self._member.withdraw())


class Following:
    """The derived run of one process; `host`: whose event files count, "" for all; for the rest see `Aligner`."""

    def __init__(self, spool: Spool, folder: str, host: str, settings: Settings, new: float, joining: float) -> None:
        self._spool, self._settings, self._new, self._joining = spool, settings, new, joining
        self.folder, self._inputs = folder, Inputs(spool.run, host)
        self._begin()

    def _begin(self) -> None:
        self.derived = Derived(self._spool, self.folder, self._settings)
        self._aligner = Aligner(self._new, self._joining)
        self._outdated_at = math.inf  # monotonic seconds; since then a START hides what was taken

    def fail(self) -> None:
        """Derive all anew at the next step: some of it is not on disk."""
        self._outdated_at = -math.inf

    def step(self, now: float, live: Collection[int], *, is_over: bool) -> bool:
        """Take in what is new, for PART seconds; whether all was taken in."""
        until = time.monotonic() + PART
        self._aligner.begin(now, live)
        self._inputs.look()
        self._note_starts(now)
        for rank, events in self._inputs.read():
            self._note_starts(now)
            for event in events:
                self._aligner.take(rank, event)
            if time.monotonic() >= until or self._aligner.waiting >= MOST // 2:
                break
        if self._outdated_at < math.inf:
            if now - self._outdated_at < self._joining and not is_over:  # other ranks may write their START soon
                return True
            self.derived.close()
            self._inputs.restart()
            self._begin()
            return False
        unread = self._inputs.unread
        self.derived.append(self._aligner.settle(live, unread, is_over=is_over and not unread))
        return not unread

    def _note_starts(self, now: float) -> None:
        """See whether a START is new that hides what was taken; what it hides of the rest is not taken."""
        if min(self._inputs.starts, default=NEVER) <= self._aligner.highest:
            self._outdated_at = min(self._outdated_at, now)
        self._inputs.starts.clear()


def derive(spool: Spool, settings: Settings, *, follow: bool, timing: Timing = USUAL) -> Derived | None:
    """Derive what all ranks have logged, with `follow` until no worker lives; None if another process does that."""
    if (lock := locks.try_exclusive(spool.directory / "ranks.lock")) is None:
        return None
    members, following = Members(spool), None
    new, joining = (NEW, timing.ranks_joining) if follow else (0.0, 0.0)
    try:
        while True:
            there = members.all()
            folder, host = _folder(spool, there)
            if following is None or following.folder != folder:
                if following is not None:
                    following.derived.close()
                newest = max(there, key=lambda member: member.started_at, default=None)
                settings = newest.settings if newest else settings
                following = Following(spool, folder, host, settings, new, joining)
            ranks = {rank for one in there if one.alive and (rank := rank_of(one.name.worker)) is not None}
            is_over = not _any_works(there)
            try:
                is_done = following.step(time.monotonic(), ranks, is_over=is_over)
            except OSError:  # what the disk refuses now is derived anew
                if not follow:
                    raise
                following.fail()
                time.sleep(timing.ranks_look_every)
                continue
            if is_done and (is_over or not follow):
                return following.derived
            until = time.monotonic() + timing.ranks_look_every * is_done
            while time.monotonic() < until and _any_works(members.all()):
                time.sleep(timing.ranks_tick)
    finally:
        if following is not None:
            following.derived.close()
        locks.release(lock)


def _any_works(members: Iterable[Member]) -> bool:
    return any(member.alive and names.is_worker(member.name.worker) for member in members)


def _folder(spool: Spool, members: Iterable[Member], environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """The folder of the derived run, and the host whose event files it is of; "" for all."""
    if nodes_of(environ).count > 1:
        hosts = {host_id(), *spool.host_ids(), *(member.name.host for member in members)}
        mount = mount_of_descriptor(spool.run.fd)
        is_own = is_apart(spool) or (len(hosts) == 1 and mount is not None and mount.is_local)
        if seen_from_here(spool) or is_own:
            return f"{names.VIEW_DIRECTORY}/{host_directory(environ)}", host_name()
    return names.VIEW_DIRECTORY, ""
