"""The last step that is on disk: the event files of one directory, read from the end backwards.

    record record | record record | record record          one file, cut into stretches
                                    <- walked --> end       read first: a few kB, then twice as much each time
                    <-- walked ---> end

Records cannot be parsed backwards, so the beginning of a stretch is searched: a place whose eight bytes are a length,
whose next four are the checksum of that length, and from which whole records lead exactly to the known end. An event
file inside a record, as `add_tensor` may log one, looks like records too, but does not lead there. With a tag, what
does not mention it is passed over by a search of bytes; of a tag that no file mentions, nothing else is searched.

Invariants:
- The answer is that of a parse of all files from their beginning, in the order in which TensorBoard reads them. Only
  damage in the middle of a file, behind which no reader gets, is noticed no further back than the answer lies.
- No more than a stretch and the longest record are held in memory.
- Only a file that ends within a record, as a power cut leaves it, is parsed from its beginning.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError
from tensorboardX.proto.event_pb2 import Event, SessionLog

from hf_mpwriter.base.names import is_event_file
from hf_mpwriter.events import framing
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place

FIRST_STRETCH = 16 << 10  # bytes
LONGEST_STRETCH = 4 << 20  # bytes
LONGEST_SEARCH = 256 << 10  # bytes that are searched for a tag at once: what the caches of a processor hold
UNHIDDEN = 1 << 63  # above any step
FIRST_WINDOW = 4 << 10  # bytes in which the beginning of a record is searched; a scalar has 60
LONGEST_GUESS = 1 << 20  # bytes of such a window, while it is not known that the file ends with a whole record
AROUND = framing.HEADER_SIZE + framing.FOOTER_SIZE  # bytes of a record beside its payload

_WALL_TIME, _STEP = 0x09, 0x10  # what stands before these in an event
_START = b"\x3a\x02\x08\x01"  # of SessionLog START in an event
_LENGTH = re.compile(rb"(?s)(?=(?!\0{4})(.{4})\0{4})")  # at any place: a length below 4 GiB that is not 0
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def last_step(
    directory: Place,
    tag: str | None = None,
    lengths: Mapping[str, int] | None = None,
    hidden_from: int | None = None,
    only_scalars: bool = False,
) -> int | None:
    """The step of the last record in a directory that no START hides; none if there is no such record.

    `tag`: of the record; None for any. Then step 0, which is also that of a record without one, counts only if
    there is no other.
    """
    search, known = _Search(tag, hidden_from, only_scalars=only_scalars), lengths or {}
    if not search.is_over and any(search.mentions(fd) for _, fd in _files(directory)):
        for name, fd in _files(directory):
            search.read(fd, known.get(name))
            if search.is_over:
                break
    return search.found if search.found is not None else search.stepless


def _files(directory: Place) -> Iterator[tuple[str, int]]:
    """The event files from the newest to the oldest: name, and a descriptor until the next one is asked for."""
    for name in sorted(filter(is_event_file, _names(directory)), reverse=True):
        try:
            fd = disk.open_beneath(directory / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in disk.NOT_REGULAR:
                continue
            raise
        try:
            yield name, fd
        finally:
            os.close(fd)


def _names(directory: Place) -> list[str]:
    try:
        return directory.names()
    except FileNotFoundError:
        return []


class _Search:
    """What was found so far, of files from the newest to the oldest."""

    def __init__(self, tag: str | None, hidden_from: int | None, *, only_scalars: bool) -> None:
        self._tag, self._hidden_from, self._only_scalars = tag, hidden_from, only_scalars
        self.found: int | None = None  # the answer
        self.stepless: int | None = None  # the answer if nothing else is found
        self._marks: tuple[bytes, ...] = (_START,)
        if tag is not None:
            name = tag.encode()
            self._marks = (b"\x0a" + framing.varint(len(name)) + name if name else b"\x2a", _START)

    @property
    def is_over(self) -> bool:
        """Whether older records change nothing."""
        return self.found is not None or (self._hidden_from is not None and self._hidden_from <= 0)

    def mentions(self, fd: int) -> bool:
        """Whether a file has the tag anywhere, as bytes; true without one."""
        return self._tag is None or _last_place(fd, os.fstat(fd).st_size, self._marks[:1]) is not None

    def read(self, fd: int, whole: int | None) -> None:
        """Read a file backwards until the search is over."""
        end, is_whole = (os.fstat(fd).st_size, False) if whole is None else (whole, True)
        stretch = FIRST_STRETCH
        while not self.is_over and end > 0 and (mention := self._last_mention(fd, end)) is not None:
            hidden_from = UNHIDDEN if self._hidden_from is None else self._hidden_from
            wanted = _Wanted(self._marks, self._tag is None, hidden_from)
            before = _stretch(fd, min(mention, max(0, end - stretch)), end, wanted, is_whole=is_whole)
            if before is None:  # torn, or damaged
                end, is_whole = framing.whole_length(fd, 0, end), True
                continue
            for payload in reversed(before.payloads):
                self._take(payload)
            end, is_whole = before.start, True
            stretch = min(2 * stretch, LONGEST_STRETCH)

    def _last_mention(self, fd: int, end: int) -> int | None:
        """A place in the last record that may matter, None if there is none."""
        if self._tag is None:
            return end - 1
        return _last_place(fd, end, self._marks)

    def _take(self, payload: bytes) -> None:
        """Take in a record that is older than all before."""
        if self.is_over:
            return
        try:
            event = Event.FromString(payload)
        except DecodeError:
            return
        hidden_from = self._hidden_from
        if event.HasField("session_log"):
            if event.session_log.status == SessionLog.START and (hidden_from is None or event.step < hidden_from):
                self._hidden_from = event.step
        elif hidden_from is None or event.step < hidden_from:
            values = event.summary.value
            if self._tag is not None:
                if any(value.tag == self._tag for value in values):
                    self.found = event.step
            elif values and event.step > 0:
                self.found = event.step
            elif values and self.stepless is None and (not self._only_scalars or values[0].HasField("simple_value")):
                self.stepless = event.step


def _last_place(fd: int, end: int, marks: tuple[bytes, ...]) -> int | None:
    """The last place before `end` where one of these bytes stands, None if there is none."""
    overlap, size, position = max(map(len, marks)) - 1, FIRST_STRETCH, end
    while position > 0:
        low = max(0, position - size)
        chunk = os.pread(fd, min(end, position + overlap) - low, low)
        last = max(map(chunk.rfind, marks))
        if last >= 0:
            return low + last
        position, size = low, min(2 * size, LONGEST_SEARCH)
    return None


@dataclass(frozen=True)
class _Wanted:
    """Which records matter."""

    marks: tuple[bytes, ...]  # bytes that a record that matters has
    any_step: bool  # whether all others that have a step matter as well
    hidden_from: int  # those have a lower step than this

    def next_mark(self, chunk: bytes, position: int) -> int:
        """The next place with a mark, the end of the chunk if there is none."""
        found = (chunk.find(mark, position) for mark in self.marks)
        return min((place for place in found if place >= 0), default=len(chunk))

    def is_hidden(self, payload: bytes) -> bool:
        """Whether it surely does not matter; read by hand, as a purge may hide millions of records."""
        if len(payload) < 13 or payload[0] != _WALL_TIME or payload[9] != _STEP:
            return False
        low, middle, high = payload[10:13]
        if low < 0x80:
            return low >= self.hidden_from
        if middle < 0x80:
            return low & 0x7F | middle << 7 >= self.hidden_from
        return high < 0x80 and low & 0x7F | (middle & 0x7F) << 7 | high << 14 >= self.hidden_from


@dataclass
class _Stretch:
    """Whole records, one behind the other."""

    start: int  # of the first one
    end: int  # of the last one
    payloads: list[bytes] = field(default_factory=list)  # of those that may matter
    starts: list[int] = field(default_factory=list)  # of all
    is_torn: bool = False  # whether the next record reaches beyond what may be read


def _stretch(fd: int, position: int, end: int, wanted: _Wanted, *, is_whole: bool) -> _Stretch | None:
    """The records from the one at a position, or an earlier one, to the end.

    None if no whole records lead to the end.
    """
    dead: set[int] = set()  # starts of records that lead elsewhere
    size = FIRST_WINDOW
    while True:
        low = max(0, position - size)
        for start in _candidates(fd, low, position, end):
            if start in dead:
                continue
            walked = _walk(fd, start, end, wanted)
            if walked.end == end:
                return walked
            if walked.is_torn and walked.starts and not is_whole:
                return None
            dead.update(walked.starts)
        if low == 0 or (dead and size >= LONGEST_GUESS and not is_whole):
            return None
        size *= 8


def _candidates(fd: int, low: int, position: int, end: int) -> Iterator[int]:
    """Places from `low` to `position` where a record may begin."""
    if low == 0:
        yield 0
    data = os.pread(fd, position + framing.HEADER_SIZE - low, low)
    for match in _LENGTH.finditer(data, 0, len(data) - 4):
        at = match.start()
        (length,) = _U32.unpack(match[1])
        if length + AROUND <= end - low - at and data.startswith(framing.header(length), at):
            yield low + at


def _walk(fd: int, start: int, end: int, wanted: _Wanted) -> _Stretch:
    """The whole records from `start` on, up to `end` or to what is none."""
    found = _Stretch(start, start)
    need = 0
    while found.end < end:
        want = min(max(framing.CHUNK, need), end - found.end)
        chunk = os.pread(fd, want, found.end)
        used, need = _walk_chunk(chunk, found, wanted)
        found.end += used
        if need < 0:
            break
        if not used and (found.end + need > end or len(chunk) < want):
            found.is_torn = True
            break
    return found


def _walk_chunk(chunk: bytes, found: _Stretch, wanted: _Wanted) -> tuple[int, int]:
    """Bytes of whole records at the start of a chunk, and the size of the record after them; -1 if it is none."""
    used, size, mark = 0, len(chunk), wanted.next_mark(chunk, 0)
    while used + AROUND <= size:
        (length,) = _U64.unpack_from(chunk, used)
        stop = used + AROUND + length
        if not chunk.startswith(framing.header(length), used):
            return used, -1
        if stop > size:
            return used, stop - used
        payload = chunk[used + framing.HEADER_SIZE : stop - framing.FOOTER_SIZE]
        if _U32.unpack_from(chunk, stop - framing.FOOTER_SIZE)[0] != framing.masked_crc(payload):
            return used, -1
        found.starts.append(found.end + used)
        if mark < stop:
            found.payloads.append(payload)
            mark = wanted.next_mark(chunk, stop)
        elif wanted.any_step and not wanted.is_hidden(payload):
            found.payloads.append(payload)
        used = stop
    return used, AROUND
