"""The deferred log: nothing is logged while a lock is held, and nothing is lost."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest
from forks import in_child

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
