"""Sealing: often enough for the logdir, and rarely enough for a reader of the files."""

from __future__ import annotations

import math

import pytest

from hf_mpwriter.worker.mirroring import Sealing, opened_before

NEVER = -math.inf
HOUR, DAY = 3600.0, 86_400.0


def files_of(duration: float, commit_every: float, *, asks: bool) -> int:
    """The segments that a program makes which logs every five seconds, and may ask for a push each time."""
    opened, files = 0.0, 0
    for now in range(1, int(duration), 5):
        if opened < opened_before(float(now), float(now), commit_every, now if asks else NEVER):
            opened, files = float(now), files + 1
    return files


def test_a_segment_is_sealed_at_the_interval():
    """In a young run that is `commit_every`."""
    assert opened_before(1000.0, HOUR, 5.0, NEVER) == 700.0
    assert opened_before(1000.0, HOUR, 0.5, NEVER) == pytest.approx(1000.0 - HOUR / 64)


@pytest.mark.parametrize("asks", [False, True])
def test_files_stay_few_in_a_long_run(asks):
    """In two days, whatever `commit_every` is, and also if the program asks for a push at every step."""
    assert files_of(2 * DAY, 0.001, asks=asks) < (6000 if asks else 800)
    assert files_of(2 * DAY, 5.0, asks=False) < 320


def test_a_request_seals_what_was_open_then():
    """Not what was opened later, and not at once what was opened just now."""
    assert opened_before(1000.0, HOUR, 5.0, 990.0) == 990.0
    assert opened_before(1000.0, HOUR, 5.0, 999.9) == pytest.approx(1000.0 - HOUR / 512)
    assert opened_before(2000.0, HOUR, 5.0, 990.0) == 1700.0, "the request was met long ago"


class Files:
    """Event files that note what is to be sealed."""

    def __init__(self) -> None:
        self.sealed: list[float] = []

    def seal_older(self, before: float = math.inf) -> None:
        """Note it."""
        self.sealed.append(before)


def test_who_waits_for_a_push_has_all_sealed_at_once():
    """A day-old run would wait for minutes otherwise; one that is not staged seals nothing."""
    files = Files()
    sealing = Sealing(files, lambda: 5.0)
    sealing._clock = lambda: 1000.0
    sealing.request(at_once=True)
    sealing.seal_due()
    assert files.sealed == []
    sealing.made_at = 0.0
    sealing.request(at_once=False)
    assert files.sealed == []
    sealing.request(at_once=True)
    assert files.sealed == [math.inf]
