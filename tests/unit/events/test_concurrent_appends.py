"""Event files under fork, threads and signal handlers that log."""

from __future__ import annotations

import logging
import os
import threading

import pytest
from forks import in_child
from support import keys, scalar

from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.events import event_file


def test_a_child_of_fork_leaves_the_file_to_its_parent(place):
    """It closes, forgets what waits, and writes to a file of its own; the parent's goes on, and each record is once."""
    file = place.file()
    file.append(scalar(1))
    parents = file.path
    file._refuse(OSError("refused"))
    file.append(scalar(2))

    def child() -> None:
        fd = file._series.current.fd
        file.abandon()
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(fd)
        assert (file.waiting, file.dropped, file.is_open) == (0, 0, False)
        file.append(scalar(100))
        assert file.path != parents
        file.close()

    assert in_child(child) == 0
    file.append(scalar(3))
    file.close()
    assert [step for _, step in keys(parents)] == [1, 2, 3]
    assert sorted(place.steps()) == [1, 2, 3, 100]


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
        place.now += USUAL.disk_retry_first
        file.append(scalar(2))
    finally:
        logging.getLogger("hf_mpwriter").removeHandler(handler)
    assert file.waiting == 0
    assert [tag for path in place.paths() for tag, _ in keys(path)].count("warning") == 2
