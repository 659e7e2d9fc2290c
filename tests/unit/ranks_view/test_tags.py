"""Tags: which ones are times of a step, and what is derived of a tag."""

from __future__ import annotations

import pytest

from hf_mpwriter.ranks_view.tags import derived, is_step_time, origin


@pytest.mark.parametrize(
    "tag",
    [
        *("step_time", "perf/step_time", "perf/train_step_time_ms", "StepTime", "iteration-seconds", "batch duration"),
        *("time_per_step", "seconds_per_step", "sec_per_iter", "s_per_step", "perf/ms_per_batch", "iter_time_s"),
    ],
)
def test_times_of_a_step_are_known_by_the_last_part_of_their_tag(tag):
    """In the spellings that trainers use."""
    assert is_step_time(tag)
    assert derived(tag)[-1] == f"{tag}/slowest_rank"


@pytest.mark.parametrize(
    "tag",
    [
        *("loss", "step", "timestep", "step_timestamp", "steps_per_second", "step_time/forward", "batch_size", "time"),
        *("samples_per_second", "step_timeout", "tokens_per_step", "losses_per_step", "last_step"),
    ],
)
def test_what_only_sounds_like_it_is_none(tag):
    """The slowest rank of a loss means nothing."""
    assert not is_step_time(tag)
    assert derived(tag) == (f"{tag}/mean", f"{tag}/min", f"{tag}/max")


def test_the_origin_of_a_derived_tag_is_its_tag():
    """So a view is continued from what it has derived."""
    assert {origin(name) for name in derived("perf/step_time")} == {"perf/step_time"}
    assert origin("loss") is None
    assert origin("loss/other") is None
