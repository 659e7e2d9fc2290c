"""`log`: a step is one record, with the values, times and steps that were given."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle

import numpy as np
import pytest
import tensorboardX
from forks import in_child
from support import events

from hf_mpwriter import HFSummaryWriter, SummaryWriter
from hf_mpwriter.system import process_state


def logged(directory) -> list[tuple[int, dict[str, float]]]:
    """Step and values of each record of a directory that holds values, in the order in which TensorBoard reads."""
    found = [event for path in sorted(directory.glob("*tfevents*")) for event in events(path)]
    return [
        (event.step, {value.tag: value.simple_value for value in event.summary.value})
        for event in found
        if event.summary.value
    ]


def steps(directory) -> list[int]:
    """The steps of all records."""
    return [step for step, _ in logged(directory)]


def test_a_step_is_one_record(tmp_path):
    """With all its values, and the time that was given."""
    with SummaryWriter(tmp_path) as writer:
        writer.log({"loss": 0.5, "eval": {"acc": np.float32(0.25)}}, 7, wall_time=5.0)
        writer.log({"loss": 0.25}, np.int64(8), wall_time=np.float64(6.0))
    assert logged(tmp_path) == [(7, {"loss": 0.5, "eval/acc": 0.25}), (8, {"loss": 0.25})]
    (path,) = tmp_path.glob("*tfevents*")
    assert [event.wall_time for event in events(path)[1:]] == [5.0, 6.0]


def test_one_write_of_the_system_keeps_a_step(tmp_path, monkeypatch):
    """So a kill leaves all of it, or nothing."""
    with SummaryWriter(tmp_path) as writer:
        writer.log({"a": 1.0}, 0)
        written, write = [], os.write
        monkeypatch.setattr("os.write", lambda fd, data: written.append(len(data)) or write(fd, data))
        writer.log({f"name_{number}": 0.5 for number in range(2000)}, 1)
        monkeypatch.undo()
    assert len(written) == 1
    assert written[0] > 2000 * 15
    assert len(logged(tmp_path)[1][1]) == 2000


@pytest.mark.parametrize(
    ("metrics", "step", "error"),
    [
        ({"ok": 1.0, 5: 1.0}, None, TypeError),
        ([("a", 1.0)], None, TypeError),
        ({"a": 1.0}, 1 << 63, ValueError),
        ({"a": 1.0}, "x", (TypeError, ValueError)),
        ({"a": 1.0}, 2.5, (TypeError, ValueError)),
        ({"a": 1.0}, [], TypeError),
    ],
)
def test_what_cannot_be_logged_is_refused_before_anything_is_written(tmp_path, metrics, step, error):
    """And counts no step; a wrong wall time neither."""
    with SummaryWriter(tmp_path) as writer:
        for _ in range(2):
            with pytest.raises(error):
                writer.log(metrics, step)
        with pytest.raises(ValueError, match="soon"):
            writer.log({"a": 1.0}, wall_time="soon")
        assert list(tmp_path.glob("*tfevents*")) == []
        writer.log({"a": 1.0})
    assert logged(tmp_path) == [(0, {"a": 1.0})]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"ok": 1.0, "bad": "0.5"}, {"ok": 1.0}),
        ({"bad": None, "worse": np.zeros(3), "ok": 1.0}, {"ok": 1.0}),
        ({"a/b": 1.0, "a": {"b": 2.0}}, {"a/b": 1.0, "a/b_2": 2.0}),
        ({"acc (1)": 1.0, "acc [1]": 2.0}, {"acc__1_": 1.0, "acc__1__2": 2.0}),
    ],
)
def test_what_is_odd_in_one_name_does_not_end_a_training_that_ran_for_days(tmp_path, metrics, expected):
    """A value that is no scalar is left out, and names that are one in the file keep both of their values."""
    with SummaryWriter(tmp_path) as writer:
        for _ in range(2):
            writer.log(metrics)
    assert logged(tmp_path) == [(0, expected), (1, expected)]


def test_nothing_to_log_is_no_step(tmp_path):
    """Neither an empty mapping nor one of empty mappings, nor one whose values are all left out."""
    with SummaryWriter(tmp_path) as writer:
        writer.log({})
        writer.log({"a": {}})
        writer.log({"a": None})
        writer.log({"a": 1.0})
    assert steps(tmp_path) == [0]


def test_a_writer_that_may_not_write_still_refuses(tmp_path):
    """`write_to_disk=False`: a dry run finds the same mistakes."""
    with SummaryWriter(tmp_path / "run", write_to_disk=False) as writer:
        writer.log({"a": 1.0})
        writer.log({"a": 1.0}, 5)
        with pytest.raises(TypeError):
            writer.log({1: None})
    assert not (tmp_path / "run").exists()


# steps that count on


def test_steps_count_from_zero_and_behind_the_last_given_one(tmp_path):
    """Texts without a step before the first one do not count."""
    with SummaryWriter(tmp_path) as writer:
        writer.add_text("config", "lr: 1")
        for step in (None, None, 10, None, 5, None):
            writer.log({"a": 1.0}, step)
    assert steps(tmp_path)[1:] == [0, 1, 10, 11, 5, 6]


def test_steps_count_on_after_a_restart(tmp_path):
    """Behind the last step on disk, of whatever method; also after step 0 alone."""

    def attempt(log) -> None:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}  # else it would be a child of this process
        with SummaryWriter(tmp_path) as writer:
            log(writer)

    for log in (
        lambda writer: writer.log({"a": 1.0}),
        lambda writer: [writer.log({"a": 1.0}) for _ in range(3)],
        lambda writer: writer.add_scalar("b", 1.0, 20),
        lambda writer: writer.log({"a": 1.0}),
    ):
        assert in_child(lambda log=log: attempt(log)) == 0
    assert steps(tmp_path) == [0, 1, 2, 3, 20, 21]


def test_steps_count_on_from_purge_step(tmp_path):
    """Also if a scalar of that step came first, after a close, and with steps on disk beyond it or far before it."""
    with SummaryWriter(tmp_path) as writer:
        for _ in range(10):
            writer.log({"a": 1.0})
    with SummaryWriter(tmp_path, purge_step=5) as writer:
        writer.add_scalar("b", 1.0, 5)
        writer.log({"a": 1.0})
        writer.close()
        writer.log({"a": 1.0})
    with SummaryWriter(tmp_path, purge_step=100) as writer:
        writer.close()
        writer.log({"a": 1.0})
    assert steps(tmp_path) == [*range(10), 5, 5, 6, 100]


def test_what_another_process_logged_meanwhile_counts(tmp_path):
    """Between two joins of this process."""
    writer = SummaryWriter(tmp_path)
    writer.log({"a": 1.0})
    writer.close()

    def other() -> None:
        with SummaryWriter(tmp_path) as another:
            another.log({"a": 1.0}, 41)

    assert in_child(other) == 0
    assert list(tmp_path.glob("*/*tfevents*")), "a child has a directory of its own"
    writer.log({"a": 1.0})
    writer.close()
    assert steps(tmp_path) == [0, 1]


def test_writers_of_a_process_share_the_count_and_a_child_has_its_own(tmp_path):
    """They share a directory; the child has another one, in which it begins with 0, or with `purge_step`."""
    with SummaryWriter(tmp_path, filename_suffix=".a") as one, SummaryWriter(tmp_path, filename_suffix=".b") as other:
        one.log({"a": 1.0})
        other.log({"a": 1.0})
        assert in_child(lambda: [one.log({"a": 1.0}) for _ in range(2)]) == 0
        one.log({"a": 1.0})
    assert sorted(steps(tmp_path)) == [0, 1, 2]
    assert steps(tmp_path / "proc_00001") == [0, 1]
    with SummaryWriter(tmp_path / "resumed", purge_step=30) as writer:
        writer.log({"a": 1.0})

        def child() -> None:
            assert writer.last_step() is None, "of a directory that is not made yet"
            for _ in range(2):
                writer.log({"a": 1.0})

        assert in_child(child) == 0
    assert steps(tmp_path / "resumed" / "proc_00001") == [30, 31]


def test_steps_count_from_zero_with_a_warning_where_the_disk_cannot_be_read(tmp_path, monkeypatch, caplog):
    """Training goes on."""
    with SummaryWriter(tmp_path) as writer:

        def refuse() -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(writer._worker.steps, "_first", refuse)
        with caplog.at_level(logging.WARNING, "hf_mpwriter"):
            writer.log({"a": 1.0})
            writer.log({"a": 1.0})
    assert steps(tmp_path) == [0, 1]
    assert [record.getMessage() for record in caplog.records if "counted from 0" in record.getMessage()] != []
    assert len(caplog.records) == 1


# with all else that a writer has


def test_default_metadata_is_used(tmp_path):
    """Step and time, each only where none is given; the count goes on behind it only if a step was given."""
    with SummaryWriter(tmp_path) as writer:
        with writer.use_metadata(global_step=42, walltime=13.0):
            writer.log({"a": 1.0})
            writer.log({"a": 1.0}, 7, wall_time=2.0)
        with writer.use_metadata(walltime=13.0):
            writer.log({"a": 1.0})
        with writer.use_metadata(global_step=3):
            writer.log({"a": 1.0})
    (path,) = tmp_path.glob("*tfevents*")
    assert [(event.step, event.wall_time) for event in events(path)[1:]] == [(42, 13), (7, 2), (8, 13), (3, 0)]


def test_a_tool_that_replaces_add_event_sees_every_event(tmp_path, monkeypatch):
    """Upstream's own tests do so. A step is one event with all values; time and step are those of the call."""
    seen = []
    monkeypatch.setattr("tensorboardX.event_file_writer.EventFileWriter.add_event", lambda _, event: seen.append(event))
    with SummaryWriter(tmp_path) as writer:
        writer.log({"a": 1.0, "b": 1e300})
        writer.log({"a": 1.0}, 9, wall_time=5.0)
        with writer.use_metadata(global_step=3, walltime=4.0):
            writer.log({"a": 1.0})
        writer.add_scalar("a", 0.5, 3)
        writer.add_scalars("b", {"c": 1.5}, 4)
        writer.add_text("t", "x", 5)
    found = [(event.step, [(value.tag, value.simple_value) for value in event.summary.value]) for event in seen]
    assert found[:3] == [(0, [("a", 1.0), ("b", math.inf)]), (9, [("a", 1.0)]), (3, [("a", 1.0)])]
    assert found[3:] == [(3, [("a", 0.5)]), (4, [("b", 1.5)]), (5, [("t/text_summary", 0.0)])]
    assert [event.wall_time for event in seen[1:3]] == [5.0, 4.0]


