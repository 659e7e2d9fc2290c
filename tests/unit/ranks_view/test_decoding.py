"""Decoding: the same scalars as the protobuf classes find, whatever stands in a file."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

from hf_mpwriter.events import framing
from hf_mpwriter.ranks_view.decoding import MOST_ALIKE, Decoder

TAGS = st.sampled_from(["a", "b", "loss", "perf/step_time", "x" * 130, "ä/ö"]) | st.text(min_size=1, max_size=5)
FLOATS = st.floats(width=32)
STEPS = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 300)


@st.composite
def values(draw):
    """A value of a summary: mostly a scalar, with metadata now and then."""
    kind = draw(st.sampled_from(["scalar"] * 6 + ["metadata", "histogram", "text", "nameless"]))
    value = Summary.Value(tag="" if kind == "nameless" else draw(TAGS))
    if kind == "histogram":
        value.histo.num = 3
    elif kind == "text":
        value.tensor.string_val.append(b"text")
    else:
        value.simple_value = draw(FLOATS)
    if kind == "metadata":
        value.metadata.CopyFrom(SummaryMetadata(display_name=draw(TAGS)))
    return value


@st.composite
def events(draw):
    """An event as it may stand in a file."""
    event = Event(wall_time=draw(st.floats(1, 4e9)), step=draw(STEPS))
    kind = draw(st.sampled_from(["summary"] * 6 + ["start", "stop", "version", "empty"]))
    if kind == "summary":
        event.summary.value.extend(draw(st.lists(values(), max_size=5)))
    elif kind in ("start", "stop"):
        event.session_log.status = SessionLog.START if kind == "start" else SessionLog.STOP
    elif kind == "version":
        event.file_version = "brain.Event:2"
    return event


def expected(event):
    """What a row of an event says, None if there is none."""
    if event.HasField("session_log"):
        return (event.step, None, ()) if event.session_log.status == SessionLog.START else None
    scalars = [value for value in event.summary.value if value.HasField("simple_value") and value.tag]
    tags = tuple(value.tag for value in scalars)
    return (event.step, tags, bits(value.simple_value for value in scalars)) if tags else None


def bits(numbers):
    """Numbers that are compared by their bytes, as NaN equals nothing."""
    return tuple(struct.pack("<f", number) for number in numbers)


@settings(max_examples=150, deadline=None)
@given(st.lists(events(), max_size=12), st.integers(0, 40), st.data())
def test_the_rows_are_what_the_protobuf_classes_find(found, repeats, data):
    """Also where records repeat with other numbers, so that a layout is known, and the last one is cut off."""
    for _ in range(repeats if found else 0):
        again = Event.FromString(data.draw(st.sampled_from(found)).SerializeToString())
        for value in again.summary.value:
            if value.HasField("simple_value"):
                value.simple_value = data.draw(FLOATS)
        found.append(again)
    records = [framing.frame(event.SerializeToString()) for event in found]
    chunk = b"".join(records)
    cut = data.draw(st.integers(0, len(records[-1]) - 1)) if records else 0
    whole = len(chunk) - len(records[-1]) if records else 0
    decoder = Decoder()
    for _ in range(2):  # the second time all layouts are known
        read = decoder.read(chunk)
        assert read.end == len(chunk)
        wanted = [row for event in found if (row := expected(event)) is not None]
        assert [(row.step, row.tags, bits(row.values)) for row in read.rows] == wanted
        starts, position = [], 0
        for event, record in zip(found, records, strict=True):
            starts += [position] if expected(event) else []
            position += len(record)
        assert [row.start for row in read.rows] == starts
        torn = decoder.read(chunk[: whole + cut])
        assert torn.end == whole
        assert torn.needed in (0, len(records[-1]) if records else 0)


def test_nothing_behind_damage_is_read():
    """Neither a length nor a payload that its checksum does not fit is taken, as no reader gets behind it."""
    record = framing.ScalarEncoder("loss").record(1.0, 7, 0.5)
    for at in (2, 9, 20, len(record) - 1):
        damaged = bytearray(record)
        damaged[at] ^= 1
        read = Decoder().read(record + bytes(damaged) + record)
        assert (len(read.rows), read.end, read.needed) == (1, len(record), -1)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_no_payload_raises(payload, with_head):
    """Whatever a record holds, it is passed over or read."""
    head = b"\x09" + struct.pack("<d", 1.0) + b"\x2a" if with_head else b""
    record = framing.frame(head + payload)
    assert Decoder().read(record).end == len(record)


def test_many_records_of_one_length_are_told_apart():
    """Layouts beyond those that are kept are parsed, with the same result."""
    decoder = Decoder()
    chunk = b""
    for number in range(4 * MOST_ALIKE):
        event = Event(wall_time=1.0, step=number)
        for name in ("a", "b"):
            event.summary.value.add(tag=f"{name}/{number:03d}", simple_value=number)
        chunk += framing.frame(event.SerializeToString())
    for _ in range(2):
        rows = decoder.read(chunk).rows
        assert [row.tags for row in rows] == [(f"a/{n:03d}", f"b/{n:03d}") for n in range(4 * MOST_ALIKE)]
        assert [row.values for row in rows] == [(n, n) for n in range(4 * MOST_ALIKE)]
