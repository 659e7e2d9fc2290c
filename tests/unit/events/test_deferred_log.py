"""The deferred log: nothing is logged while a lock is held, and nothing is lost."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path

import pytest
from forks import in_child

from hf_mpwriter import SummaryWriter
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.system import locks


@pytest.fixture
def logged(caplog):
    """The messages so far."""
    with caplog.at_level(logging.WARNING):
        yield lambda: caplog.messages


def test_a_warning_comes_after_the_outermost_lock(logged):
    """Also when the locks are different ones, and when one is held twice."""
    first, second = locks.thread_lock(), locks.thread_lock()
    logger.warning("%s", "at once")
    with first:
        with second, second:
            logger.warning("%d records", 3)
        logger.flush()
        assert logged() == ["at once"]
    logger.flush()
    logger.flush()
    assert logged() == ["at once", "3 records"]


def test_a_lock_of_another_thread_delays_nothing(logged):
    """Only the thread that holds a lock has to wait until it is released."""
    lock, held, done = locks.thread_lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    logger.warning("here")
    assert logged() == ["here"]
    done.set()
    holder.join()


def test_the_fork_mutex_counts(logged):
    """A fork that waits for the mutex would wait for a log handler."""
    with locks._mutex:
        logger.warning("later")
        assert logged() == []
    logger.flush()
    assert logged() == ["later"]


def test_a_signal_handler_inside_a_lock_collects(logged):
    """The lock belongs to the interrupted call of the same thread."""
    before = signal.signal(signal.SIGUSR1, lambda *_: logger.warning("from the handler"))
    try:
        with locks.thread_lock():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert logged() == []
        logger.flush()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert logged() == ["from the handler"]


def test_a_forked_child_does_not_log_what_its_parent_collected(logged):
    """Each warning is logged once, by the process that it is about; the child holds no lock of its parent."""
    with locks.thread_lock():
        logger.warning("the parent's")

        def child() -> None:
            logger.flush()
            assert logged() == []
            logger.warning("the child's")
            assert logged() == ["the child's"]

        assert in_child(child) == 0
    logger.flush()
    assert logged() == ["the parent's"]


class FailingHandler(logging.Handler):
    """A handler of the user with a fault of its own."""

    def emit(self, record):
        """Fail, as no handler should."""
        raise RuntimeError(f"cannot handle {record.getMessage()}")


@pytest.fixture
def failing_handler():
    """Every warning of ours meets a handler that fails."""
    handler = FailingHandler()
    logging.getLogger("hf_mpwriter").addHandler(handler)
    yield
    logging.getLogger("hf_mpwriter").removeHandler(handler)


@pytest.mark.usefixtures("failing_handler")
def test_a_handler_that_fails_never_fails_the_call_that_logs(capsys):
    """It is shown on stderr, as `logging` shows what its own handlers raise; later warnings are logged all the same."""
    logger.warning("%s", "first")
    logger.warning("%s", "second")
    shown = capsys.readouterr().err
    assert "cannot handle first" in shown
    assert "cannot handle second" in shown


@pytest.mark.usefixtures("failing_handler")
def test_every_writer_ends_although_a_handler_fails(tmp_path):
    """What is told when an event file was removed reaches the handler from `add_scalar` and from `close`."""
    writers = [SummaryWriter(tmp_path / name) for name in "ab"]
    for writer in writers:
        writer.add_scalar("loss", 1.0, 0)
        remove_event_files(writer.logdir)
        writer._worker.keep_house()
        writer.add_scalar("loss", 1.0, 1)
        remove_event_files(writer.logdir)
        writer.close()
        assert not writer._worker.is_active


def remove_event_files(directory):
    """Remove the event files of a run directory."""
    for path in Path(directory).glob("events.*"):
        path.unlink()
