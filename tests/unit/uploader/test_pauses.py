"""The pauses between ticks: looks at thousands of members take a small share of a core."""

from __future__ import annotations

import pytest

from hf_mpwriter.uploader import decision
from hf_mpwriter.uploader.decision import LONGEST_PAUSE, SHARE


def pause(look_took: float, until_push: float | None = None) -> float:
    """The pause after a look that took so long; with a batch, and when it may be pushed."""
    return decision.pause(1.0, look_took, until_push)


def test_a_look_at_few_members_is_made_at_each_tick():
    """It takes milliseconds."""
    assert pause(0.001) == 1.0


@pytest.mark.parametrize("took", [0.01, 0.015])
def test_looks_at_many_members_take_their_share(took):
    """With 1,000 of them an uploader looks every few seconds."""
    assert pause(took) == pytest.approx(took / SHARE)
    assert 1.0 < pause(took) < LONGEST_PAUSE


def test_no_pause_is_longer_than_the_longest():
    """However many members there are."""
    assert pause(10.0) == LONGEST_PAUSE


@pytest.mark.parametrize(("until_push", "expected"), [(-1.0, 0.0), (0.5, 0.5), (400.0, 1.0)])
def test_a_batch_that_waits_is_pushed_when_that_is_due(until_push, expected):
    """Whatever a look takes."""
    assert pause(10.0, until_push) == expected
