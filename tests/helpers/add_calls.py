"""A call or more of every `add_*` method, and what they leave on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import events

from hf_mpwriter.events import framing

RANDOM = np.random.default_rng(7)
IMAGE = RANDOM.random((3, 16, 16), dtype=np.float32)
BOXES = np.array([[1.0, 1.0, 9.0, 9.0], [2.0, 3.0, 8.0, 12.0]])
VALUES = RANDOM.normal(size=500)
COUNTS = np.histogram(VALUES)
LABELS, PREDICTIONS = RANDOM.integers(0, 2, 100), RANDOM.random(100)
CLOUD = RANDOM.random((1, 40, 3))
CURVE = [75, 64, 21, 5, 0], [150, 105, 18, 0, 0], [0, 45, 132, 150, 150], [0, 11, 54, 70, 75]
PRECISION, RECALL = [0.33, 0.38, 0.54, 1.0, 0.0], [1.0, 0.85, 0.28, 0.07, 0.0]
RANDOM_VIDEO = RANDOM.random((1, 3, 3, 8, 8))
SOUND = np.sin(np.linspace(0, 440, 4000)).reshape(-1, 1)
LAYOUT = {"Loss": {"both": ["Multiline", ["loss/train", "loss/test"]]}}
OPENVINO = """<net><layers><layer id="0" name="in"/><layer id="1" name="out"/></layers>
<edges><edge from-layer="0" to-layer="1"/></edges></net>"""


def figure(_: object = None):
    """A matplotlib figure."""
    pyplot = pytest.importorskip("matplotlib.figure")
    drawn = pyplot.Figure(figsize=(1, 1))
    pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg(drawn)
    drawn.add_subplot().plot([1, 2, 3])
    return drawn


def onnx_model(directory: Path) -> str:
    """The path of a small ONNX model."""
    onnx = pytest.importorskip("onnx")
    shape = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", shape[:1], shape[1:])
    onnx.save(onnx.helper.make_model(graph), str(directory / "model.onnx"))
    return str(directory / "model.onnx")


def openvino_model(directory: Path) -> str:
    """The path of a small OpenVINO model."""
    (directory / "model.xml").write_text(OPENVINO)
    return str(directory / "model.xml")


# one call or more of every public method, as (name, call); `d` is a directory for files that a method reads
CALLS = [
    ("add_scalar", lambda w, _: w.add_scalar("train/loss", 0.5, 3)),
    ("add_scalar", lambda w, _: w.add_scalar("a tag: with/odd chars", 1, 70_000, 5.0)),
    ("add_scalar", lambda w, _: w.add_scalar("named", 0.5, 3, None, "A title", "what it is")),
    ("add_scalar", lambda w, _: w.add_scalar("none", np.float32(0.1))),
    ("add_scalar", lambda w, _: w.add_scalar("at zero", 2.5, 0, 0.0)),
    ("add_scalars", lambda w, _: w.add_scalars("grp", {"a": 1.0, "b": np.float64(0.1)}, 5)),
    ("add_histogram", lambda w, _: w.add_histogram("h", VALUES, 2)),
    ("add_histogram", lambda w, _: w.add_histogram("h", VALUES, 3, "auto", None, 4)),
    (
        "add_histogram_raw",
        lambda w, _: w.add_histogram_raw("hr", -1.0, 1.0, 500, 3.0, 9.0, COUNTS[1][1:].tolist(), COUNTS[0].tolist(), 4),
    ),
    ("add_image", lambda w, _: w.add_image("i", IMAGE, 1)),
    ("add_image", lambda w, _: w.add_image("i", (IMAGE[0] * 255).astype(np.uint8), 2, dataformats="HW")),
    ("add_images", lambda w, _: w.add_images("is", np.stack([IMAGE, IMAGE]), 1)),
    ("add_image_with_boxes", lambda w, _: w.add_image_with_boxes("ib", IMAGE, BOXES, 1, labels=["x", "y"])),
    ("add_figure", lambda w, _: w.add_figure("f", figure(), 1, close=False)),
    ("add_video", lambda w, _: w.add_video("v", (RANDOM_VIDEO * 255).astype(np.uint8), 1, 2)),
    ("add_audio", lambda w, _: w.add_audio("s", SOUND, 1, 8000)),
    ("add_text", lambda w, _: w.add_text("t", "some *text* ü", 1)),
    ("add_onnx_graph", lambda w, d: w.add_onnx_graph(onnx_model(d))),
    ("add_openvino_graph", lambda w, d: w.add_openvino_graph(openvino_model(d))),
    ("add_embedding", lambda w, _: w.add_embedding(VALUES.reshape(100, 5), list(range(100)), None, 3, "e")),
    ("add_pr_curve", lambda w, _: w.add_pr_curve("p", LABELS, PREDICTIONS, 1)),
    ("add_pr_curve_raw", lambda w, _: w.add_pr_curve_raw("pr", *CURVE, PRECISION, RECALL, 1, 5)),
    ("add_custom_scalars", lambda w, _: w.add_custom_scalars(LAYOUT)),
    ("add_custom_scalars_multilinechart", lambda w, _: w.add_custom_scalars_multilinechart(["a", "b"])),
    ("add_custom_scalars_marginchart", lambda w, _: w.add_custom_scalars_marginchart(["a", "b", "c"])),
    ("add_mesh", lambda w, _: w.add_mesh("m", CLOUD, CLOUD * 255, None, {"camera": {"fov": 75}}, 1)),
    ("add_hparams", lambda w, _: w.add_hparams({"lr": 0.1, "opt": "adam", "on": True}, {"acc": 0.9}, "trial", 5)),
    ("use_metadata", lambda w, _: use_metadata(w)),
]


def use_metadata(writer) -> None:
    """Step and time by default."""
    with writer.use_metadata(global_step=17, walltime=13.0):
        writer.add_scalar("by default", 0.1)
        writer.add_scalar("with a step", 0.2, 7)
        writer.add_text("text", "by default")


def logged(logdir: Path) -> dict[str, list[bytes]]:
    """The events of every directory, as bytes, without the first event of a file; and all other files."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(logdir.rglob("*")):
        directory = str(path.parent.relative_to(logdir))
        if ".hf_mpwriter" in path.parts or path.is_dir():
            continue
        if "tfevents" in path.name:
            payloads = (payload for payload in framing.payloads(str(path)) if b"brain.Event:2" not in payload)
            found.setdefault(directory, []).extend(payloads)
        else:
            found[str(path.relative_to(logdir))] = [path.read_bytes()]
    return found


# where they differ


def payload(logdir: Path):
    """The one summary value that was logged."""
    (value,) = (value for path in logdir.glob("*tfevents*") for event in events(path) for value in event.summary.value)
    return value


HPARAMS = {"lr": 0.1, "opt": "adam", "on": True}
