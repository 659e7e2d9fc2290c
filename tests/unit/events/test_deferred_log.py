"""The deferred log: nothing is logged while a lock is held, and nothing is lost."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from forks import in_child
from programs import DEADLINE, run_python

from hf_mpwriter import SummaryWriter
from hf_mpwriter.events.deferred_log import DeferredLog, logger
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


SPEAKS = """
import logging, os, multiprocessing
from hf_mpwriter.events.deferred_log import logger
{}
def say(who):
    logger.info("%s informs", who)
    logger.warning("%s warns", who)
if __name__ == "__main__":
    say("it")
    {}
"""
SPOKEN = "hf_mpwriter: {0} informs\nhf_mpwriter: {0} warns\n"
BOTH = SPOKEN.format("it")


@pytest.mark.parametrize(
    ("before", "after", "printed"),
    [
        ("", "", BOTH),
        ("logging.basicConfig()", "", "WARNING:hf_mpwriter:it warns\n"),
        ("logging.basicConfig(level='INFO')", "", "INFO:hf_mpwriter:it informs\nWARNING:hf_mpwriter:it warns\n"),
        ("logging.getLogger('hf_mpwriter').addHandler(logging.NullHandler())", "", ""),
        ("logging.getLogger('hf_mpwriter').setLevel('WARNING')", "", "hf_mpwriter: it warns\n"),
        ("logging.getLogger('hf_mpwriter').disabled = True", "", ""),
        ("logging.disable(logging.INFO)", "", "hf_mpwriter: it warns\n"),
        ("import sys; sys.stderr = None", "", ""),
        ("", "logging.basicConfig(); say('later')", f"{BOTH}WARNING:hf_mpwriter:later warns\n"),
        ("", "pid = os.fork(); say('one' if pid else 'it') if not pid else os.waitpid(pid, 0)", 2 * BOTH),
    ],
)
def test_lines_are_seen_once_and_as_the_user_has_configured_it(before, after, printed):
    """Without a handler they go to stderr with our name, and information is seen too; with one, it alone decides."""
    ran = run_python(SPEAKS.format(before, after))
    assert (ran.returncode, ran.stderr) == (0, printed)


def test_a_spawned_child_is_heard_as_its_parent_is(tmp_path):
    """It has no handler either."""
    program = tmp_path / "spawns.py"
    body = 'child = multiprocessing.get_context("spawn").Process(target=say, args=("child",))\n'
    program.write_text(SPEAKS.format("", f"{body}    child.start()\n    child.join()"))
    ran = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert ran.stderr == BOTH + SPOKEN.format("child")


def test_a_filter_of_the_logger_holds_without_a_handler_too(capsys):
    """Secrets are redacted by one, see `system/redaction`."""
    own = DeferredLog("hf_mpwriter.of_this_test")
    own._logger.propagate = False
    own._logger.addFilter(lambda record: "secret" not in record.getMessage())
    own.info("a %s", "secret")
    own.info("a line")
    assert capsys.readouterr().err == "hf_mpwriter.of_this_test: a line\n"


class Interrupts(logging.Handler):
    """A handler in which the user presses Control-C."""

    def emit(self, record):
        """Be interrupted."""
        raise KeyboardInterrupt(record.getMessage())


def test_an_interrupt_in_a_handler_costs_its_line_and_blocks_no_later_one(logged):
    """What was collected behind it is logged by the next call."""
    handler = Interrupts()
    with locks.thread_lock():
        logger.info("first")
        logger.warning("second")
    logging.getLogger("hf_mpwriter").addHandler(handler)
    logging.getLogger("hf_mpwriter").setLevel(logging.INFO)
    try:
        with pytest.raises(KeyboardInterrupt):
            logger.flush()
    finally:
        logging.getLogger("hf_mpwriter").removeHandler(handler)
        logging.getLogger("hf_mpwriter").setLevel(logging.NOTSET)
    logger.warning("third")
    assert logged()[-2:] == ["second", "third"]


class Writes(logging.Handler):
    """A handler that logs through our writer, and through our logger."""

    def __init__(self, writer):
        super().__init__()
        self.writer, self.depth = writer, 0

    def emit(self, record):
        """Log a scalar, and one line more."""
        self.depth += 1
        if self.depth < 3:
            self.writer.add_scalar(f"lines/{record.levelname}", float(self.depth), self.depth)
            logger.warning("a line in a line")


def test_a_handler_that_logs_through_our_writer_is_called_without_our_locks(tmp_path):
    """Neither it nor another thread waits: the fixture of the locks fails the test if one is held."""
    with SummaryWriter(tmp_path / "run") as writer:
        writer.add_scalar("loss", 1.0, 0)
        handler = Writes(writer)
        logging.getLogger("hf_mpwriter").addHandler(handler)
        try:
            remove_event_files(tmp_path / "run")
            writer._worker.keep_house()
            logger.warning("outside")
        finally:
            logging.getLogger("hf_mpwriter").removeHandler(handler)
        assert handler.depth >= 3
