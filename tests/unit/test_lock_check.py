"""The lock check finds a log call under a lock, in this process and in others."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

from programs import succeed

import hf_mpwriter
from hf_mpwriter.system import process_state

PACKAGE = Path(hf_mpwriter.__file__).parent
TRAINING = ("events", "worker", "writer")  # folders whose code runs in training


def test_a_log_call_under_a_lock_is_found(lock_report):
    """Whatever the level is: a handler may be added at any time."""
    with process_state.thread_lock():
        logging.getLogger("anything").debug("under a lock")
    assert "'anything' while it holds a thread lock" in lock_report.read_text()
    lock_report.unlink()
    logging.getLogger("anything").warning("under none")
    assert not lock_report.exists()


CALL = """
import logging
from hf_mpwriter.system import process_state
with process_state.fork_mutex:
    logging.getLogger("anything").info("under a lock")
"""


def test_a_log_call_under_a_lock_is_found_in_a_child(lock_report):
    """A program of a test has the check, too."""
    succeed(CALL)
    assert "'anything' while it holds a thread lock" in lock_report.read_text()
    lock_report.unlink()


def imports(tree: ast.AST) -> set[str]:
    """The names of the modules that are imported as a whole."""
    return {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def test_training_logs_through_the_deferred_log_only():
    """Static, for the calls that no test reaches."""
    users = {
        path.relative_to(PACKAGE).as_posix()
        for folder in TRAINING
        for path in (PACKAGE / folder).glob("*.py")
        if imports(ast.parse(path.read_text())) & {"logging", "warnings"}
    }
    assert users == {"events/deferred_log.py"}


def makes_locks(tree: ast.AST) -> bool:
    """Whether `threading.Lock` or one of its kind is used."""
    kinds = ("Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "Barrier")
    return any(isinstance(node, ast.Attribute) and node.attr in kinds for node in ast.walk(tree))


def test_every_lock_between_threads_is_known():
    """`system/process_state` makes them; `scheduler.lock` is the user's."""
    ours = (path for path in PACKAGE.rglob("*.py") if not {"localhub", "demo"} & set(path.parts))
    makers = {path.relative_to(PACKAGE).as_posix() for path in ours if makes_locks(ast.parse(path.read_text()))}
    assert makers == {"system/process_state.py", "writer/hf_summary_writer.py"}
