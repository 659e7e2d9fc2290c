"""One record: the scalars of a framework's step together, and never an error that its own logger does not raise."""

from __future__ import annotations

import pytest
from support import events

from hf_mpwriter import SummaryWriter
from hf_mpwriter.integrations import one_record


def logged(directory) -> list[tuple[int, list[tuple[str, float]]]]:
    """Step and values of each record."""
    found = [event for path in directory.glob("*tfevents*") for event in events(path)[1:]]
    return [(event.step, [(value.tag, value.simple_value) for value in event.summary.value]) for event in found]


def test_the_scalars_of_a_step_are_one_record(tmp_path):
    """And no scalars are none."""
    with SummaryWriter(tmp_path) as writer:
        one_record.add(writer, {"a": 1.0, "b": 2}, 5)
        one_record.add(writer, {}, 6)
    assert logged(tmp_path) == [(5, [("a", 1.0), ("b", 2.0)])]


def test_scalars_without_a_step_count_none(tmp_path):
    """They are at step 0, as in frameworks' own loggers, or at that of the default metadata."""
    with SummaryWriter(tmp_path) as writer:
        for _ in range(2):
            one_record.add(writer, {"a": 1.0, "b": 2.0}, None)
        with writer.use_metadata(global_step=9, walltime=1.0):
            one_record.add(writer, {"a": 1.0}, None)
    assert logged(tmp_path) == [(0, [("a", 1.0)]), (0, [("b", 2.0)])] * 2 + [(9, [("a", 1.0)])]


def test_names_that_a_step_cannot_have_are_logged_as_before(tmp_path):
    """Two names that are equal in the file were never an error of a framework."""
    with SummaryWriter(tmp_path) as writer:
        one_record.add(writer, {"a b": 1.0, "a_b": 2.0}, 5)
        with pytest.raises(TypeError):
            one_record.add(writer, {5: 1.0}, 5)
    assert logged(tmp_path) == [(5, [("a_b", 1.0)]), (5, [("a_b", 2.0)])]


def test_values_are_split_by_their_type():
    """In their order."""
    given = {"a": 1, "t": "text", "b": 0.5, "c": {"x": 1.0}, "d": True}
    assert one_record.split(given) == ({"a": 1, "b": 0.5, "d": True}, {"t": "text", "c": {"x": 1.0}})
