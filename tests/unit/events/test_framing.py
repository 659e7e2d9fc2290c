"""Records: byte-identical to protobuf and tensorboardX, and cut only where a whole one ends."""

from __future__ import annotations

import math
import os
import struct
import time
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support import scalar
from tensorboard.compat.proto import event_pb2 as tensorboard_event_pb2
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from hf_mpwriter.events import framing
from hf_mpwriter.events.last_step import last_step
from hf_mpwriter.system.directory import Directory

PAYLOADS = st.lists(st.binary(max_size=30), max_size=6)


def memory_file(content: bytes) -> int:
    """A descriptor of a file with this content."""
    fd = os.memfd_create("events")
    os.write(fd, content)
    return fd


def ending(data: bytes, start: int = 0, end: int | None = None) -> framing.WholeEnd:
    """`framing.ending` of a file with this content."""
    fd = memory_file(data)
    try:
        return framing.ending(fd, start, end)
    finally:
        os.close(fd)


def whole_length(data: bytes, start: int = 0, end: int | None = None) -> int:
    """Where its whole records end."""
    return ending(data, start, end).offset


def boundaries(payloads: list[bytes]) -> list[int]:
    """Where records end, 0 included."""
    ends = [0]
    for payload in payloads:
        ends.append(ends[-1] + len(framing.frame(payload)))
    return ends


TAG = st.text(st.characters(exclude_categories=["Cs"])) | st.text("ü", min_size=50, max_size=140)
VALUE = st.floats(width=32) | st.floats(-1e38, 1e38) | st.sampled_from([0.0, -0.0, 5e-324, 3.4028235e38])


@given(
    wall_time=st.floats(allow_nan=False).filter(bool) | st.just(0.0),
    step=st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 300) | st.integers(2**14 - 2, 2**21 + 2),
    values=st.lists(st.tuples(TAG, VALUE), min_size=1, max_size=30),
)
@example(wall_time=1.0, step=127, values=[("t" * 118, 1.0)])
@example(wall_time=1.0, step=128, values=[("t" * 119, 1.0)])
@example(wall_time=1.0, step=1, values=[("t" * 119, 0.5)])
@example(wall_time=1.0, step=1, values=[("t" * 120, math.nan)])
@example(wall_time=1.0, step=1, values=[("", math.inf)])
@example(wall_time=1.0, step=2**14 - 1, values=[("t", 1.0)])
@example(wall_time=1.0, step=2**14, values=[(f"train/metric_{number}", number / 8) for number in range(1000)])
@example(wall_time=1.0, step=2**21 - 1, values=[("t", 1.0)])
@example(wall_time=1.0, step=2**21, values=[("t", 1.0)])
@hypothesis_settings(max_examples=150)
def test_hand_encoded_scalars_are_what_protobuf_writes(wall_time, step, values):
    """Byte for byte, over tags, times, steps, signs and special values; one scalar, and all of a step."""
    tags, numbers = zip(*values, strict=True)
    one = framing.ScalarEncoder(tags[0]).record(wall_time, step, numbers[0])
    several = framing.StepEncoder(tags).record(wall_time, step or 0, numbers)
    for encoded, logged in ((one, values[:1]), (several, values)):
        event = event_pb2.Event(wall_time=wall_time, step=step)
        for tag, value in logged:
            event.summary.value.add(tag=tag, simple_value=value)
        assert encoded == framing.frame(event.SerializeToString())
    assert framing.scalars(values) == event.summary.SerializeToString()


@given(value=st.floats(), step=st.sampled_from([0, 5]))
@example(value=3.5e38, step=0)
@example(value=-1e308, step=5)
@example(value=3.4028236e38, step=5)
def test_a_value_too_large_for_float32_becomes_infinite(value, step):
    """With its sign, beside others that stay; nothing is raised into training."""
    try:
        rounded = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        rounded = math.copysign(math.inf, value)
    encoder = framing.StepEncoder(["a", "b" * 500])
    for record in (framing.ScalarEncoder("a").record(1.0, step, value), encoder.record(1.0, step, [value, 0.5])):
        event = event_pb2.Event.FromString(record[framing.HEADER_SIZE : -framing.FOOTER_SIZE])
        found, *others = [entry.simple_value for entry in event.summary.value]
        assert found == rounded or (math.isnan(found) and math.isnan(rounded))
        assert others in ([], [0.5])
    assert encoder.summary([value, 0.5]) == event.summary.SerializeToString(), "what tools that intercept events get"


