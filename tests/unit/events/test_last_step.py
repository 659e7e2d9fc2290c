"""The last step on disk: what a parse of all files would find."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support import scalar
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from hf_mpwriter import HFSummaryWriter, SummaryWriter
from hf_mpwriter.events import framing
from hf_mpwriter.events import last_step as module
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.directory import Place as DirectoryPlace

STEPS = st.integers(0, 12)


def tensor(content: bytes, step: int) -> bytes:
    """Payload of a tensor that holds these bytes as they are."""
    value = Summary.Value(tag="raw")
    value.tensor.tensor_content = content
    return Event(wall_time=1.0, step=step, summary=Summary(value=[value])).SerializeToString()


def framed(payloads: list[bytes]) -> bytes:
    """The content of an event file."""
    return b"".join(map(framing.frame, payloads))


SCALARS = st.builds(scalar, STEPS, st.sampled_from(["a", "b"]))
STARTS = st.builds(framing.session_start_event, st.just(1.0), STEPS)
INNER = st.lists(SCALARS | STARTS, min_size=1, max_size=8).map(framed)
RECORDS = (
    SCALARS
    | SCALARS
    | STARTS
    | st.builds(tensor, INNER | INNER.map(lambda data: data[:-3]) | st.just(bytes(700)), STEPS)
    | st.builds(lambda data: Event(step=99, graph_def=data).SerializeToString(), INNER)
    | st.sampled_from([b"", framing.version_event(1.0), b"\xff\xff"])
)
TORN = INNER.map(lambda data: data[:-1]) | st.builds(
    lambda data, cut: framed([tensor(data, 1)])[:cut], INNER, st.integers(1, 80)
)
TAILS = st.just(b"") | st.just(b"") | TORN | st.just(bytes(200)) | st.binary(max_size=30)
FILES = st.lists(st.tuples(st.lists(RECORDS, max_size=25), TAILS), max_size=4)


def parsed(directory: Path, tag: str | None, hidden_from: int | None) -> int | None:
    """The same by a parse of all files from their beginning."""
    seen: list[tuple[int, set[str]]] = []
    for path in sorted(directory.iterdir()):
        for payload in framing.payloads(str(path)):
            try:
                event = Event.FromString(payload)
            except Exception:  # noqa: BLE001, S112 - no event
                continue
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                seen = [(step, tags) for step, tags in seen if step < event.step]
            else:
                seen.append((event.step, {value.tag for value in event.summary.value}))
    found = [step for step, tags in seen if (tags if tag is None else tag in tags)]
    found = [step for step in found if hidden_from is None or step < hidden_from]
    counted = [step for step in found if step] if tag is None else found
    return (counted or found or [None])[-1]


@hypothesis_settings(max_examples=50)
@given(
    files=FILES,
    tag=st.sampled_from([None, "a", "b", "missing"]),
    hidden_from=st.none() | st.none() | STEPS,
    size=st.sampled_from([40, 200, 1 << 14]),
)
def test_the_answer_is_that_of_a_parse_of_all_files(files, tag, hidden_from, size):
    """Restarts, purges, other records, event files inside records, torn and damaged ends; in chunks of any size."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(module, CHUNK=size, SEARCHED=size):
        for number, (payloads, tail) in enumerate(files):
            Path(folder, f"events.out.tfevents.{number:010d}.h").write_bytes(framed(payloads) + tail)
        place = DirectoryPlace(Directory(folder))
        assert module.last_step(place, tag, None, hidden_from) == parsed(Path(folder), tag, hidden_from)


@pytest.mark.parametrize("make", [SummaryWriter, lambda path, **more: HFSummaryWriter("me/run", logdir=path, **more)])
def test_a_writer_tells_its_own_last_step_over_restarts(tmp_path, monkeypatch, make):
    """The first answer comes from an earlier process's files; other ranks and sub-directories do not count."""
    monkeypatch.setenv("HF_MPWRITER_DISABLED", "1")
    path = str(tmp_path / "run")
    with make(path) as writer:
        assert writer.last_step() is None
        for step in range(80):
            writer.add_scalar("loss/a b", 0.0, step)
            writer.add_scalars("sub", {"run": 0.0}, 1000)
        writer.add_text("config", "no step")
        assert (writer.last_step(), writer.last_step("loss/a b"), writer.last_step("other")) == (79, 79, None)
    other = tmp_path / "run" / "rank_00001"
    other.mkdir()
    (other / "x.tfevents.1").write_bytes(framed([scalar(2000)]))
    with make(path, purge_step=50) as writer:
        assert writer.last_step() == 49, "the START is not written yet"
        writer.add_scalar("loss/a b", 0.0, 50)
        assert writer.last_step("loss/a b") == 50
    assert writer.last_step() == 50, "a closed writer answers, too"
    assert SummaryWriter(path, write_to_disk=False).last_step() is None


def test_files_of_another_user_do_not_count(tmp_path, monkeypatch):
    """They may be as long as a number can tell, and training waits for the answer; the last step is not theirs."""
    for second, step in ((1, 5), (2, 1000)):
        (tmp_path / f"events.out.tfevents.{second:010d}.h").write_bytes(framed([scalar(step)]))
    place, original = DirectoryPlace(Directory(tmp_path)), os.fstat
    assert module.last_step(place) == 1000
    theirs = os.stat(tmp_path / "events.out.tfevents.0000000002.h").st_ino

    def status(fd: int) -> os.stat_result:
        found = original(fd)
        return os.stat_result((*found[:4], 54321, *found[5:])) if found.st_ino == theirs else found

    monkeypatch.setattr(os, "fstat", status)
    assert module.last_step(place) == 5
