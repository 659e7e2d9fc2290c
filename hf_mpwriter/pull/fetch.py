"""Fetch: one file from the Hub into the run directory, or nothing of it.

    Hub --the client's download--> .hf_mpwriter/pulling/... --digest fits--> synced, and renamed to its path

Invariants:
- Nothing stands at the path but what was there, or the whole content, durable, with the digest that the Hub tells.
- A file that is here is replaced only by one that begins with all of it.

The client continues a file whose connection broke. It never continues one that another process began, so what a pull
that was killed has left in `pulling/` is removed.
"""

from __future__ import annotations

import errno
import math
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from hf_mpwriter.base.files import begins_with
from hf_mpwriter.base.verdicts import Refused, Split
from hf_mpwriter.push.classify import classify
from hf_mpwriter.push.client import Hub, Remote
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import at

PULLING = "pulling"  # directory in the spool of the file that is on its way
TRIES = 3  # of a question; in each of them, the client takes up a broken connection five times
LONGEST_PAUSE = 16.0  # seconds between two of them; the first one is a second
CORRUPT = "what came does not have the digest that the Hub tells, and was thrown away; try again later"
DIFFERS = "it differs from the Hub's copy, and is left as it is; to have the Hub's, move it away"

Answer = TypeVar("Answer")


def ask(question: Callable[[], Answer], longest: float = math.inf) -> Answer:
    """The answer to a question, which is asked a few times; not if the Hub wishes a longer pause than `longest`."""
    for failures in range(1, TRIES + 1):
        try:
            return question()
        except Exception as error:
            verdict = classify(error)
            wished = getattr(verdict, "after", None) or 0.0
            is_final = isinstance(verdict, (Refused, Split)) or is_of_disk(error)
            if is_final or failures == TRIES or wished > longest:
                raise
            time.sleep(max(wished, random.uniform(0.5, 1.0) * min(2**failures, LONGEST_PAUSE)))  # noqa: S311
    raise AssertionError


def is_of_disk(error: Exception) -> bool:
    """Whether this disk has refused: the client's own errors are of other classes, or have no number."""
    return isinstance(error, OSError) and error.errno is not None and type(error).__module__ == "builtins"


class Fetcher:
    """Brings files of one commit."""

    def __init__(self, hub: Hub, commit: str, spool: Spool, longest: float, came: Callable[[int], object]) -> None:
        self._hub, self._commit, self._longest, self._came = hub, commit, longest, came
        self._run, self._scratch = spool.run, spool.directory / PULLING

    def fetch(self, path: str, remote: Remote) -> str:
        """Bring one file; the reason if it does not come, else ""."""
        try:
            local = disk.open_beneath(self._run / path)
        except FileNotFoundError:
            local = None
        except PermissionError as error:
            return str(error)
        except OSError as error:
            if error.errno in (*disk.NOT_REGULAR, errno.ENOTDIR):
                return f"something that is no regular file is in its place: {error.strerror}"
            raise
        try:
            reason = ask(lambda: self._bring(path, remote, local), self._longest)
            return ask(lambda: self._bring(path, remote, local), self._longest) if reason == CORRUPT else reason
        except PermissionError as error:
            return str(error)
        finally:
            if local is not None:
                os.close(local)

    def _bring(self, path: str, remote: Remote, local: int | None) -> str:
        """Download a file, and put it in place if it is the Hub's copy and begins with the local one."""
        with self._hub.copy(path, self._commit, remote.size, self._scratch.way, self._came) as name:
            copy, place = at(name), self._run / path
            fd = disk.open_beneath(copy)
            try:
                if os.fstat(fd).st_size != remote.size or not remote.is_beginning_of(fd):
                    return CORRUPT
                if local is not None and not begins_with(fd, local):
                    return DIFFERS
                disk.fsync(fd, "pull.file")
            finally:
                os.close(fd)
            disk.make_dirs(place.parent, 0o777)
            disk.move(copy, place, "pull.file")
        return ""
