"""What type checkers must accept: one call or more of everything that is public. It is checked, and never run."""

from __future__ import annotations

import decimal
from pathlib import Path
from typing import assert_type

import numpy as np

from hf_mpwriter import HFSummaryWriter, SummaryWriter

IMAGE = np.zeros((3, 8, 8), np.float32)
NUMBERS = np.zeros(10)


def construct(folder: Path) -> None:
    """Both writers, with what either library calls its parameters."""
    SummaryWriter()
    SummaryWriter("runs/exp1", "comment", 100, 10, 120, ".suffix")
    SummaryWriter(log_dir=folder, purge_step=5, write_to_disk=False)
    SummaryWriter(folder, repo_id="me/run", repo_private=True, commit_every=0.5, exit_timeout=30)
    HFSummaryWriter("me/run")
    HFSummaryWriter(repo_id="me/run", logdir="runs/exp1", squash_history=True, token="hf_x", repo_type="dataset")
    HFSummaryWriter("me/run", logdir=folder, repo_allow_patterns=["*.tfevents.*"], repo_ignore_patterns="*.tmp")
    HFSummaryWriter("me/run", comment="x", purge_step=5, memory_limit=1 << 20, rank=3, filename_suffix=".x")


def use() -> None:
    """Results have types; a `with` gives the class back."""
    with HFSummaryWriter("me/run") as writer:
        assert_type(writer, HFSummaryWriter)
        assert_type(writer.push(wait=10), bool)
        assert_type(writer.dropped, int)
        assert_type(writer.last_step("loss"), int | None)
        assert_type(writer.scheduler.trigger().result(), str | None)
        writer.flush()
        writer.close(wait=True)


def log(writer: SummaryWriter) -> None:
    """Every method, with arrays, numbers and both orders of parameters."""
    writer.add_scalar("loss", 0.5, 3)
    writer.add_scalar("loss", np.float32(0.5), np.int64(3), walltime=5.0, display_name="Loss")
    writer.add_scalar("loss", decimal.Decimal("0.5"), new_style=True, double_precision=True)
    writer.add_scalar("loss", 1, 3, None, True, True)
    writer.add_scalars("loss", {"train": 0.5, "test": np.float64(0.5)}, 3)
    writer.add_histogram("weights", NUMBERS, 3, "auto", max_bins=10)
    writer.add_histogram_raw("weights", 0, 1, 10, 5.0, 3.0, [0.5, 1.0], [5, 5], 3)
    writer.add_image("sample", IMAGE, 3, dataformats="CHW")
    writer.add_images("samples", [IMAGE, IMAGE], 3, dataformats="CHW")
    writer.add_image_with_boxes("boxes", IMAGE, np.zeros((1, 4)), 3, None, "CHW", ["a"])
    writer.add_image_with_boxes("boxes", IMAGE, np.zeros((1, 4)), 3, None, 2.0, "CHW", ["a"])
    writer.add_image_with_boxes("boxes", IMAGE, np.zeros((1, 4)), 3, rescale=2, labels="a")
    writer.add_figure("figure", object(), 3, close=False)
    writer.add_video("video", np.zeros((1, 2, 3, 8, 8), np.uint8), 3, fps=2.5)
    writer.add_audio("sound", NUMBERS, 3, sample_rate=8000)
    writer.add_text("text", "*hello*", 3)
    writer.add_tensor("tensor", NUMBERS, 3)
    writer.add_onnx_graph("model.onnx")
    writer.add_onnx_graph(prototxt=Path("model.onnx"))
    writer.add_openvino_graph("model.xml")
    writer.add_graph(object(), verbose=True)
    writer.add_embedding(np.zeros((2, 3)), ["a", "b"], global_step=3, tag="e")
    writer.add_mesh("mesh", np.zeros((1, 4, 3)), config_dict={"camera": {"fov": 75}}, global_step=3)
    writer.add_pr_curve("pr", [0, 1], np.array([0.1, 0.9]), 3, weights=0.5)
    writer.add_pr_curve_raw("pr", [1], [1], [1], [1], [0.5], [0.5], 3, num_thresholds=1)
    writer.add_custom_scalars({"Loss": {"both": ["Multiline", ["loss/train", "loss/test"]]}})
    writer.add_custom_scalars_multilinechart(["a", "b"], title="t")
    writer.add_custom_scalars_marginchart(["a", "b", "c"], category="c")
    writer.add_hparams({"lr": 0.1, "opt": "adam"}, {"acc": 0.9}, "trial", 3)
    writer.add_hparams({"lr": 0.1}, {"acc": 0.9}, {"lr": [0.1, 0.2]}, "trial", 3)
    writer.add_hparams({"lr": 0.1}, {"acc": 0.9}, run_name="trial", global_step=3)
