"""Helpers of the unit tests: processes that fail at a named point, event records, conditions with a deadline."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import hypothesis
import pytest
from tensorboardX.proto import event_pb2

from hf_mpwriter.events import framing
from hf_mpwriter.system import disk

# The same examples in every run, no clock in any verdict, nothing left in the working directory.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")

DEADLINE = 60.0  # seconds that any condition may take on a slow machine
KILLED = -signal.SIGKILL
PR_SET_PDEATHSIG = 1
GO_ON = b"."


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` is true."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {DEADLINE:.0f} s in vain: {what}")
        time.sleep(0.005)


def run_python(source: str, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run a program in a fresh interpreter and wait for its end."""
    return subprocess.run(
        [sys.executable, "-c", source, *map(str, arguments)],
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def succeed(source: str, *arguments: object, env: dict[str, str] | None = None) -> str:
    """The output of a program that must end well."""
    result = run_python(source, *arguments, env=env)
    assert result.returncode == 0, result.stderr
    return result.stdout


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
        disk._failpoints.update(disk._parse_failpoints(failpoint))
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
    """A child that runs `action`, says so, and lives until the block ends."""
    told, tell = os.pipe()
    wait, let_go = os.pipe()

    def body() -> None:
        os.close(let_go)
        action()
        os.write(tell, b".")
        os.read(wait, 1)

    pid = fork(body)
    os.close(tell)
    os.close(wait)
    try:
        assert os.read(told, 1) == b".", "the child failed"
        yield pid
    finally:
        os.close(told)
        os.close(let_go)
        with contextlib.suppress(ChildProcessError):
            reap(pid)


def kill(pid: int) -> None:
    """SIGKILL a child and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    assert reap(pid) == KILLED


@contextlib.contextmanager
def failing(failpoint: str) -> Iterator[None]:
    """Failpoints in this process."""
    disk._failpoints.update(disk._parse_failpoints(failpoint))
    try:
        yield
    finally:
        disk._failpoints.clear()


def limit_files(size: int) -> None:
    """No file of this process grows beyond `size` bytes: a short write, then EFBIG."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def unlimit_files() -> None:
    """Lift the limit again."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def scalar(step: int, tag: str = "loss", value: float = 0.5) -> bytes:
    """Payload of one scalar."""
    return framing.ScalarEncoder(tag).record(1.0, step, value)[framing.HEADER_SIZE : -framing.FOOTER_SIZE]


def events(path: str | os.PathLike) -> list[event_pb2.Event]:
    """The events of a file which must consist of whole records only."""
    path = os.fspath(path)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert framing.whole_length(fd) == os.path.getsize(path), f"{path} is torn"
    finally:
        os.close(fd)
    return [event_pb2.Event.FromString(payload) for payload in framing.payloads(path)]


def keys(path: str | os.PathLike) -> list[tuple[str, int]]:
    """(tag, step) of each scalar of a file, in file order."""
    return [(value.tag, event.step) for event in events(path) for value in event.summary.value]


def event_file(path: str | os.PathLike, count: int, tag: str = "loss") -> int:
    """Write an event file of `count` scalars; its length."""
    data = framing.frame(framing.version_event(1.0)) + b"".join(framing.frame(scalar(n, tag)) for n in range(count))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    return len(data)


def open_descriptors() -> set[int]:
    """The descriptors of this process."""
    return {int(name) for name in os.listdir("/proc/self/fd")}


def dump(path: str | os.PathLike, content: object) -> None:
    """Write JSON."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


class Staged:
    """A child made by fork that runs a generator and stops at each `yield` until it is told to go on."""

    def __init__(self, stages: Iterator[object]) -> None:
        self._told, tell = os.pipe()
        wait, self._let_go = os.pipe()

        def body() -> None:
            os.close(self._let_go)
            waits = True
            for _ in stages:
                if waits:
                    os.write(tell, b".")
                    waits = os.read(wait, 1) == GO_ON

        self.pid = fork(body)
        os.close(tell)
        os.close(wait)
        assert os.read(self._told, 1) == b".", "the child failed"

    def go_on(self) -> None:
        """Let the child run to its next `yield`."""
        os.write(self._let_go, GO_ON)
        assert os.read(self._told, 1) == b".", "the child failed"

    def finish(self) -> int:
        """Let the child run to its end; its exit code."""
        os.write(self._let_go, b"e")  # not only a closed pipe: children that were forked later hold it open
        os.close(self._let_go)
        os.close(self._told)
        return reap(self.pid)
