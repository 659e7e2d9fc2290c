"""Parity with torch's writer: its parameters, its attributes, its summaries and its types."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import tensorboardX
from add_calls import BOXES, CALLS, CLOUD, HPARAMS, IMAGE, LABELS, RANDOM_VIDEO, VALUES, logged, payload
from support import events

from hf_mpwriter import HFSummaryWriter, SummaryWriter

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch.utils.tensorboard import SummaryWriter as TorchWriter  # noqa: E402 - only if there is a torch

pytestmark = pytest.mark.torch

TORCH_CALLS = {
    "add_graph": lambda w: w.add_graph(torch.nn.Linear(2, 1), torch.zeros(1, 2)),
    "add_histogram": lambda w: w.add_histogram("h", torch.tensor(VALUES), 3),
    "add_images": lambda w: w.add_images("is", [torch.tensor(IMAGE)] * 2, 2, dataformats="CHW"),
    "add_scalar": lambda w: w.add_scalar("s", torch.tensor(2.5), 3),
}
ELSEWHERE = {
    "add_tensor",
    "get_logdir",
    "export_scalars_to_json",
    "close",
    "flush",
}  # no events, or not in tensorboardX
DOMAINS = {"lr": [0.1, 0.2], "opt": ["adam", "sgd"]}


def public_methods() -> list[str]:
    """What both libraries offer."""
    members = [*inspect.getmembers(TorchWriter, inspect.isfunction)]
    members += inspect.getmembers(tensorboardX.SummaryWriter, inspect.isfunction)
    return sorted({name for name, _ in members if not name.startswith("_")})


def test_every_public_method_of_both_libraries_is_compared_byte_for_byte_or_tested_elsewhere():
    """A method that a new version of tensorboardX or torch adds must be given its place in these tests."""
    assert set(public_methods()) == {name for name, _ in CALLS} | set(TORCH_CALLS) | ELSEWHERE
    assert not [name for name in public_methods() if not hasattr(SummaryWriter, name)]


@pytest.mark.parametrize("name", TORCH_CALLS)
def test_a_method_writes_the_bytes_of_tensorboardx_for_tensors_too(tmp_path, frozen, name):
    """As in test_add_methods, for what needs torch."""
    with tensorboardX.SummaryWriter(str(tmp_path / "theirs")) as theirs, SummaryWriter(tmp_path / "ours") as ours:
        for writer in (theirs, ours):
            TORCH_CALLS[name](writer)
    assert logged(tmp_path / "ours") == logged(tmp_path / "theirs")


@pytest.mark.parametrize("name", ["__init__", *public_methods()])
def test_parameters_of_both_libraries_are_accepted_by_name(name):
    """Every parameter that a method has there, it has here."""
    ours = inspect.signature(getattr(SummaryWriter, name)).parameters
    for theirs in (TorchWriter, tensorboardX.SummaryWriter):
        for parameter in inspect.signature(getattr(theirs, name, lambda: None)).parameters.values():
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                assert parameter.name in ours, f"{theirs.__module__}: {name}({parameter.name}=)"


def test_it_is_a_writer_of_tensorboardx_with_the_attributes_of_both(run_dir, monkeypatch):
    """Isinstance holds for both of our classes; what code reads from a writer is there."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    theirs = tensorboardX.SummaryWriter(str(run_dir.parent / "t"), write_to_disk=False)
    torchs = TorchWriter(str(run_dir.parent / "u"))
    with SummaryWriter(run_dir) as local, HFSummaryWriter("me/run", logdir=str(run_dir.parent / "hf")) as ours:
        ours.scheduler.stop()
        for writer in (local, ours):
            assert isinstance(writer, tensorboardX.SummaryWriter)
            assert {*vars(theirs), *vars(torchs)} - set(dir(writer)) == set()
            assert writer.default_bins == theirs.default_bins
            assert (writer.max_queue, writer.flush_secs, writer.filename_suffix) == (10, 120, "")
    torchs.close()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((True,), {}),
        ((True, True), {}),
        ((), {"new_style": True}),
        ((), {"new_style": True, "double_precision": True}),
        ((False, False), {}),
    ],
)
def test_a_scalar_of_torchs_new_style_is_torchs(tmp_path, arguments, named):
    """By position and by name; in double precision not a bit is lost."""
    with TorchWriter(str(tmp_path / "theirs")) as theirs, SummaryWriter(tmp_path / "ours") as ours:
        for writer in (theirs, ours):
            writer.add_scalar("loss", 0.1, 3, 5.0, *arguments, **named)
    assert payload(tmp_path / "ours") == payload(tmp_path / "theirs")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int16", "int32", "int64", "bool", "complex64"])
