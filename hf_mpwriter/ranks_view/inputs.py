"""Inputs: the event files of the ranks, read from where they were left.

    runs/exp1/events.out...                  rank 0
    runs/exp1/rank_00003/events.out...       rank 3; also rank_00003~2, where it was while another process had the name

    look   which files there are, how long they are, which START records are new
    read   what is new of them, the rank that is furthest behind first

Invariants:
- What a later START of the same directory hides is never taken. So START records are looked for first, at the beginning
  of each new file, where this library writes them; one that comes later in a file is reported when it is read.
- The files of a rank are read one after another, the oldest first: what is not read yet of a rank is what came last.
- A file is read up to its last whole record. Behind damage nothing is read, as no reader of TensorBoard gets there.
- Only event files of this library are read, and none of a directory below: not those of `add_scalars`, of children, of
  `_system/`, nor what is derived.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
from collections.abc import Callable, Iterator, Mapping

from hf_mpwriter.base import names
from hf_mpwriter.ranks_view.aligning import BEFORE
from hf_mpwriter.ranks_view.decoding import Decoder
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place

HEAD = 512  # bytes at the beginning of a file in which START is looked for
CHUNKS = 4 << 20  # bytes that are read of all files together before the next step of one of them
LEAST_CHUNK, MOST_CHUNK = 8 << 10, 64 << 10  # bytes that are read of one file at once
SKIPPED = 1 << 20  # bytes of a record that is passed over unread: an image, a histogram
NEVER = 1 << 64  # above any step

_RANK = re.compile(r"rank_(?P<rank>\d{5})(?:~\d+)?")
Take = Callable[[int, int, float, tuple[str, ...], tuple[float, ...]], object]


def rank_of(worker: str) -> int | None:
    """The rank of a worker by its name, None if it is none."""
    if worker == names.MAIN_WORKER:
        return 0
    match = _RANK.fullmatch(worker)
    return int(match["rank"]) if match else None


class _File:
    """An event file of a rank."""

    __slots__ = ("hidden_from", "highest", "offset", "path", "rank", "size", "starts", "torn")

    def __init__(self, rank: int, path: str, offset: int) -> None:
        self.rank, self.path, self.offset = rank, path, offset
        self.size = self.torn = 0
        self.starts: dict[int, int] = {}  # steps of its START records by their offset
        self.hidden_from, self.highest = NEVER, BEFORE

    @property
    def has_more(self) -> bool:
        """Whether there is something to read."""
        return self.size > max(self.offset, self.torn)

    def hides_from(self, offset: int) -> int:
        """The step from which on a record at an offset is hidden."""
        return min([self.hidden_from, *(step for at, step in self.starts.items() if at > offset)])


class Inputs:
    """The event files of the ranks of a run."""

    def __init__(
        self,
        run: Directory,
        host: str = "",
        offsets: Mapping[str, int] | None = None,
        is_known: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._run, self._host, self._is_known = run, host, is_known
        self._from = dict(offsets or {})
        self._files: dict[str, _File] = {}
        self._decoder = Decoder()

    # what there is

    def look(self) -> list[int]:
        """See which files there are; the steps of START records that are new."""
        found, news = dict[str, _File](), list[int]()
        directories, files, _ = Place(self._run).scan()
        ranks = [
            (rank, name) for name in directories if (rank := rank_of(name)) is not None and name != names.MAIN_WORKER
        ]
        if not ranks:
            self._files = {}
            return news
        found.update(self._look_in(Place(self._run), 0, "", files, news))
        for rank, name in sorted(ranks):
            with contextlib.suppress(FileNotFoundError), Place(self._run, name).entered() as directory:
                found.update(self._look_in(directory, rank, f"{name}/", directory.names(), news))
        self._files, self._is_known = found, lambda _: False
        return news

    def _look_in(
        self, directory: Place, rank: int, prefix: str, listed: list[str], news: list[int]
    ) -> Iterator[tuple[str, _File]]:
        """The files of a directory, the newest first; what is new of START goes to `news`."""
        hidden_from = NEVER
        for name in sorted(listed, reverse=True):
            if not names.is_ours(name) or (self._host and names.event_host(name) != self._host):
                continue
            path = prefix + name
            file = self._files.get(path)
            try:
                size = (directory / name).stat().st_size
                if file is None:
                    file = self._file(directory / name, rank, path, size, news)
            except OSError as error:
                if isinstance(error, FileNotFoundError) or error.errno in disk.NOT_REGULAR:
                    continue
                raise
            if file is not None:
                file.size, file.hidden_from = size, hidden_from
                hidden_from = min([hidden_from, *file.starts.values()])
                yield path, file

    def _file(self, place: Place, rank: int, path: str, size: int, news: list[int]) -> _File | None:
        """A file that is new here, None as long as it has no whole record."""
        if not size:
            return None
        head = self._decoder.read(_bytes(place, 0, HEAD))
        if not head.end:
            return None
        file = _File(rank, path, self._from.get(path, 0))
        for row in head.rows:
            if row.tags is None:
                file.starts[row.start] = row.step
        if path not in self._from and not self._is_known(path):
            news += file.starts.values()
        return file

    @property
    def unread(self) -> set[int]:
        """The ranks with data that was not read yet."""
        return {file.rank for file in self._files.values() if file.has_more}

    @property
    def offsets(self) -> dict[str, int]:
        """Up to where each file was read."""
        return {path: file.offset for path, file in self._files.items()}

    def restart(self, offsets: Mapping[str, int]) -> None:
        """Read again from these offsets, a file that is not named from its beginning."""
        self._from = dict(offsets)
        for path, file in self._files.items():
            file.offset, file.torn, file.highest = offsets.get(path, 0), 0, BEFORE

    # what they hold

    def read(self, take: Take, may_go_on: Callable[[], bool]) -> list[int]:
        """Read what is new, until nothing is left, `may_go_on` returns False, or a START is met that was not known.

        The steps of START records that were not known.
        """
        queues = self._queues()
        waiting = [(queue[-1].highest, rank) for rank, queue in queues.items()]
        heapq.heapify(waiting)
        size = min(MOST_CHUNK, max(LEAST_CHUNK, CHUNKS // max(1, len(self._files))))
        while waiting:
            _, rank = heapq.heappop(waiting)
            queue = queues[rank]
            if starts := self._read_chunk(queue[-1], size, take):
                return starts
            if not queue[-1].has_more:
                queue.pop()
            if queue:
                heapq.heappush(waiting, (queue[-1].highest, rank))
            if not may_go_on():
                break
        return []

    def _queues(self) -> dict[int, list[_File]]:
        """What is to be read of each rank, the oldest file last."""
        queues: dict[int, list[_File]] = {}
        for path in sorted(self._files, key=lambda path: path.rpartition("/")[2], reverse=True):
            if (file := self._files[path]).has_more:
                queues.setdefault(file.rank, []).append(file)
        return queues

    def _read_chunk(self, file: _File, size: int, take: Take) -> list[int]:
        """Read the next part of a file, see `read`."""
        base = file.offset
        place = Place(self._run, file.path)
        try:
            chunk = _bytes(place, base, min(size, file.size - base))
            end, needed, rows = (read := self._decoder.read(chunk)).end, read.needed, read.rows
            if not end and 0 < needed <= file.size - base:
                if needed > SKIPPED:
                    file.offset += needed
                    return []
                read = self._decoder.read(_bytes(place, base, needed))
                end, rows = read.end, read.rows
        except FileNotFoundError:  # removed since it was listed
            file.torn = file.size
            return []
        if not end:
            file.torn = file.size
        hidden_from, last = file.hidden_from, max(file.starts, default=-1)
        for row in rows:
            at = base + row.start
            if row.tags is None:
                if at not in file.starts:
                    file.starts[at] = row.step
                    return [row.step]
            elif row.step < (hidden_from if at > last else file.hides_from(at)):
                take(file.rank, row.step, row.wall_time, row.tags, row.values)
                file.highest = max(file.highest, row.step)
        file.offset = base + end
        return []


def _bytes(place: Place, offset: int, size: int) -> bytes:
    fd = disk.open_beneath(place)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)
