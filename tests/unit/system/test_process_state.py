"""Process state: locks between threads in a forked child; a turn, which one thread has at a time."""

from __future__ import annotations

import os
import sys
import threading

import pytest
from forks import in_child

from hf_mpwriter.system import process_state

STUCK_AFTER = 60.0


class Clock:
    """A clock that stands."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


@pytest.fixture
def clock():
    """Stand at some second."""
    return Clock()


@pytest.fixture
def turn(clock):
    """A turn that nobody has."""
    return process_state.Turn(clock)


def take(turn: process_state.Turn, step=lambda: None) -> bool:
    """Take a turn."""
    return turn.take(step, STUCK_AFTER)


def in_thread(step) -> list:
    """What a step returns in another thread."""
    found = []
    thread = threading.Thread(target=lambda: found.append(step()))
    thread.start()
    thread.join()
    return found


def test_a_child_can_take_what_other_threads_held():
    """They do not live in it, so nobody would ever release the lock."""
    lock, is_held, is_over = process_state.thread_lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            is_held.set()
            is_over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    assert in_child(lambda: os._exit(10 + lock.acquire(blocking=False))) == 11
    is_over.set()
    thread.join()


def test_a_child_holds_what_the_thread_that_forks_held():
    """A signal handler forks inside a call; the child ends the call like the parent, and others wait until then."""
    lock = process_state.thread_lock()

    def child() -> None:
        before = in_thread(lambda: lock.acquire(blocking=False))
        lock.release()
        assert (before, in_thread(lambda: lock.acquire(blocking=False))) == ([False], [True])

    with lock:
        assert in_child(child) == 0


def test_a_turn_is_not_taken_inside_itself_or_by_another_thread(turn):
    """A signal handler that logs, and another thread, go on at once; afterwards the turn is free."""
    found = []
    assert take(turn, lambda: found.extend([take(turn), *in_thread(lambda: take(turn))]))
    assert found == [False, False]
    assert take(turn)
    assert in_thread(lambda: take(turn)) == [True]


def test_an_exception_gives_the_turn_back(turn):
    """An interrupt inside the step, too."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(turn, interrupt)
    assert in_thread(lambda: take(turn)) == [True]


def test_a_step_that_lasts_too_long_counts_as_over(turn, clock):
    """What was stuck may end later: it gives back its own turn, not the one that others have by then."""

    def last() -> None:
        clock.now += STUCK_AFTER
        assert in_thread(lambda: take(turn)) == [False]
        clock.now += 1.0
        assert in_thread(lambda: take(turn, lambda: found.append(in_thread(lambda: take(turn))))) == [True]

    found = []
    assert take(turn, last)
    assert found == [[False]]
    assert take(turn)


def interrupted_at(number: int, turn: process_state.Turn, begun: list[bool]) -> bool:
    """Take a turn with an interrupt before the bytecode of that number, until the step has begun; whether it came."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if frame.f_globals.get("__name__") != process_state.__name__ or begun:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == number:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        take(turn, lambda: begun.append(True))
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupt_at_any_bytecode_leaves_a_turn_that_can_be_taken(clock):
    """Control-C between taking the turn and giving it back: it is free again, at the latest after a while."""
    for number in range(1, 1000):
        turn, begun = process_state.Turn(clock), list[bool]()
        if not interrupted_at(number, turn, begun):
            break
        clock.now += STUCK_AFTER + 1.0
        assert take(turn), f"bytecode {number}"
    assert number > 20, "there were interrupts"
    assert begun