def test_a_tensor_is_torchs(tmp_path, dtype):
    """add_tensor writes what torch writes, wherever torch writes what TensorFlow's readers understand."""
    value = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(getattr(torch, dtype))
    with TorchWriter(str(tmp_path / "theirs")) as theirs, SummaryWriter(tmp_path / "ours") as ours:
        for writer in (theirs, ours):
            writer.add_tensor("t", value, 3, 5.0)
    assert payload(tmp_path / "ours") == payload(tmp_path / "theirs")


@pytest.mark.parametrize("value", [torch.tensor([1.5, -2.0, 0.1]), np.arange(6).reshape(2, 3), 3.5])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8", "float32"])
def test_tensorboard_reads_a_tensor_as_it_was(tmp_path, value, dtype):
    """Also halves, of which torch's writer stores bits that no reader understands."""
    from tensorboard.util.tensor_util import make_ndarray

    value = torch.as_tensor(value).to(getattr(torch, dtype))
    with SummaryWriter(tmp_path) as writer:
        writer.add_tensor("t", value)
    stored = payload(tmp_path).tensor
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    read = make_ndarray(TensorProto.FromString(stored.SerializeToString()))
    assert read.shape == tuple(value.shape)
    assert (read == value.to(torch.float32).numpy()).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.add_hparams(HPARAMS, {"acc": 0.9}, DOMAINS, "trial", 5),
        lambda w: w.add_hparams(HPARAMS, {"acc": 0.9}, hparam_domain_discrete=DOMAINS, run_name="trial", global_step=5),
    ],
)
def test_domains_of_hyperparameters_are_torchs(tmp_path, call):
    """TensorBoard's filter shows the values that a hyperparameter can have."""
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    with TorchWriter(str(tmp_path / "theirs")) as theirs, SummaryWriter(tmp_path / "ours") as ours:
        call(theirs)
        call(ours)
    infos = []
    for place in ("ours", "theirs"):
        (path,) = (tmp_path / place / "trial").glob("*tfevents*")
        summaries = [value for event in events(path) for value in event.summary.value]
        assert [(value.tag, value.simple_value) for value in summaries][3:] == [("acc", pytest.approx(0.9))]
        contents = [HParamsPluginData.FromString(value.metadata.plugin_data.content) for value in summaries[:3]]
        (experiment,) = (one.experiment for one in contents if one.WhichOneof("data") == "experiment")
        infos.append({info.name: list(info.domain_discrete.values) for info in experiment.hparam_infos})
    assert infos[0] == infos[1]
    assert [len(domain) for domain in infos[0].values()] == [2, 2, 0]


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (torch.tensor(2.5), 2.5),
        (torch.tensor([2.5], requires_grad=True), 2.5),
        (torch.tensor(2.5, dtype=torch.bfloat16), 2.5),
        (torch.tensor(2.5, dtype=torch.float16), 2.5),
        (torch.tensor(2.5).to(torch.float8_e4m3fn), 2.5),
        (torch.tensor(7, dtype=torch.uint8), 7.0),
        (torch.empty((), device="meta"), math.nan),
    ],
    ids=repr,
)
def test_a_scalar_may_be_a_tensor_of_any_type(tmp_path, caplog, value, stored):
    """And no warning is logged at every call."""
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("a", value, torch.tensor(5))
        writer.add_scalars("group", {"a": value}, 5)
        assert caplog.records == []
        writer.add_hparams({"v": value}, {"acc": value}, name="trial")
    found = [
        value.simple_value
        for path in sorted(tmp_path.rglob("*tfevents*"))
        for e in events(path)
        for value in e.summary.value
        if value.HasField("simple_value")
    ]
    assert found == pytest.approx([stored] * 3, nan_ok=True)


def test_a_tensor_of_several_elements_is_no_scalar(tmp_path):
    """An error of the program, as in both libraries."""
    with SummaryWriter(tmp_path) as writer, pytest.raises(AssertionError):
        writer.add_scalar("a", torch.zeros(3), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2])
def test_tensors_of_types_that_numpy_does_not_know_are_accepted(tmp_path, dtype):
    """Wherever a tensor is taken."""
    image, values = torch.tensor(IMAGE).to(dtype), torch.linspace(0, 1, 100).to(dtype)
    with SummaryWriter(tmp_path) as writer:
        writer.add_histogram("h", values, 1)
        writer.add_image("i", image, 1)
        writer.add_images("is", [image, image], dataformats="CHW")
        writer.add_image_with_boxes("b", image, torch.tensor(BOXES).to(dtype))
        writer.add_video("v", torch.tensor(RANDOM_VIDEO).to(dtype))
        writer.add_audio("s", values[:, None])
        writer.add_pr_curve("p", LABELS, values)
        writer.add_mesh("m", torch.tensor(CLOUD).to(dtype))
        writer.add_embedding(values.reshape(20, 5))
        writer.add_tensor("t", values)
    (path,) = tmp_path.glob("*tfevents*")
    assert len(events(path)) == 10
