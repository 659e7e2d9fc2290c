"""The waits that tests shorten."""

from __future__ import annotations

import pytest
import waits

from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.base.timing import USUAL, VARIABLE, Timing


def test_users_have_the_usual_waits():
    """Without the variable, and with an empty one."""
    assert Timing.of({}) == Timing.of({VARIABLE: ""}) == USUAL


def test_the_last_value_of_a_wait_counts():
    """A program of a test adds its own to those of all tests."""
    assert Timing.of({VARIABLE: "quiet_wait=1 quiet_wait=-3e2"}) == Timing(quiet_wait=-300.0)


@pytest.mark.parametrize("text", ["quiet_wait", "quiet_wait=", "quiet_wait=soon", "quietwait=1", "=1", "1"])
def test_a_wait_that_does_not_exist_or_is_no_number_is_refused(text):
    """A test that shortens nothing is not to pass unseen."""
    with pytest.raises(SettingsError, match=VARIABLE):
        Timing.of({VARIABLE: text})


def test_the_waits_of_tests_exist():
    """They are those of a process that reads them."""
    assert Timing.of({VARIABLE: waits.timing(quiet_wait=7.0)}) == Timing(**waits.HURRIED | {"quiet_wait": 7.0})
