"""The step encoder: the bytes of protobuf's own classes, whatever is logged."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from hf_mpwriter.events import framing
from hf_mpwriter.writer.encoder import StepEncoder

TAGS = st.lists(st.text(max_size=300).filter(lambda tag: tag.isprintable()), min_size=1, max_size=30, unique=True)
EDGES = [0, 1, 127, 128, 16_383, 16_384, (1 << 21) - 1, 1 << 21, (1 << 63) - 1, -1, -(1 << 63)]
STEPS = st.sampled_from(EDGES) | st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 1 << 22)
TIMES = st.none() | st.floats(allow_nan=False) | st.just(1_700_000_000.25)


def expected(tags: list[str], wall_time: float | None, step: int, values: list[float]) -> bytes:
    """The record that protobuf's classes make."""
    summary = Summary(
        value=[Summary.Value(tag=tag, simple_value=value) for tag, value in zip(tags, values, strict=True)]
    )
    return framing.frame(Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())


@given(data=st.data(), tags=TAGS, wall_time=TIMES, step=STEPS)
def test_a_record_is_byte_identical_to_protobufs(data, tags, wall_time, step):
    """For any tags, time, step and values, those included that float32 rounds."""
    values = data.draw(st.lists(st.floats(width=32), min_size=len(tags), max_size=len(tags)))
    if wall_time == 0:
        wall_time = None  # proto3 leaves out a zero, of either sign only in one case
    assert StepEncoder(tags).record(wall_time, step, values) == expected(tags, wall_time, step, values)


@pytest.mark.parametrize("step", [5, 200, 20_000, 1 << 30])
def test_as_many_names_as_are_logged(step):
    """Also more numbers than one table of places holds, about fifty."""
    for count in (1, 40, 46, 47, 48, 49, 50, 51, 60, 100, 1000):
        tags = [f"train/metric_{number}" for number in range(count)]
        values = [number / 8 for number in range(count)]
        assert StepEncoder(tags).record(1.5, step, values) == expected(tags, 1.5, step, values)


def test_a_name_of_very_many_different_letters():
    """Its bytes leave room for few numbers in a table."""
    letters = "".join(filter(str.isalnum, map(chr, [*range(0x30, 0x3000, 7), *range(0x3100, 0x1F000, 101)])))
    tags = ["a", letters, "b", letters[::-1], "c"]
    assert StepEncoder(tags).record(1.5, 300, [0.5] * 5) == expected(tags, 1.5, 300, [0.5] * 5)


@given(value=st.floats())
@example(3.5e38)
@example(-1e308)
@example(math.inf)
def test_a_number_beyond_float32_is_infinite(value):
    """With its sign, beside others that stay."""
    record = StepEncoder(["a", "b"]).record(1.0, 5, [value, 0.5])
    event = Event.FromString(record[framing.HEADER_SIZE : -framing.FOOTER_SIZE])
    found, other = [entry.simple_value for entry in event.summary.value]
    assert other == 0.5
    try:
        rounded = framing._FLOAT.unpack(framing._FLOAT.pack(value))[0]
    except OverflowError:
        rounded = math.copysign(math.inf, value)
    assert found == rounded or (math.isnan(found) and math.isnan(rounded))


def test_the_summary_alone_is_the_one_in_the_record():
    """Tools that intercept events get it as a protobuf."""
    encoder = StepEncoder(["a", "b" * 500])
    summary = Summary.FromString(encoder.summary([0.5, 1e300]))
    assert [(value.tag, value.simple_value) for value in summary.value] == [("a", 0.5), ("b" * 500, math.inf)]
    assert Summary.FromString(StepEncoder([""]).summary([1.0])).value[0].tag == ""


def test_as_many_values_as_tags_are_needed():
    """A mapping that another thread changes meanwhile never gives a wrong record."""
    with pytest.raises(ValueError, match="size"):
        StepEncoder(["a", "b"]).record(1.0, 1, [0.5])
