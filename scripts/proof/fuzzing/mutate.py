"""Mutations: what a disk, a stranger or a mistake makes of a real file, or of a real answer; seeded.

any file      bits flipped, cut, doubled, shuffled, with holes, zero bytes or other bytes; something else in its place
JSON          a value or a name replaced by one that nobody expects, left out, doubled; 10,000 levels, huge numbers
event files   records with other payloads and good checksums; headers that announce what is not there
a directory   names that no terminal shows, copies of real files, folders longer than a path may be
"""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hf_mpwriter.events import framing

MIB = 1 << 20
DEEP = 10_000  # levels of JSON
HOLE = "<hole {}>"  # stands for a raw value until the rest is JSON
LONG_RECORD = 70 * MIB  # bytes of zeros in a record whose checksums hold; as a hole it takes no room
SIZES = (1, 4096, MIB, 64 * MIB, 65 * MIB, 1 << 30)  # bytes by which a file gets longer without content
STRANGER, HUGE = 54302, 200 << 30  # a user, and bytes of a hole of his: who does not own a file is read less of

ODD_NUMBERS = ("-1", "0", "1e308", "1e999", "-1e308", "NaN", "Infinity", "0.5", str(2**31), str(2**63), str(2**64))
ODD_NUMBERS += ("9" * 400, "9" * 5000)
ODD_TEXTS = (
    "",
    ".",
    "..",
    "../../x",
    "/etc/hostname",
    "a//b",
    "\ud800",
    "a\ud800/\udfff",
    "\udcff",
    "a\0b",
    "\x1b[2J\x1b]0;x\a",
    "\n\n",
    "é" * 300,
    "x/" * 3000,
    "x" * 100_000,
    "%s%n{0}{x}",
    ".hf_mpwriter/x",
    "$(touch /tmp/x);#",
    "-rf",
    "file:///etc/hostname",
    "http://[::1",
    "http://127.0.0.1:99999/x",
)
RAW = (
    "null",
    "true",
    "[]",
    "{}",
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    "[" * DEEP,
    "[null]",
    "[[],{}]",
    '{"a": 1, "a": 2}',
    "[" + "0," * 100_000 + "0]",
    *ODD_NUMBERS,
    *(json.dumps(text) for text in ODD_TEXTS),
)
WHOLE = (
    b"",
    b"\0",
    b"\0" * 4096,
    b"\xff\xfe\x00{",
    b"null",
    b"[]",
    b"{}",
    b"0",
    b'""',
    b"\xef\xbb\xbf{}",
    b"\xed\xa0\x80",
)
ODD_NAMES = (
    b"events.out.tfevents.9999999999.h.1.00000000",
    b"events.out.tfevents.1795233002.\xff\xfe.1.00000000",
    b"events.out.tfevents.\n\x1b[2J.1",
    b"tfevents",
    b"-rf tfevents;$(x)",
    b"x" * 255,
    b"tfevents" + b"\xc3\xa9" * 120,
    b"99999999.json",
    b"-1.json",
    b"main.h.99999999999999999999.1-0",
    b"main.h.1.1-99999999999999999999",
    b".hf_mpwriter-x",
    b"rank_99999999999999999999",
    b"main.lock",
    b"~system-x.lock",
)
IN_PLACE = ("directory", "full directory", "fifo", "socket", "dangling", "loop", "zero", "memory", "gone", "closed")


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where the values in a JSON document are."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield from _paths(below, (*path, key))


@functools.cache
def _checksum_of_zeros() -> bytes:
    """Return the end of a record of LONG_RECORD zeros."""
    return framing.masked_crc(bytes(LONG_RECORD)).to_bytes(4, "little")


