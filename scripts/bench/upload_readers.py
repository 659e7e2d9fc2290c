"""Who reads how much in a run that `upload.py` measures, seen by strace.

    worker, uploader, push    a process is what it has executed; threads and forks count to it
    modules                   Python modules and shared libraries
    events                    event files; `scan` of them is what looks for whole records
    xet                       what the client of Xet keeps on disk
    other                     pipes, /proc, the spool, settings; sockets do not count

Bytes that are mapped into memory are not read. An unfinished line of strace and its end are joined.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_READS = "read,pread64,readv,preadv,preadv2,sendfile,copy_file_range"
_STARTS = "execve,clone,clone3,fork,vfork"
_SHOWN = 80  # bytes of a string: enough for the title of a process
_LINE = re.compile(r"(\d+) +(?:<\.\.\. )?(\w+)(.*)")
_RESULT = re.compile(r"= (\d+)(?:<[^>]*>)?$")
_TITLE = re.compile(r"hf-mpwriter (\w+) ")
_PATH = re.compile(r"\(\d+<([^>]*)>")
_MODULE = re.compile(r"\.(pyc?|so[.\d]*|pth|zip)$|/dist-info/|/modules/")


def tracer(log: str) -> list[str]:
    """Return the command line that runs another one under strace."""
    seen = f"trace={_READS},{_STARTS}"
    return ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-s", str(_SHOWN), "-e", "signal=none", "-e", seen, "-o", log]


def count(log: Path) -> Counter[tuple[str, str]]:
    """Return the bytes read, by kind of process and place."""
    parents, kinds, sizes = dict[int, int](), dict[int, str](), Counter[tuple[int, str]]()
    for pid, call, text in _calls(log):
        result = _RESULT.search(text)
        if result is None:
            continue
        if call == "execve":
            title = _TITLE.search(text)
            kinds[pid] = title[1] if title else "worker"
        elif call in _STARTS:
            parents[int(result[1])] = pid
        elif (path := _PATH.match(text)) and not path[1].startswith("socket:"):
            sizes[pid, _place(call, path[1])] += int(result[1])
    found = Counter[tuple[str, str]]()
    for (pid, place), size in sizes.items():
        found[_kind(pid, kinds, parents), place] += size
    return found


def _kind(pid: int, kinds: dict[int, str], parents: dict[int, int]) -> str:
    while pid not in kinds and pid in parents:
        pid = parents[pid]
    return kinds.get(pid, "?")


def _place(call: str, path: str) -> str:
    name = path.rpartition("/")[2]
    if "tfevents" in name:
        return "events, scan" if call == "pread64" else "events"
    if "/xet/" in path:
        return "xet"
    return "modules" if _MODULE.search(path) else "other"


def _calls(log: Path) -> Iterator[tuple[int, str, str]]:
    """Yield process, name and the rest of each call that has ended."""
    begun = dict[int, str]()
    with log.open(errors="replace") as lines:
        for line in lines:
            if (match := _LINE.match(line.rstrip())) is None:
                continue
            pid, call, text = int(match[1]), match[2], match[3]
            if text.endswith("<unfinished ...>"):
                begun[pid] = text.removesuffix("<unfinished ...>")
                continue
            if text.startswith(" resumed>"):
                text = begun.pop(pid, "") + text.removeprefix(" resumed>")
            yield pid, call, text
