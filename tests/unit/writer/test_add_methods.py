"""The `add_*` methods: tensorboardX's bytes, torch's parameters, and values of every type."""

from __future__ import annotations

import decimal
import fractions
import json
import math
import os
import sys

import numpy as np
import pytest
import tensorboardX
from add_calls import BOXES, CALLS, HPARAMS, IMAGE, logged, onnx_model, payload
from programs import succeed
from support import events

from hf_mpwriter import SummaryWriter
from hf_mpwriter.events import framing
from hf_mpwriter.writer.refusals import NotLoggableError


@pytest.mark.parametrize(("name", "call"), CALLS, ids=[f"{n}-{name}" for n, (name, _) in enumerate(CALLS)])
def test_a_method_writes_the_bytes_of_tensorboardx(tmp_path, frozen, name, call):
    """Under a frozen clock the events are equal byte for byte, in the same directories; other files too."""
    with tensorboardX.SummaryWriter(str(tmp_path / "theirs")) as theirs:
        call(theirs, tmp_path)
    with SummaryWriter(tmp_path / "ours") as ours:
        call(ours, tmp_path)
    wanted, found = logged(tmp_path / "theirs"), logged(tmp_path / "ours")
    assert any(wanted.values())
    assert {place: items for place, items in found.items() if items} == {
        place: items for place, items in wanted.items() if items
    }


def test_a_tensor_that_cannot_be_stored_is_an_error(tmp_path):
    """As in torch."""
    with SummaryWriter(tmp_path) as writer, pytest.raises(ValueError, match="unsupported"):
        writer.add_tensor("t", np.array(["text"]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(100_000,), (100_000, 2)])
def test_a_sound_needs_no_package_and_has_the_bytes_of_soundfile(tmp_path, frozen, monkeypatch, dtype, shape):
    """Cut off where it is too loud; a machine without libsndfile logs it, too, as with torch."""
    samples = np.random.default_rng(1).uniform(-1.01, 1.01, shape).astype(dtype)
    with tensorboardX.SummaryWriter(str(tmp_path / "theirs")) as theirs:
        theirs.add_audio("s", samples, 1, 8000)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with SummaryWriter(tmp_path / "ours") as ours:
        ours.add_audio("s", samples, 1, 8000)
    assert logged(tmp_path / "ours") == logged(tmp_path / "theirs")


DOMAINS = {"lr": [0.1, 0.2], "opt": ["adam", "sgd"]}


@pytest.mark.parametrize("domains", [{"lr": ["text"]}, {"unknown": [1]}, {"lr": 0.1}])
def test_a_domain_that_does_not_fit_is_a_type_error(tmp_path, domains):
    """As in torch; nothing of it is logged."""
    with SummaryWriter(tmp_path) as writer, pytest.raises(TypeError):
        writer.add_hparams(HPARAMS, {}, domains)
    assert not list(tmp_path.rglob("*tfevents*"))


def test_hyperparameters_in_numpy_types_keep_their_values(tmp_path):
    """The original stores no value for these."""
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    given = {"a": np.float32(0.5), "b": np.int64(3), "d": np.bool_(True)}
    with SummaryWriter(tmp_path) as writer:
        writer.add_hparams(given, {"acc": np.float64(0.5)}, name="trial")
    (path,) = (tmp_path / "trial").glob("*tfevents*")
    data = [value.metadata.plugin_data.content for event in events(path) for value in event.summary.value]
    (start,) = (
        one for one in map(HParamsPluginData.FromString, data) if one.WhichOneof("data") == "session_start_info"
    )
    found = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.session_start_info.hparams.items()}
    assert found == {"a": 0.5, "b": 3.0, "d": True}


@pytest.mark.parametrize("arguments", [(2, "CHW", ["x", "y"]), (2,), ("CHW", ["x", "y"]), ("CHW",)])
def test_boxes_are_given_in_the_order_of_either_library(tmp_path, frozen, arguments):
    """A number after the wall time is torch's scale, a string is tensorboardX's format."""
    names = ("dataformats", "labels") if isinstance(arguments[0], str) else ("rescale", "dataformats", "labels")
    with tensorboardX.SummaryWriter(str(tmp_path / "theirs")) as theirs, SummaryWriter(tmp_path / "ours") as ours:
        theirs.add_image_with_boxes("b", IMAGE, BOXES, 1, 5.0, **dict(zip(names, arguments, strict=False)))
        ours.add_image_with_boxes("b", IMAGE, BOXES, 1, 5.0, *arguments)
    assert payload(tmp_path / "ours") == payload(tmp_path / "theirs")


