"""Find the processes that carry a mark in their environment: those of one script, and of no other."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from hf_mpwriter.system.launch import KINDS, is_command_of
from hf_mpwriter.system.process import command_line


def marked(words: str) -> Iterator[int]:
    """Yield the processes that have `NAME=value` in the environment that they were started with."""
    wanted = os.fsencode(words)
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                yield int(pid)


def by_kind(words: str) -> dict[str, list[int]]:
    """Return the processes with this mark that the package has started, per kind, see `launch.KINDS`."""
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for pid in marked(words):
        with contextlib.suppress(OSError):
            words_of = command_line(pid)
            for kind in KINDS:
                if is_command_of(kind, words_of, None):
                    found[kind].append(pid)
    return found


def kill(words: str) -> None:
    """End all that the package has started with this mark; the next one may have been started meanwhile."""
    while pids := [pid for found in by_kind(words).values() for pid in found]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
