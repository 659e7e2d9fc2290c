"""`--step`: the step of an event, and what of a step is on the Hub."""

from __future__ import annotations

import dataclasses

from facts import FACTS, FileFacts, facts
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter import SummaryWriter
from hf_mpwriter.cli.status import steps
from hf_mpwriter.cli.status.facts import WorkerFacts
from hf_mpwriter.cli.status.judgement import judge
from hf_mpwriter.cli.status.steps import StepFacts, judge_step, steps_of
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


def judged(*found: StepFacts, **fields: object) -> tuple[int, str]:
    """The exit code of step 7, and what is to be done."""
    run = facts(**fields)
    judgement = judge_step(run, judge(run, "runs/exp1"), found, 7, "runs/exp1")
    return judgement.state.value, judgement.next


def test_a_step_that_never_comes_is_for_a_person_and_one_that_may_come_is_waited_for():
    """A finished run that has no such step would be waited for without an end."""
    ended, lives = StepFacts("main", last=6), StepFacts("main", last=6, may_log=True)
    assert judged(ended) == (
        4,
        "ask for another step: no worker logged 7, and none lives; the last step is 6",
    )
    assert judged()[1].endswith("; no step was logged")
    assert judged(lives) == (3, "")


def test_a_worker_that_has_ended_without_the_step_holds_nothing_back():
    """As a child that has logged a few steps; a rank that lives does, as it may log the step yet."""
    there, waits = StepFacts("main", 2, 2, 7), StepFacts("main", 2, 1, 7)
    child, rank = StepFacts("Process-1", last=3), StepFacts("rank_00001", last=6, may_log=True)
    assert judged(there, child) == (0, "")
    assert judged(there, rank) == (3, "")
    assert judged(waits, child) == (3, "")


def test_a_step_of_a_local_run_comes_to_the_hub_by_sync_only():
    """Nothing sends it, however long it is waited for."""
    assert judged(StepFacts("main", 1, 0, 7), destination=None) == (4, "hf-mpwriter sync runs/exp1 --repo-id NAME")


def test_a_run_that_needs_a_person_comes_before_its_step():
    """Records that wait in memory may be of that step."""
    in_memory = WorkerFacts("main", "alive", "", 1, is_here=True, in_memory=3)
    code, text = judged(StepFacts("main", 2, 2, 7), workers=(in_memory,))
    assert (code, text.startswith("free space on the disk")) == (4, True)


def test_a_file_of_others_that_may_grow_may_get_the_step(tmp_path):
    """Their writers are no members, so only their files tell."""
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("a", 1.0, 1)
    (path,) = tmp_path.glob("*tfevents*")
    for growing in (True, False):
        file = FileFacts(path.name, path.stat().st_size, 0, None, growing=growing, pulled=False)
        (found,) = steps_of(Spool(str(tmp_path)), facts(files=(file,)), 9)
        assert found.may_log == growing
