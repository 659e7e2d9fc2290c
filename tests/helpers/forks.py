"""Children made by fork: they run to their end, to a named failure, or stage by stage."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from hf_mpwriter.system import failpoints

KILLED = -signal.SIGKILL
PR_SET_PDEATHSIG = 1
GO_ON = b"."


def launch(action: Callable[[], object]) -> int:
    """Start `action` in a child of a child, which is its launcher and ends as it does; the launcher's process id."""
    return fork(lambda: os._exit(abs(in_child(action))))


def fork(action: Callable[[], object], failpoint: str = "") -> int:
    """Start `action` in a child made by fork; the child ends with 0 if the action returns, else with 1."""
    pid = os.fork()
    if not pid:
        _run_and_end(action, failpoint)
    return pid


def _run_and_end(action: Callable[[], object], failpoint: str) -> NoReturn:
    code = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no child outlives a test runner that is killed
    try:
        failpoints.armed.update(failpoints.parse(failpoint))
        action()
        code = 0
    except BaseException:  # noqa: BLE001 - nothing may climb up into the test runner's frames
        traceback.print_exc()
    finally:
        os._exit(code)


def reap(pid: int) -> int:
    """Wait for a child; its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(action: Callable[[], object], failpoint: str = "") -> int:
    """Run `action` in a child and wait for its end."""
    return reap(fork(action, failpoint))


@contextlib.contextmanager
def living(action: Callable[[], object]) -> Iterator[int]:
    """A child that runs `action`, reports it, and lives until the block ends."""
    ran, report = os.pipe()
    wait, let_go = os.pipe()

    def body() -> None:
        os.close(let_go)
        action()
        os.write(report, b".")
        os.read(wait, 1)

    pid = fork(body)
    os.close(report)
    os.close(wait)
    try:
        assert os.read(ran, 1) == b".", "the child failed"
        yield pid
    finally:
        os.close(ran)
        os.close(let_go)
        with contextlib.suppress(ChildProcessError):
            reap(pid)


def kill(pid: int) -> None:
    """SIGKILL a child and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    assert reap(pid) == KILLED


class Staged:
    """A child of a launcher of its own that runs a generator and stops at each `yield` until `go_on`."""

    def __init__(self, stages: Iterator[object], *, is_launched: bool = True) -> None:
        self._ran, report = os.pipe()
        wait, self._let_go = os.pipe()

        def body() -> None:
            os.close(self._let_go)
            os.write(report, os.getpid().to_bytes(4))
            waits = True
            for _ in stages:
                if waits:
                    os.write(report, b".")
                    waits = os.read(wait, 1) == GO_ON

        self._child = launch(body) if is_launched else fork(body)
        os.close(report)
        os.close(wait)
        self.pid = int.from_bytes(os.read(self._ran, 4))
        assert os.read(self._ran, 1) == b".", "the child failed"

    def kill(self) -> None:
        """SIGKILL the child and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        assert abs(reap(self._child)) == signal.SIGKILL

    def go_on(self) -> None:
        """Let the child run to its next `yield`."""
        os.write(self._let_go, GO_ON)
        assert os.read(self._ran, 1) == b".", "the child failed"

    def finish(self) -> int:
        """Let the child run to its end; its exit code."""
        os.write(self._let_go, b"e")  # not only a closed pipe: children that were forked later hold it open
        os.close(self._let_go)
        os.close(self._ran)
        return reap(self._child)
