"""Event files under fork, threads and signal handlers that log."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading

import pytest
from forks import fork, in_child, reap
from support import keys, scalar

from hf_mpwriter.events import backlog, event_file
from hf_mpwriter.events.limits import Limits


def test_a_child_of_fork_leaves_the_file_to_its_parent(place):
    """It closes, forgets what waits, and writes to a file of its own; the parent's goes on unharmed."""
    file = place.file()
    file.append(scalar(1))
    parents = file.path
    place.refuse = True

    def child() -> None:
        fd = file._series.current.fd
        place.refuse = False
        file.abandon(Limits())
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(fd)
        assert (file.waiting, file.dropped, file.is_open) == (0, 0, False)
        file.append(scalar(100))
        assert file.path != parents
        file.close()

    assert in_child(child) == 0
    place.refuse = False
    file.append(scalar(2))
    file.close()
    assert [step for _, step in keys(parents)] == [1, 2]
    assert sorted(place.steps()) == [1, 2, 100]


def test_a_child_of_fork_forgets_what_waits_in_its_parent(place):
    """Records that the disk refused are the parent's to write: each of them comes once."""
    file = place.file()
    place.refuse = True
    file.append(scalar(1))

    def child() -> None:
        place.refuse = False
        file.abandon(Limits())
        file.append(scalar(100))
        file.close()

    assert in_child(child) == 0
    place.refuse = False
    file.flush()
    assert sorted(place.steps()) == [1, 100]


def test_a_fork_in_the_middle_of_anothers_write_leaves_the_child_free_to_log(place):
    """The lock that another thread held at the fork does not exist in the child."""
    file = place.file()
    file.append(scalar(1))
    with contextlib.ExitStack() as stack:
        held, over = threading.Event(), threading.Event()

        def hold() -> None:
            with file._lock:
                held.set()
                over.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        stack.callback(thread.join)
        stack.callback(over.set)
        held.wait()

        def child() -> None:
            file.abandon(Limits())
            file.append(scalar(2))

        pid = fork(child)
        assert reap(pid) == 0


def test_several_threads_append_whole_records(place, small_segments):
    """All records of all threads are there, whole, and in each thread's order."""
    file = place.file()

    def log(n: int) -> None:
        for step in range(1, 200):
            file.append(scalar(step, f"thread{n}"))

    threads = [threading.Thread(target=log, args=(n,)) for n in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    file.close()
    found = [key for path in place.paths() for key in keys(path)]
    for n in range(4):
        assert [step for tag, step in found if tag == f"thread{n}"] == list(range(1, 200))


def test_an_append_of_one_thread_returns_only_when_its_record_is_written(place, monkeypatch):
    """Also while another thread is in the middle of a write: what returned is with the kernel."""
    file = place.file()
    file.append(scalar(1))
    inside, returned = threading.Event(), threading.Event()
    real, waiting = os.write, []

    def slow(fd: int, data: bytes) -> int:
        if not inside.is_set():
            inside.set()
            returned.wait(0.2)
        return real(fd, data)

    def second() -> None:
        inside.wait()
        file.append(scalar(3))
        waiting.append(file.waiting)
        returned.set()

    monkeypatch.setattr(event_file.os, "write", slow)
    thread = threading.Thread(target=second)
    thread.start()
    file.append(scalar(2))
    thread.join()
    assert waiting == [0]
    assert place.steps() == [1, 2, 3]


def test_a_signal_handler_that_logs_inside_a_write_loses_nothing(place):
    """A timer logs a thousand times a second into the same file: every returned record is there once."""

    def child() -> None:
        file = place.file()
        logged = []

        def handler(*_: object) -> None:
            logged.append(len(logged) + 1)
            file.append(scalar(logged[-1], "signal"))

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
        step = 0
        while len(logged) < 200:
            step += 1
            file.append(scalar(step, "main"))
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert file.waiting == 0
        found = keys(file.path)
        # a handler may be interrupted by the next one before its record is queued: each once, in any order
        assert sorted(s for tag, s in found if tag == "signal") == logged
        assert [s for tag, s in found if tag == "main"] == list(range(1, step + 1))

    assert in_child(child) == 0


def test_a_record_logged_by_a_log_handler_is_written_before_append_returns(place):
    """A program logs warnings into TensorBoard: the warning that the disk is well again comes inside a write."""
    file = place.file()

    class Handler(logging.Handler):
        """Logs each message as a record."""

        def emit(self, record: logging.LogRecord) -> None:
            """Append."""
            file.append(scalar(record.lineno, "warning"))

    handler = Handler()
    logging.getLogger("hf_mpwriter").addHandler(handler)
    try:
        place.refuse = True
        file.append(scalar(1))
        place.refuse = False
        place.now += backlog.RETRY_FIRST
        file.append(scalar(2))
    finally:
        logging.getLogger("hf_mpwriter").removeHandler(handler)
    assert file.waiting == 0
    assert [tag for path in place.paths() for tag, _ in keys(path)].count("warning") == 2
