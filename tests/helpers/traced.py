"""What a process touches by path, seen by strace: its own threads, not the processes that it starts.

    <pid> openat(5</run/.hf_mpwriter>, "FORMAT", O_RDONLY|O_NOFOLLOW) = 6</run/.hf_mpwriter/FORMAT>

strace names the directory behind each descriptor, so that a path that is relative to one is resolved. A call that is
interrupted by another thread's is put together again.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

WITHOUT = "needs strace: ./scripts/packages" * (not shutil.which("strace"))
COMMAND = ["strace", "-f", "-qq", "-y", "-s", "4096", "-e", "signal=none", "-e", "trace=%file,fork,vfork,clone,clone3"]
BEGIN, END = "/traced/begin", "/traced/end"  # paths that the program asks for, between which is what counts

_CALL = re.compile(r"(\d+)\s+(\w+)\((.*)")
_UNFINISHED = re.compile(r"(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"(\d+)\s+<\.\.\. (\w+) resumed>(.*)")
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<((?:[^<>\\]|\\.)*)>, )?"((?:[^"\\]|\\.)*)"')
_STARTED = re.compile(r"= (\d+)$")


@dataclass(frozen=True)
class Touched:
    """One system call with one path."""

    call: str  # name
    path: str  # absolute and normalised, as it was asked for


def touched(log: Path, cwd: str) -> list[Touched]:
    """The paths that the first process of a log touched between the two marks, in order."""
    found: list[Touched] = []
    threads: set[str] = set()
    counts = False
    for pid, call, arguments in _calls(log):
        threads = threads or {pid}
        if pid not in threads:
            continue
        if "CLONE_THREAD" in arguments and (started := _STARTED.search(arguments)):
            threads.add(started[1])
        paths = _paths(call, arguments, cwd)
        if BEGIN in paths:
            counts = True
        elif END in paths:
            counts = False
        elif counts:
            found += [Touched(call, path) for path in paths]
    return found


def _calls(log: Path) -> list[tuple[str, str, str]]:
    """Pid, name and arguments of each call, put together."""
    calls, waiting = [], {}
    for line in log.read_text(errors="surrogateescape").splitlines():
        if resumed := _RESUMED.match(line):
            calls.append((resumed[1], resumed[2], waiting.pop(resumed[1], "") + resumed[3]))
        elif call := _CALL.match(line):
            if unfinished := _UNFINISHED.match(call[3]):
                waiting[call[1]] = unfinished[1]
            else:
                calls.append((call[1], call[2], call[3]))
    return calls


def _paths(call: str, arguments: str, cwd: str) -> list[str]:
    if call in ("execve", "getcwd"):  # a process that is about to be another; a name that the kernel has at hand
        return []
    before = arguments.rpartition(") = ")[0] or arguments
    words = [(directory or cwd, path) for directory, path in _PATH.findall(before) if path]  # "": a descriptor itself
    if call in ("symlink", "symlinkat"):  # its content is no path that is looked up
        words = words[1:]
    elif call in ("readlink", "readlinkat"):  # nor is the answer
        words = words[:1]
    return [os.path.normpath(os.path.join(directory, path)) for directory, path in words]