def test_the_export_has_what_log_logged(tmp_path):
    """Under the worker directory and the name; once, beside what `add_scalars` logged."""
    with SummaryWriter(tmp_path / "run") as writer:
        writer.add_scalar("plain", 1.0, 1)
        writer.add_scalars("group", {"x": 0.5}, 1, 1.0)
        writer.export_scalars_to_json(tmp_path / "none.json")
        writer.log({"a b": 0.1, "deep": {"c": 2}}, 5, wall_time=3.0)
        writer.add_text("t", "no scalar", 6)
        writer.export_scalars_to_json(tmp_path / "first.json")
        writer.export_scalars_to_json(tmp_path / "second.json")
    none, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("none", "first", "second"))
    top = str(tmp_path / "run")
    assert list(none) == [f"{top}/group/x"]
    assert {key: points for key, points in first.items() if "plain" not in key} == {
        f"{top}/group/x": [],
        f"{top}/a_b": [[3.0, 5, 0.1]],
        f"{top}/deep/c": [[3.0, 5, 2.0]],
    }
    assert not any(second.values())


def test_a_closed_and_a_pickled_writer_log(tmp_path):
    """Both open a file of their own; the pickled one counts behind what is there, and its pickle has no token."""
    writer = SummaryWriter(tmp_path, token="hf_secret")
    writer.log({"a": 1.0})
    copied = pickle.dumps(writer)
    assert b"hf_secret" not in copied
    writer.close()
    writer.log({"a": 2.0})
    writer.close()

    def arrive() -> None:
        pickle.loads(copied).log({"a": 3.0})  # noqa: S301 - a pickle of this test

    assert in_child(arrive) == 0
    assert logged(tmp_path) == [(0, {"a": 1.0}), (1, {"a": 2.0})]
    assert logged(tmp_path / "proc_00001") == [(0, {"a": 3.0})]


def test_every_writer_has_it_and_no_lock_is_held_while_values_are_read(tmp_path, monkeypatch):
    """`HFSummaryWriter` too; a value may log in turn."""
    monkeypatch.setenv("HF_MPWRITER_DISABLED", "1")
    held = []

    class Value:
        """A number that takes code to read."""

        def item(self) -> float:
            """Log in turn."""
            held.append(process_state.is_any_held())
            writer.log({"inner": 1.0})
            return 0.5

    with HFSummaryWriter("me/run", logdir=str(tmp_path / "run")) as writer:
        writer.log({"outer": Value()})
    assert held == [False]
    assert logged(tmp_path / "run") == [(0, {"inner": 1.0}), (1, {"outer": 0.5})]
    assert isinstance(writer, tensorboardX.SummaryWriter)
