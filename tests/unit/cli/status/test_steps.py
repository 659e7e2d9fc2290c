"""`--step`: the step of an event, and what of a step is on the Hub."""

from __future__ import annotations

import dataclasses

from facts import FACTS, FileFacts
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter import SummaryWriter
from hf_mpwriter.cli.status import steps
from hf_mpwriter.cli.status.steps import steps_of
from hf_mpwriter.events.framing import ScalarEncoder, payloads, step_of, version_event
from hf_mpwriter.spool.layout import Spool


@given(step=st.one_of(st.none(), st.integers(-(1 << 63), (1 << 63) - 1)))
def test_the_step_of_an_event_is_that_which_was_logged(step):
    """Of 64 bits, negative too; without one it is 0. What is no summary has none."""
    record = ScalarEncoder("loss").record(1.5, step, 2.0)
    assert step_of(record[12:-4]) == (step or 0)
    assert step_of(version_event(1.5)) is None


def test_a_step_is_on_the_hub_once_all_its_records_are(tmp_path, monkeypatch):
    """Two tags are two records of a step; where one of them waits, the step does."""
    with SummaryWriter(tmp_path) as writer:
        for step in range(10):
            for tag in "ab":
                writer.add_scalar(tag, 1.0, step)
    (path,) = tmp_path.glob("*tfevents*")
    ends, size = [], 0
    for payload in payloads(str(path)):
        size += len(payload) + 16
        ends.append(size)
    spool = Spool(str(tmp_path))
    for chunk in (steps.CHUNK, 64):  # bytes: the second is shorter than a few records
        monkeypatch.setattr(steps, "CHUNK", chunk)
        for known, on_hub in ((ends[-1], 2), (ends[-2], 1), (ends[-3], 0)):
            file = FileFacts(path.name, ends[-1], known, None, growing=False, pulled=False)
            (found,) = steps_of(spool, dataclasses.replace(FACTS, files=(file,)), 9)
            assert (found.worker, found.records, found.on_hub, found.last) == ("main", 2, on_hub, 9)
            assert found.is_there == (on_hub == 2)
            (other,) = steps_of(spool, dataclasses.replace(FACTS, files=(file,)), 8)
            assert other.is_there, "the step before it is there"
    (never,) = steps_of(spool, dataclasses.replace(FACTS, files=(file,)), 10)
    assert (never.records, never.is_there) == (0, False)
