"""What a bucket has of an event file in addition comes as whole records, and only where it continues what is here."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.events import framing
from hf_mpwriter.pull import bucket
from hf_mpwriter.pull.bucket import UnfitError, extend
from hf_mpwriter.system.directory import at

BYTES = random.Random(7).randbytes
RECORDS = [framing.frame(BYTES(size)) for size in (30, 0, 200, 5, 90)]
WHOLE = b"".join(RECORDS)
ENDS = [len(b"".join(RECORDS[:number])) for number in range(len(RECORDS) + 1)]


def reader(content: bytes, *, most: int = 1 << 30):
    """Ranges of some content; `most`: bytes of the longest that may be asked for."""

    def read(start: int, length: int) -> bytes:
        assert 0 < length <= most
        return content[start : start + length]

    return read


@given(here=st.integers(0, len(WHOLE)), there=st.integers(0, len(WHOLE)), piece=st.integers(80, 500))
def test_what_is_here_is_always_a_beginning_that_ends_as_the_bucket_does(tmp_path_factory, here, there, piece):
    """Whatever beginnings both are, torn or not, nothing becomes shorter; what comes ends with a whole record."""
    place = at(tmp_path_factory.mktemp("run") / "events")
    with open(place.way, "wb") as file:
        file.write(WHOLE[:here])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bucket, "PIECE", piece)
        end = extend(place, there, reader(WHOLE[:there]))
    whole_here, whole_there = (max(end for end in ENDS if end <= length) for length in (here, there))
    with open(place.way, "rb") as file:
        assert file.read() == WHOLE[: max(here, whole_there)]
    assert end == max(whole_here, whole_there)


def test_a_file_that_is_not_here_appears_with_its_first_records(tmp_path):
    """Where nothing whole came, no file is made."""
    place = at(tmp_path / "events")
    assert extend(place, 7, reader(WHOLE[:7])) == 0
    assert not place.exists()
    assert extend(place, len(WHOLE), reader(WHOLE)) == len(WHOLE)


BEGINNINGS = {"whole": WHOLE[: ENDS[2]], "text": b"text of a user", "torn": WHOLE[: ENDS[1]] + b"torn, of another"}


@pytest.mark.parametrize("here", BEGINNINGS.values(), ids=BEGINNINGS)
def test_a_file_that_the_bucket_does_not_continue_is_left_alone(tmp_path, here):
    """Its last bytes differ from those of the bucket, whole or not."""
    (tmp_path / "events").write_bytes(here)
    other = b"".join(framing.frame(BYTES(size)) for size in (30, 0, 200, 5))
    assert extend(at(tmp_path / "events"), len(other), reader(other)) is None
    assert (tmp_path / "events").read_bytes() == here


def test_zeros_of_a_power_cut_are_written_over(tmp_path):
    """They stand where content was not durable."""
    (tmp_path / "events").write_bytes(WHOLE[: ENDS[2]] + b"\0" * 40)
    assert extend(at(tmp_path / "events"), len(WHOLE), reader(WHOLE)) == len(WHOLE)
    assert (tmp_path / "events").read_bytes() == WHOLE


def test_what_is_not_a_record_is_not_appended(tmp_path):
    """Whole records before it are; garbage, a wrong checksum and a length that no record has are named."""
    damaged = bytearray(WHOLE)
    damaged[ENDS[3] - 1] ^= 1
    with pytest.raises(UnfitError, match="not a record"):
        extend(at(tmp_path / "events"), len(damaged), reader(bytes(damaged)))
    assert (tmp_path / "events").read_bytes() == WHOLE[: ENDS[2]]
    length = struct.pack("<Q", 1 << 60)
    announced = WHOLE + length + struct.pack("<I", framing.masked_crc(length)) + bytes(100)
    with pytest.raises(UnfitError, match="not a record"):
        extend(at(tmp_path / "more"), len(announced), reader(announced))
    assert (tmp_path / "more").read_bytes() == WHOLE


def test_a_long_record_comes_at_once_and_one_that_is_too_long_never(tmp_path, monkeypatch):
    """No more is asked for than a piece, or one record."""
    monkeypatch.setattr(bucket, "PIECE", 100)
    monkeypatch.setattr(bucket, "LONGEST", 300)
    long = WHOLE + framing.frame(bytes(250)) + framing.frame(b"the end")
    assert extend(at(tmp_path / "events"), len(long), reader(long, most=400)) == len(long)
    too_long = WHOLE + framing.frame(bytes(500))
    with pytest.raises(UnfitError, match="516 bytes"):
        extend(at(tmp_path / "more"), len(too_long), reader(too_long, most=400))
    assert (tmp_path / "more").read_bytes() == WHOLE


def test_links_are_not_written_through(tmp_path):
    """A stranger may have put one there."""
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "events").symlink_to("target")
    with pytest.raises(OSError, match="symbolic"):
        extend(at(tmp_path / "events"), len(WHOLE), reader(WHOLE))
    assert (tmp_path / "target").read_bytes() == b""


def test_only_what_is_new_is_read_where_the_end_is_known(tmp_path):
    """A follower asks every few seconds, of files of many MiB."""
    place, asked = at(tmp_path / "events"), list[tuple[int, int]]()
    end = extend(place, ENDS[4], reader(WHOLE[: ENDS[4]]))
    assert end == ENDS[4]

    def read(start: int, length: int) -> bytes:
        asked.append((start, length))
        return WHOLE[start : start + length]

    assert extend(place, len(WHOLE), read, end) == len(WHOLE)
    assert asked == [(ENDS[4] - bucket.OVERLAP, len(WHOLE) - ENDS[4] + bucket.OVERLAP)]
