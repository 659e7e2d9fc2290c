"""What a supervisor does next, for every situation that matters, and which processes it may touch."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.supervisor.decision import (
    KILL_BEFORE,
    LAST_CALL,
    Moment,
    NextStep,
    decide,
    exit_code,
    is_passed_on,
    kill_after,
    remaining,
)
from hf_mpwriter.system.process import Entry

TERM, INT, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1


@pytest.mark.parametrize(
    ("moment", "step"),
    [
        (Moment(100, 25), NextStep.WAIT),  # it works
        (Moment(100, 25, is_impatient=True), NextStep.WAIT),
        (Moment(100, 25, signalled_at=99), NextStep.WAIT),
        (Moment(114.9, 25, signalled_at=100), NextStep.WAIT),
        (Moment(115, 25, signalled_at=100), NextStep.ASK),  # the last call, once
        (Moment(115, 25, signalled_at=100, has_called=True), NextStep.WAIT),
        (Moment(123, 25, signalled_at=100, has_called=True), NextStep.KILL),
        (Moment(123, 25, signalled_at=100, is_drained=True), NextStep.KILL),
        (Moment(125, 25, signalled_at=100), NextStep.LEAVE),  # what SIGKILL does not end ends with this process
        (Moment(110, 25, signalled_at=100, ended_at=109), NextStep.WAIT),  # for the Hub
        (Moment(110, 25, signalled_at=100, ended_at=109, is_drained=True), NextStep.LEAVE),
        (Moment(110, 25, signalled_at=100, ended_at=109, is_impatient=True), NextStep.LEAVE),
        (Moment(125, 25, signalled_at=100, ended_at=109), NextStep.LEAVE),
        (Moment(123, 25, signalled_at=100, ended_at=109, is_alone=False), NextStep.KILL),  # a shell has died
        (Moment(110, 25, signalled_at=100, ended_at=109, is_alone=False, is_drained=True), NextStep.WAIT),
        (Moment(100, 25, ended_at=99), NextStep.WAIT),
        (Moment(100, 25, ended_at=99, is_drained=True), NextStep.LEAVE),
        (Moment(100, 25, ended_at=99, is_alone=False, is_drained=True), NextStep.LEAVE),  # others are the user's
        (Moment(124, 25, ended_at=99), NextStep.LEAVE),
        (Moment(130, 25, signalled_at=120, ended_at=99), NextStep.LEAVE),  # a signal prolongs nothing
    ],
)
def test_the_next_step(moment, step):
    """One row per situation."""
    assert decide(moment) is step


@given(st.floats(0.1, 1e4), st.floats(0, 1e4), st.none() | st.floats(0, 1e4), st.booleans(), st.booleans())
def test_it_ends_within_the_grace_whatever_happens(grace, after, ended_after, is_alone, has_called):
    """With some time left for its last words. And kills before that, but not before half of it."""
    ended = None if ended_after is None else 100 + ended_after
    late = Moment(
        100 + grace - min(0.3, grace / 20) + after, grace, 100, ended, is_alone=is_alone, has_called=has_called
    )
    assert decide(late) is NextStep.LEAVE
    assert grace / 2 <= kill_after(grace) < grace
    assert kill_after(grace) <= max(grace / 2, grace - KILL_BEFORE)
    assert LAST_CALL > 0


@pytest.mark.parametrize(("status", "code"), [(0, 0), (7, 7), (-9, 137), (-15, 143)])
def test_the_exit_code(status, code):
    """128 and the signal, as a shell has it."""
    assert exit_code(status) == code


@pytest.mark.parametrize(
    ("number", "passed", "is_there", "expected"),
    [
        (TERM, [], False, True),
        (TERM, [TERM], False, False),
        (INT, [TERM], False, True),
        (INT, [], True, False),  # Ctrl-C has reached the group
        (USR1, [USR1], False, True),
    ],
)
def test_which_signals_are_passed_on(number, passed, is_there, expected):
    """What ends once, what announces each time."""
    assert is_passed_on(number, passed, is_there=is_there) is expected


def test_what_remains_leaves_out_uploads_and_zombies():
    """With all that an uploader has started; a table with a circle is no trap."""
    table = {
        1: Entry(0, "S", "", 1),
        2: Entry(1, "S", "", 1),  # the program
        3: Entry(2, "S", "", 1),  # its child
        4: Entry(1, "Z", "", 1),
        5: Entry(1, "S", "", 1),  # an uploader
        6: Entry(5, "R", "", 1),  # its push
        7: Entry(4, "S", "", 1),
        8: Entry(8, "S", "", 1),
        9: Entry(99, "S", "", 1),  # of another
    }

    def is_upload(pid: int) -> bool:
        return pid == 5

    assert set(remaining(table, 1, is_upload)) == {2, 3, 7}
    assert set(remaining(table, 1, is_upload, adopted=True)) == {2}