@pytest.mark.parametrize("step", [0, 1])
def test_as_many_values_as_tags_are_needed(step):
    """A mapping that another thread changes meanwhile never gives a wrong record."""
    with pytest.raises(ValueError, match="size"):
        framing.StepEncoder(["a", "b"]).record(1.0, step, [0.5])


@pytest.mark.parametrize("step", [2**63, -(2**63) - 1])
def test_a_step_beyond_64_bits_is_a_value_error(step):
    """As with the protobuf classes."""
    with pytest.raises(ValueError, match="64 bits"):
        framing.ScalarEncoder("").record(1.0, step, 1.0)
    with pytest.raises(ValueError, match="64 bits"):
        framing.StepEncoder(["a"]).record(1.0, step, [1.0])


@given(st.floats(allow_nan=False).filter(bool), st.integers(-(2**63), 2**63 - 1))
def test_version_and_start_are_what_protobuf_writes(wall_time, step):
    """The first records of a file, byte for byte."""
    version = event_pb2.Event(wall_time=wall_time, file_version="brain.Event:2")
    assert framing.version_event(wall_time) == version.SerializeToString()
    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    start = event_pb2.Event(wall_time=wall_time, step=step, session_log=log)
    assert framing.session_start_event(wall_time, step) == start.SerializeToString()


@given(st.text("0123456789abcdef", max_size=16), st.text("0123456789abcdef", min_size=1, max_size=16))
def test_a_mark_is_the_name_of_the_writer_and_is_found_again(mark, other):
    """Readers of TensorBoard know the field, and the first record has the mark that it was given, and no other."""
    payload = framing.version_event(1.0, mark)
    event = tensorboard_event_pb2.Event.FromString(payload)
    assert (event.file_version, event.wall_time) == ("brain.Event:2", 1.0)
    assert event.source_metadata.writer == (f"hf_mpwriter {mark}" if mark else "")
    assert framing.has_mark(payload, mark) == bool(mark)
    assert framing.has_mark(payload, other) == (mark == other)


@given(PAYLOADS)
def test_the_framing_is_tensorboardx(tmp_path_factory, payloads):
    """The same bytes as its RecordWriter; the same payloads when read."""
    path = str(tmp_path_factory.mktemp("records") / "file")
    writer = RecordWriter(path)
    for payload in payloads:
        writer.write(payload)
    writer.close()
    with open(path, "rb") as file:
        assert b"".join(map(framing.frame, payloads)) == file.read()
    assert list(framing.payloads(path)) == payloads


def test_a_file_cut_at_any_byte_ends_at_its_last_whole_record():
    """Every byte of a small file, from the beginning and from every known boundary, with and without a limit."""
    payloads = [framing.version_event(1.0), *(scalar(n, "t" * n) for n in range(5)), b"", bytes(40)]
    data, ends = b"".join(map(framing.frame, payloads)), boundaries(payloads)
    for cut in range(len(data) + 1):
        right = max(end for end in ends if end <= cut)
        assert ending(data[:cut]) == (right, False), "it is no damage"
        assert whole_length(data[:cut]) == right
        assert whole_length(data, 0, cut) == right
        for start in (end for end in ends if end <= cut):
            assert whole_length(data[:cut], start) == right
            assert whole_length(data, start, cut) == right


