"""Sources and rates: what fails is told once, and what was reset has no rate."""

from __future__ import annotations

import logging

from hf_mpwriter.sampler.sources import Rates, Sources


def test_a_source_that_fails_is_told_once_and_the_others_go_on(caplog):
    """Whatever it raises; after it has worked again, the next failure is told."""
    outcomes = [ValueError("no driver"), ValueError("no driver"), {"gpu": 1.0}, ValueError("no driver"), KeyError()]

    def broken() -> dict[str, float]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    sources = Sources({"GPU 0": broken, "cpu": lambda: {"cpu": 2.0}})
    with caplog.at_level(logging.INFO):
        found = [sources.sample() for _ in range(5)]
    assert found == [{"cpu": 2.0}, {"cpu": 2.0}, {"gpu": 1.0, "cpu": 2.0}, {"cpu": 2.0}, {"cpu": 2.0}]
    assert [record.getMessage().partition(":")[2] for record in caplog.records] == [
        " ValueError: no driver",
        " ValueError: no driver",
        " KeyError: ",
    ]


def test_a_counter_that_is_new_or_was_reset_has_no_rate():
    """An interface that comes and goes must not show as a peak, nor below zero."""
    rates = Rates()
    rates.of({"sent": 5000}, 10.0)
    assert rates.of({"sent": 100, "received": 9000}, 11.0) == {}
    assert rates.of({"sent": 300, "received": 9000}, 13.0) == {"sent": 100.0, "received": 0.0}
    assert rates.of({"sent": 400}, 13.0) == {}, "no time has passed"