class Mutator:
    """Changes bytes, files and directories by one source of chance."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    # bytes

    def data(self, data: bytes) -> bytes:
        """Return what has become of bytes, whatever they are."""
        if self._rng.random() < 0.6 and (text := self._json(data)) is not None:
            return text
        return self._bytes(data)

    def _bytes(self, data: bytes) -> bytes:
        kind: Callable[[bytes], bytes] = self._rng.choice(
            [self._flip, self._cut, self._double, self._insert, self._drop, self._shuffle, self._number, self._whole]
        )
        return kind(data)

    def _at(self, data: bytes) -> int:
        return int(self._rng.random() * len(data))

    def _flip(self, data: bytes) -> bytes:
        found = bytearray(data)
        for _ in range(self._rng.choice((1, 1, 2, 8)) if found else 0):
            found[self._at(data)] ^= 1 << self._rng.randrange(8)
        return bytes(found)

    def _cut(self, data: bytes) -> bytes:
        return data[: self._at(data)]

    def _double(self, data: bytes) -> bytes:
        start, end = sorted((self._at(data), self._at(data)))
        return self._rng.choice((data * 2, data[:end] + data[start:]))

    def _insert(self, data: bytes) -> bytes:
        at, junk = (
            self._at(data),
            (b"\0", b"\0" * 5000, b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"}", self._rng.randbytes(64)),
        )
        return data[:at] + self._rng.choice(junk) + data[at:]

    def _drop(self, data: bytes) -> bytes:
        start, end = sorted((self._at(data), self._at(data)))
        return data[:start] + data[end:]

    def _shuffle(self, data: bytes) -> bytes:
        at = self._at(data)
        return data[at:] + data[:at]

    def _number(self, data: bytes) -> bytes:
        """Put an odd number in the place of digits."""
        digits = [at for at in range(len(data)) if data[at : at + 1].isdigit()]
        if not digits:
            return self._flip(data)
        at = end = self._rng.choice(digits)
        while data[end : end + 1].isdigit():
            end += 1
        return data[:at] + self._rng.choice(ODD_NUMBERS).encode() + data[end:]

    def _whole(self, _: bytes) -> bytes:
        return self._rng.choice((*WHOLE, self._rng.randbytes(1000), self._rng.choice(RAW).encode()))

    # JSON

    def _json(self, data: bytes) -> bytes | None:
        """Change one value of a JSON document, or of a line of several; None if there is none."""
        lines = data.split(b"\n")
        number = self._rng.randrange(len(lines))
        for text, put in (
            (data, lambda new: new),
            (lines[number], lambda new: b"\n".join([*lines[:number], new, *lines[number + 1 :]])),
        ):
            try:
                document = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(document, dict | list):
                return put(self.document(document))
        return None

    def document(self, document: Any) -> bytes:
        """Return a JSON document in which some values are others."""
        raws = []
        for _ in range(self._rng.choice((1, 1, 2, 4))):
            path = self._rng.choice(list(_paths(document)))
            if not path:
                return self._raw(document).encode()
            raws.append(self._change(document, path, HOLE.format(len(raws))))
        text = json.dumps(document)
        for number, raw in enumerate(raws):
            text = text.replace(json.dumps(HOLE.format(number)), raw)
        return text.encode()

    def _change(self, document: Any, path: tuple[Any, ...], hole: str) -> str:
        """Change a value, or its name; what stands for the hole then."""
        above = functools.reduce(operator.getitem, path[:-1], document)
        raw, change = self._raw(above[path[-1]]), self._rng.random()
        if change < 0.7:
            above[path[-1]] = hole
        elif change < 0.8:
            del above[path[-1]]
        elif isinstance(above, list):
            above.extend([above[path[-1]]] * self._rng.choice((1, 1000)))
        else:
            above[self._rng.choice(ODD_TEXTS)] = above.pop(path[-1]) if change < 0.9 else hole
        return raw

    def _raw(self, value: Any) -> str:
        """Return what stands in the place of a value: often of its own type."""
        if self._rng.random() < 0.5:
            return self._rng.choice(RAW)
        if isinstance(value, str):
            return json.dumps(self._rng.choice(ODD_TEXTS))
        return self._rng.choice(ODD_NUMBERS if isinstance(value, int | float) else RAW)

    # records

    def records(self, data: bytes) -> bytes:
        """Return what has become of an event file; most of its checksums hold."""
        found = [payload for _, payload in framing._payloads(data, framing.whole_records(data)[0])]  # noqa: SLF001
        if not found:
            return self._bytes(data)
        at = self._rng.randrange(len(found))
        kind = self._rng.randrange(5)
        if kind == 0:
            found[at] = self._bytes(found[at])
        elif kind == 1:
            found.insert(
                at, self._rng.choice((b"", b"\0" * 3, found[0], self._rng.randbytes(40), b"\x2a\xff\xff\xff\xff\x0f"))
            )
        elif kind == 2:
            found[at] = b"\x09" + self._rng.randbytes(8) + b"\x10" + b"\xff" * 9 + b"\x01" + b"\x3a\x02\x08\x01"
        elif kind == 3:
            found = [*found[at:], *found[:at]]
        whole = b"".join(map(framing.frame, found))
        if kind == 4:  # it announces what is not there
            whole += framing.header(self._rng.choice((0, 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1))) + found[at]
        return whole

    # files

    def strike(self, path: Path) -> str:
        """Change a file, or put something else in its place; what was done."""
        roll = self._rng.random()
        if roll < 0.2:
            return self._replace(path)
        if roll < 0.25:
            return self._lengthen(path)
        data = _content(path)
        is_event = "tfevents" in path.name
        path.write_bytes(self.records(data) if is_event and self._rng.random() < 0.6 else self.data(data))
        return "other bytes"

    def _replace(self, path: Path) -> str:
        kind = self._rng.choice(IN_PLACE)
        data = _content(path)
        path.unlink()
        if kind in ("directory", "full directory"):
            path.mkdir()
            if kind == "full directory":
                (path / path.name).write_bytes(data)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            _bind(path)
        elif kind == "closed":
            path.write_bytes(data)
            path.chmod(0)
        elif kind != "gone":
            targets = {"dangling": "nowhere", "loop": path.name, "zero": "/dev/zero", "memory": "/proc/self/mem"}
            path.symlink_to(targets[kind])
        return f"{kind} in its place"

    def _lengthen(self, path: Path) -> str:
        """Make a file longer, by a hole; of an event file, a whole record may announce it."""
        sizes = (*SIZES, HUGE) if os.geteuid() == 0 else SIZES
        size, more = path.stat().st_size, self._rng.choice(sizes)
        if more == HUGE:
            os.chown(path, STRANGER, -1)
        if "tfevents" in path.name and self._rng.random() < 0.7:
            with path.open("ab") as file:
                if self._rng.random() < 0.3:
                    file.write(framing.header(LONG_RECORD))
                    file.seek(LONG_RECORD, os.SEEK_CUR)
                    file.write(_checksum_of_zeros())
                    return "a long record of zeros"
                file.write(framing.header(more))
        with contextlib.suppress(OSError):  # the filesystem takes no file of this length
            os.truncate(path, size + framing.HEADER_SIZE + more + framing.FOOTER_SIZE)
        return f"a hole of {more} bytes"

    def crowd(self, directory: Path, example: Path) -> str:
        """Put something more into a directory; what was done."""
        if self._rng.random() < 0.2:
            return self._deepen(directory, example)
        name = self._rng.choice(ODD_NAMES)
        place = os.path.join(os.fsencode(directory), name)
        if os.path.lexists(place):
            return "nothing"
        shutil.copyfile(os.fsencode(example), place)
        if self._rng.random() < 0.5:
            path = Path(os.fsdecode(place))
            return f"{name!r}, {self.strike(path)}"
        return f"{name!r}, a copy"

    def _deepen(self, directory: Path, example: Path) -> str:
        """Make folders in folders, longer than a path may be, with an event file in the last one."""
        data, name = _content(example), self._rng.choice(("d" * 200, "e\n" * 60))
        fd = os.open(directory, os.O_RDONLY)
        for _ in range(4400 // len(name)):
            os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        file = os.open(ODD_NAMES[0], os.O_WRONLY | os.O_CREAT, dir_fd=fd)
        os.write(file, data)
        os.close(file)
        os.close(fd)
        return "folders longer than a path may be"


def _content(path: Path) -> bytes:
    """Return the beginning of a file, which may have got a large hole."""
    with path.open("rb") as file:
        return file.read(MIB)


def _bind(path: Path) -> None:
    """Make a socket, whose name may be longer than an address."""
    fd, short = os.open(path.parent, os.O_RDONLY), f".{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as it:
        it.bind(f"/proc/self/fd/{fd}/{short}")
    os.rename(short, path.name, src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)