@given(PAYLOADS.filter(bool), st.data())
def test_a_flipped_bit_ends_the_file_before_its_record(payloads, data):
    """Wherever the damage is (length, checksum, payload), what is published ends before it."""
    content, ends = bytearray(b"".join(map(framing.frame, payloads))), boundaries(payloads)
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    assert whole_length(bytes(content)) == max(end for end in ends if end <= bit // 8)
    assert ending(bytes(content)).is_damaged


@given(PAYLOADS, st.binary(max_size=60) | st.integers(0, 80).map(bytes))
def test_garbage_behind_whole_records_is_not_counted(payloads, garbage):
    """Zeros after a power cut, anything else: the end stays a boundary and nothing before it is lost."""
    data = b"".join(map(framing.frame, payloads))
    found = whole_length(data + garbage)
    assert found >= len(data)
    assert whole_length((data + garbage)[:found]) == found
    if not garbage.strip(b"\0"):
        assert found == len(data)


@pytest.mark.parametrize("block", [12, 512, 4096, 3 << 20])
@pytest.mark.parametrize("behind", [b"", framing.frame(b"x")])
def test_a_block_of_zeros_behind_whole_records_is_damage(block, behind):
    """What a network filesystem leaves after a crash, at the end or in the middle."""
    data = b"".join(map(framing.frame, [b"a", b"b"]))
    assert ending(data + bytes(block) + behind) == (len(data), True)


def test_a_large_record_is_incomplete_or_damaged():
    """Also one that is longer than a chunk."""
    data = framing.frame(b"a")
    large = framing.frame(bytes(3 << 20))
    assert ending(data + large[:-1]) == (len(data), False)
    assert ending(data + large[:-1] + b"?") == (len(data), True)
    assert ending(data + large[: 2 << 20] + b"?" + large[(2 << 20) + 1 :]) == (len(data), True)


@given(PAYLOADS, st.integers(framing.HEADER_SIZE, 40), st.data())
def test_the_size_of_the_reads_does_not_matter(payloads, chunk, data):
    """Records longer than a chunk, chunks that end within a header: the same end."""
    content = b"".join(map(framing.frame, payloads))
    cut = data.draw(st.integers(0, len(content)))
    expected = whole_length(content[:cut])
    before = framing.CHUNK
    framing.CHUNK = chunk
    try:
        assert whole_length(content[:cut]) == expected
        assert whole_length(content, 0, cut) == expected
    finally:
        framing.CHUNK = before


def test_a_record_that_claims_more_than_its_file_costs_no_memory():
    """A sound header of a length of exabytes: nothing is read for it."""
    packed = struct.pack("<Q", 1 << 60)
    header = packed + struct.pack("<I", framing.masked_crc(packed))
    sound = framing.frame(b"x")
    assert whole_length(sound + header + b"y" * 50) == len(sound)


def test_payloads_stop_at_the_end_that_is_asked_for(tmp_path):
    """Reading up to a length gives the records that are whole within it."""
    path = tmp_path / "file"
    payloads = [b"a", b"bb", b"ccc"]
    path.write_bytes(b"".join(map(framing.frame, payloads)) + b"torn")
    ends = boundaries(payloads)
    assert list(framing.payloads(str(path))) == payloads
    assert list(framing.payloads(str(path), ends[2])) == payloads[:2]
    assert list(framing.payloads(str(path), ends[2] - 1)) == payloads[:1]


def sparse(path, announced: int, crc: int | None = None) -> int:
    """A file that is nothing but a sound header, a hole of so many bytes, and a checksum; a descriptor of it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, framing.frame(b"x") + framing.header(announced))
    end = os.fstat(fd).st_size + announced
    os.pwrite(fd, struct.pack("<I", 0 if crc is None else crc), end)
    return fd


@pytest.mark.parametrize("announced", [100 << 20, 200 << 30, (1 << 63) - 1])
def test_memory_does_not_grow_with_what_a_header_announces(tmp_path, announced):
    """A record of a hundred megabytes is checked in pieces; one that no program could parse is damage, unread."""
    try:
        fd = sparse(tmp_path / "file", announced)
    except (OSError, OverflowError):  # no filesystem holds so much: only the header is there
        fd = memory_file(framing.frame(b"x") + framing.header(announced))
    tracemalloc.start()
    before = time.thread_time()
    try:
        assert framing.ending(fd) == (len(framing.frame(b"x")), True)
        assert [payload for _, payload in framing.records(fd, 0, 1 << 62)[0]] == [b"x"]
        assert list(framing.payloads(fd)) == [b"x"]
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        assert time.thread_time() - before < 5
    finally:
        tracemalloc.stop()


def test_a_long_record_is_whole_if_its_checksum_holds(tmp_path):
    """As one of ordinary length; its reader gets the beginning, in which step and tag are."""
    head, length = framing.summary_event(1.0, 7, framing.value_head("loss") + bytes(4)), 65 << 20
    fd = sparse(tmp_path / "file", length, framing.masked_crc(head + bytes(length - len(head))))
    start = len(framing.frame(b"x"))
    os.pwrite(fd, head, start + framing.HEADER_SIZE)
    size = os.fstat(fd).st_size
    assert framing.ending(fd) == (size, False)
    assert framing.ending(fd, 0, size - 1) == (start, False)
    ((at, payload),), end = framing.records(fd, start, size)
    assert (at, len(payload), framing.step_of(payload), end) == (start, framing.BEGINNING, 7, size)
    os.ftruncate(fd, size - 1)
    assert framing.ending(fd) == (start, False)
    assert framing.records(fd, start, size) == ([], start)
    assert last_step(Directory(tmp_path) / "", None) is None
    os.pwrite(fd, framing.masked_crc(head + bytes(length - len(head))).to_bytes(4, "little"), size - 4)
    os.rename(tmp_path / "file", tmp_path / "events.out.tfevents.1.h")
    assert last_step(Directory(tmp_path) / "") == last_step(Directory(tmp_path) / "", "loss") == 7
