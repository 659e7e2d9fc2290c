"""A forked child for what obeys no clock: a mount that hangs, the files of the Hub's client, the name service.

    Forked(work)   --fork-->   child: work(tell)
    told           <--pipe--   what it tells, or raises; a line for each object
       | its time is over
       +-- SIGKILL

Invariant: the command goes on when the time is over, even if the child hangs in the kernel.
"""

from __future__ import annotations

import base64
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

from hf_mpwriter.system import disk, launch
from hf_mpwriter.system.kernel import die_with_parent

POLL = 1.0  # seconds
PATIENCE = 0.1  # seconds for the end of one that is killed

Tell = Callable[[object], None]


class Forked(launch.Child):
    """A forked child of this process, with so many seconds; what it raises is raised here."""

    def __init__(self, work: Callable[[Tell], object], seconds: float) -> None:
        self._pipe, writing = os.pipe()
        os.set_blocking(self._pipe, False)
        self.code, self._received, self._is_silent = None, b"", False
        parent, self.pid = os.getpid(), os.fork()
        if not self.pid:
            _work(work, writing, parent)
        os.close(writing)
        self.allow(math.inf)
        self.until = time.monotonic() + seconds  # may be set anew

    def told(self) -> Iterator[Any]:
        """What the child tells until it ends or is killed; it has ended well if its code is 0."""
        ended = False
        while not ended and (left := self.until - time.monotonic()) > 0:
            self.wait(min(left, POLL))
            lines, ended = self.hear()
            for line in lines:
                one = pickle.loads(base64.b64decode(line))  # noqa: S301 - of a child of this process
                if isinstance(one, Exception):
                    raise one
                yield one
        if not ended:
            self.end(PATIENCE)


def _work(work: Callable[[Tell], object], writing: int, parent: int) -> None:
    def tell(one: object) -> None:
        disk.write_all(writing, b"%s\n" % base64.b64encode(pickle.dumps(one)))

    try:
        die_with_parent(parent)
        try:
            work(tell)
        except Exception as error:  # noqa: BLE001 - it is raised by the other process
            tell(error)
        os._exit(0)
    finally:
        os._exit(1)