def test_an_onnx_graph_has_either_name(tmp_path):
    """Torch calls the path prototxt."""
    with SummaryWriter(tmp_path / "run") as writer:
        writer.add_onnx_graph(prototxt=onnx_model(tmp_path))
    (path,) = (tmp_path / "run").glob("*tfevents*")
    assert [bool(event.graph_def) for event in events(path)] == [False, True]


# types


def test_protobufs_of_tensorboard_are_accepted(tmp_path):
    """Lightning hands them to the FileWriter."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    with SummaryWriter(tmp_path) as writer:
        writer.file_writer.add_summary(Summary(value=[Summary.Value(tag="a", simple_value=0.5)]), 3)
        writer.file_writer.add_event(Event(summary=Summary(value=[Summary.Value(tag="b", simple_value=1.5)])), 4)
    (path,) = tmp_path.glob("*tfevents*")
    found = [(event.step, value.tag, value.simple_value) for event in events(path) for value in event.summary.value]
    assert found == [(3, "a", 0.5), (4, "b", 1.5)]


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (3, 3.0),
        (True, 1.0),
        (10**30, 1e30),
        (10**400, math.inf),
        (1e39, math.inf),
        (-1e39, -math.inf),
        ("2.5", 2.5),
        (decimal.Decimal("2.5"), 2.5),
        (fractions.Fraction(5, 2), 2.5),
        ([2.5], 2.5),
        (np.float16(2.5), 2.5),
        (np.array(2.5), 2.5),
        (np.array([[2.5]]), 2.5),
        (math.nan, math.nan),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_scalar_may_have_any_type_that_either_library_takes(tmp_path, caplog, value, stored):
    """And no warning is logged at every call."""
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("a", value, 1)
        writer.add_scalars("group", {"a": value}, 1)
    found = [
        value.simple_value for path in tmp_path.rglob("*tfevents*") for e in events(path) for value in e.summary.value
    ]
    assert found == pytest.approx([stored, stored], nan_ok=True)
    assert caplog.records == []


@pytest.mark.parametrize("step", ["5", 5.0, np.int32(5), np.float32(5), np.array(5), decimal.Decimal(5)])
def test_a_step_may_be_any_whole_number_that_int_takes(tmp_path, step):
    """As in both libraries."""
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("a", 1.0, step)
        writer.add_text("t", "x", step)
        writer.add_scalars("group", {"a": 1.0}, step)
    found = [event.step for path in tmp_path.rglob("*tfevents*") for event in events(path) if event.summary.value]
    assert found == [5, 5, 5]


@pytest.mark.parametrize("step", [1.5, np.float64(1.5), decimal.Decimal("1.5"), math.nan, math.inf, "soon", [1, 2]])
@pytest.mark.parametrize(
    "call",
    [
        lambda writer, step: writer.add_scalar("a", 1.0, step),
        lambda writer, step: writer.add_scalar("a", 1.0, step, display_name="A"),
        lambda writer, step: writer.add_scalars("group", {"a": 1.0}, step),
        lambda writer, step: writer.add_text("t", "x", step),
        lambda writer, step: writer.add_hparams({"lr": 1}, {"a": 1.0}, global_step=step),
    ],
    ids=["scalar", "scalar with a name", "scalars", "text", "hparams"],
)
def test_a_step_that_is_no_whole_number_is_refused_by_name(tmp_path, call, step):
    """`int` would make 1 of 1.5, and two points of a curve one. Nothing is written."""
    with SummaryWriter(tmp_path) as writer, pytest.raises(NotLoggableError, match=r"^global_step is .*whole number"):
        call(writer, step)
    assert not list(tmp_path.rglob("*tfevents*"))


# add_scalars, export, memory


def test_scalars_are_exported_from_the_event_files(tmp_path):
    """The format of tensorboardX; each value once; nothing was kept in memory for it."""
    with tensorboardX.SummaryWriter(str(tmp_path / "x")) as theirs, SummaryWriter(tmp_path / "y") as ours:
        exported = []
        for round_ in range(3):
            for writer, name in ((theirs, "x"), (ours, "y")):
                if round_ < 2:
                    for step in range(1, 4):
                        writer.add_scalars("g/h", {"a": 0.1 * step, "b": step}, 10 * round_ + step, 5.0 + step)
                writer.export_scalars_to_json(tmp_path / f"{name}.json")
            assert ours.scalar_dict == {}
            x, y = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "xy")
            exported.append(y)
            x = {key.replace("/x/", "/y/"): value for key, value in x.items()}
            assert {key: value for key, value in y.items() if value} == {
                key: [[when, step, pytest.approx(value)] for when, step, value in rows] for key, rows in x.items()
            }
    assert exported[0][str(tmp_path / "y" / "g/h" / "a")][0] == [6.0, 1, 0.1]


def test_directories_of_add_scalars_stay_where_they_belong(tmp_path):
    """A tag with dots, an absolute path or a name without end makes no file elsewhere, and raises nothing."""
    tags = ["../../out", "/abs", "a" * 400, "..", ".", "nul\0", ".hf_mpwriter", "\ud800"]
    with SummaryWriter(tmp_path / "run" / "deep") as writer:
        for tag in tags:
            writer.add_scalars(tag, {tag: 1.0}, 1)
    found = list(tmp_path.rglob("*tfevents*"))
    assert len(found) == len(tags)
    assert all((tmp_path / "run" / "deep") in path.parents for path in found)
    assert not [path for path in found if ".hf_mpwriter" in path.parts]


def test_default_metadata_is_over_after_an_exception(tmp_path):
    """In tensorboardX it stays for ever, and the next block fails."""
    with SummaryWriter(tmp_path) as writer:
        with pytest.raises(KeyError), writer.use_metadata(global_step=9, walltime=1.0):
            raise KeyError
        with writer.use_metadata(global_step=10, walltime=1.0):
            writer.add_scalar("a", 1.0)
            writer.add_scalars("group", {"b": 1.0})
        writer.add_scalar("a", 2.0)
    found = [e.step for path in sorted(tmp_path.rglob("*tfevents*")) for e in events(path) if e.summary.value]
    assert sorted(found) == [0, 10, 10]


def test_the_file_that_tensorboardx_names_can_be_read_at_once(tmp_path):
    """`_ev_writer._file_name` is what tests and tools open."""
    with SummaryWriter(tmp_path) as writer:
        name = writer.file_writer.event_writer._ev_writer._file_name
        assert os.path.exists(name)
        writer.add_scalar("a", 1.0, 1)
        assert len(list(framing.payloads(name))) == 2
    assert writer.file_writer is None


def test_trials_keep_no_file_open_and_nameless_ones_leave_nothing_behind(tmp_path):
    """A search makes thousands of them; what is logged under a name again goes into the next file."""
    with SummaryWriter(tmp_path) as writer:
        before = len(os.listdir("/proc/self/fd"))
        for trial in range(20):
            writer.add_hparams({"lr": trial}, {"acc": 0.5}, f"trial{trial % 2}")
            writer.add_hparams({"lr": trial}, {"acc": 0.5})
        assert len(os.listdir("/proc/self/fd")) == before
        assert len(writer.all_writers) == len(writer._worker.files._files) == 3
    assert len(list(tmp_path.rglob("*tfevents*"))) == 40
    assert sum(len(events(path)) for path in tmp_path.rglob("*tfevents*")) == 40 * 5


@pytest.mark.parametrize("name", [".", "./", ""])
def test_a_trial_in_the_run_directory_itself_shares_its_event_file(tmp_path, name):
    """Users of torch give `run_name=writer.log_dir` or "." to have the trial in the run that it belongs to."""
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("loss", 1.0, 1)
        writer.add_hparams({"lr": 1}, {"acc": 0.5}, run_name=name or writer.log_dir)
        writer.add_scalar("loss", 1.0, 2)
        assert writer.status().logged == sum(path.stat().st_size for path in tmp_path.glob("*tfevents*"))
    (path,) = tmp_path.rglob("*tfevents*")
    assert len(events(path)) == 1 + 1 + 4 + 1


def test_memory_stays_flat_while_scalars_are_logged(tmp_path):
    """Nothing that is logged is kept: neither by add_scalar, nor by add_scalars, of which tensorboardX keeps all."""
    source = """
import os, sys
from hf_mpwriter import SummaryWriter
page = os.sysconf("SC_PAGE_SIZE")
def resident():
    with open("/proc/self/statm") as file: return int(file.read().split()[1]) * page
writer = SummaryWriter(sys.argv[1])
def log(count):
    for step in range(count):
        writer.add_scalar("loss", 0.5, step)
        if step % 10 == 0: writer.add_scalars("group", {"a": 1.0, "b": 2.0}, step)
log(20_000)
before = resident()
log(200_000)
print(resident() - before)
"""
    assert int(succeed(source, tmp_path)) < 1 << 20
