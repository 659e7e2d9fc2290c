"""The lines at the end of a supervised run: each state has one, and it says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hf_mpwriter.spool.staging.logdir import Shortfall
from hf_mpwriter.supervisor.drain import Delivered, lines

COMPLETE = Delivered("/runs/a", "hub/me/run", 2000, {}, is_known=True, is_over=True)
MISSING = Delivered("/runs/a", "hub/me/run", 2000, {"e": 500}, "HTTP 503.", is_known=True, is_alive=True)


def told(outcome: Delivered, *, is_first: bool = False, is_offline: bool = False, is_quiet: bool = False) -> list[str]:
    """The report of one run directory."""
    return list(lines([outcome], is_first=is_first, is_offline=is_offline, is_quiet=is_quiet))


def test_what_is_complete():
    """One line, and none from a rank beside rank 0, or of a run that has logged nothing."""
    assert told(COMPLETE) == ["all 2.0 kB of /runs/a are on the Hub: hub/me/run"]
    assert told(COMPLETE, is_quiet=True) == []
    assert told(Delivered("/runs/a", "hub/me/run", 0, {}, is_known=True)) == []
    assert told(Delivered("/runs/a", is_over=True)) == [], "a directory that was removed"


@pytest.mark.parametrize(
    ("outcome", "more", "shown"),
    [
        (MISSING, {}, ["500 B of the 2.0 kB of /runs/a are not on the Hub yet: HTTP 503. ", "goes on trying"]),
        (MISSING, {"is_quiet": True}, ["goes on trying"]),
        (MISSING, {"is_first": True}, ["ends with this process"]),
        (MISSING, {"is_offline": True}, ["HF_HUB_OFFLINE is set"]),
        (Delivered("/runs/a", "d", 9, {"e": 9}, is_known=True), {}, ["no uploader runs"]),
        (Delivered("/runs/a"), {}, ["/runs/a could not be read in time. "]),
        (Delivered("/runs/a", reason="No space."), {}, ["in time: No space. "]),
    ],
)
def test_what_is_missing(outcome, more, shown):
    """Why, what happens next, and the command that finishes it."""
    (line,) = told(outcome, **more)
    assert [part for part in shown if part not in line] == [], line
    assert line.endswith("hf-mpwriter sync /runs/a")


THERE = Shortfall("/stage/a", "s3://b/a")
LATE = Shortfall("/stage/a", "s3://b/a", {"e": 7}, reason="no space", is_alive=True)


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        (replace(COMPLETE, logdir=THERE), ["all 2.0 kB of /runs/a are in s3://b/a, and on the Hub: hub/me/run"]),
        (replace(COMPLETE, destination="", logdir=THERE), ["all 2.0 kB of /runs/a are in s3://b/a"]),
        (replace(COMPLETE, logdir=LATE), ["not in s3://b/a yet: no space. A mirror goes on", "sync s3://b/a"]),
        (replace(COMPLETE, logdir=replace(LATE, is_alive=False)), ["no mirror runs. To finish"]),
        (replace(MISSING, logdir=LATE), ["on the Hub yet: HTTP 503. 7 B in 1", "An uploader goes on", "sync s3://b/a"]),
        (replace(MISSING, logdir=THERE), ["on the Hub yet: HTTP 503. An uploader", "sync s3://b/a"]),
    ],
)
def test_of_a_staged_run_both_places_are_told(outcome, shown):
    """What is where, why, and the one command that finishes both."""
    (line,) = told(outcome)
    assert [part for part in shown if part not in line] == [], line
