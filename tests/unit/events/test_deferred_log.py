"""The deferred log: nothing is logged while a lock is held, and nothing is lost."""

from __future__ import annotations

import logging
import threading

import pytest
from forks import in_child
from programs import run_python

from hf_mpwriter.events.deferred_log import DeferredLog, logger
from hf_mpwriter.system import process_state


@pytest.fixture
def logged(caplog):
    """The messages so far."""
    with caplog.at_level(logging.WARNING):
        yield lambda: caplog.messages


def test_a_warning_comes_after_the_outermost_lock(logged):
    """Also when the locks are different ones, and when one is held twice."""
    first, second = process_state.thread_lock(), process_state.thread_lock()
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
    lock, held, done = process_state.thread_lock(), threading.Event(), threading.Event()

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
    with process_state.fork_mutex:
        logger.warning("later")
        assert logged() == []
    logger.flush()
    assert logged() == ["later"]


def test_a_forked_child_does_not_log_what_its_parent_collected(logged):
    """Each warning is logged once, by the process that it is about; the child holds no lock of its parent."""
    with process_state.thread_lock():
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
    with process_state.thread_lock():
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
