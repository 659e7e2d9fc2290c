"""The lines at the end of a supervised run: each state has one, and it says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hf_mpwriter.base.settings import OFFLINE
from hf_mpwriter.delivery.sentences import RunEnd, report
from hf_mpwriter.delivery.sinks import Carrier, Delivery

WORKS = Carrier(is_alive=True, reason="HTTP 503.")
HUB = Delivery(to="hub/me/run", total=2000)
LATE_HUB = replace(HUB, missing={"e": 500}, carrier=WORKS)
COMPLETE = RunEnd("/runs/a", "/runs/a", (HUB,), is_known=True, is_over=True)
MISSING = replace(COMPLETE, deliveries=(LATE_HUB,), is_over=False)


def told(end: RunEnd, *, is_first: bool = False, is_quiet: bool = False) -> str:
    """The report of one run directory."""
    return report(end, is_first=is_first, is_quiet=is_quiet)


def test_what_is_complete():
    """One line, and none from a rank beside rank 0, or of a run that has logged nothing, or goes nowhere."""
    assert told(COMPLETE) == "all 2.0 kB of /runs/a are on the Hub: hub/me/run"
    assert told(COMPLETE, is_quiet=True) == ""
    assert told(replace(COMPLETE, deliveries=(replace(HUB, total=0),))) == ""
    assert told(replace(COMPLETE, deliveries=())) == ""
    assert told(RunEnd("/runs/a", is_over=True)) == "", "a directory that was removed"


@pytest.mark.parametrize(
    ("end", "more", "shown"),
    [
        (MISSING, {}, ["500 B of the 2.0 kB of /runs/a are not on the Hub yet: HTTP 503. ", "goes on trying"]),
        (MISSING, {"is_quiet": True}, ["goes on trying"]),
        (MISSING, {"is_first": True}, ["ends with this process"]),
        (
            replace(MISSING, deliveries=(replace(LATE_HUB, carrier=Carrier(reason=OFFLINE, hint="Unset it.")),)),
            {},
            [f"not on the Hub: {OFFLINE}. Unset it."],
        ),
        (replace(MISSING, deliveries=(replace(LATE_HUB, carrier=Carrier()),)), {}, ["no uploader runs"]),
        (
            replace(MISSING, deliveries=(replace(LATE_HUB, refused={"e": "e: too large"}),)),
            {},
            ["not on the Hub: e: too large. "],
        ),
        (RunEnd("/runs/a"), {}, ["/runs/a could not be read in time. "]),
        (RunEnd("/runs/a", trouble="No space."), {}, ["in time: No space. "]),
    ],
)
def test_what_is_missing(end, more, shown):
    """Why, what happens next, and the command that finishes it."""
    line = told(end, **more)
    assert [part for part in shown if part not in line] == [], line
    assert line.endswith("hf-mpwriter sync /runs/a")


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (RunEnd("/a", trouble="it is no run", is_over=True), ""),
        (
            RunEnd("/a", trouble="it is no run", is_over=True, is_expected=True),
            "nothing of /a was uploaded: it is no run",
        ),
        (
            RunEnd("/a", trouble="it is gone", is_over=True, is_expected=True, was_sent=True),
            "nothing more of /a was uploaded: it is gone",
        ),
    ],
)
def test_what_was_to_be_followed_and_is_not_there(end, line):
    """It is told of folders that the user has named."""
    assert told(end) == line


THERE = Delivery("in the logdir", "s3://b/a", 2000)
LATE = replace(THERE, missing={"e": 7}, carrier=Carrier("mirror", is_alive=True, reason="no space"))
DEAD = replace(LATE, carrier=Carrier("mirror", reason="no space"))


@pytest.mark.parametrize(
    ("deliveries", "shown"),
    [
        ((HUB, THERE), ["all 2.0 kB of /runs/a are on the Hub: hub/me/run, and in the logdir: s3://b/a"]),
        ((THERE,), ["all 2.0 kB of /runs/a are in the logdir: s3://b/a"]),
        ((HUB, LATE), ["not in the logdir yet: no space. A mirror goes on", "sync s3://b/a"]),
        ((HUB, DEAD), ["no mirror runs. To finish"]),
        ((LATE_HUB, LATE), ["on the Hub yet: HTTP 503. 7 B in 1", "An uploader goes on", "sync s3://b/a"]),
        ((LATE_HUB, THERE), ["on the Hub yet: HTTP 503. An uploader", "sync s3://b/a"]),
    ],
)
def test_of_a_staged_run_both_places_are_told(deliveries, shown):
    """What is where, why, and the one command that finishes both."""
    line = told(replace(MISSING, logdir="s3://b/a", deliveries=deliveries))
    assert [part for part in shown if part not in line] == [], line
