"""Hazards of types, memory and log lines.

The rows h01 ... h16 are those of the hazards that were measured in tensorboardX and torch.
"""

from __future__ import annotations

import json
import math
import os
import tracemalloc
from decimal import Decimal

import numpy as np
import pytest
import tensorboardX
from hazards import PRELUDE, WITH_TORCH, needs_torch, numbers, runs
from programs import succeed

from hf_mpwriter import SummaryWriter


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("0.25"), 0.25),
        ("0.5", 0.5),
        (10**30, np.float32(1e30)),
        (-(10**30), np.float32(-1e30)),
        ([1.5], 1.5),
        (np.float16(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.bool_(True), 1.0),
    ],
    ids=repr,
)
def test_every_number_can_be_logged(tmp_path, value, expected):
    """Every number of torch or tensorboardX is accepted, in the sub-runs too."""
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("a", value, 1)
        writer.add_scalars("b", {"c": value}, 1)
    assert numbers(tmp_path) == [("a", 1, expected)]
    assert numbers(tmp_path / "b" / "c") == [("b", 1, expected)]


@pytest.mark.parametrize(
    ("step", "expected"), [("5", 5), (7.0, 7), (np.float32(3), 3), (True, 1), (2**63 - 1, 2**63 - 1)]
)
def test_every_step_that_is_a_whole_number_can_be_used(tmp_path, step, expected):
    """The step is what int() returns, as in tensorboardX; a fraction is refused."""
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("a", 1.0, step)
        writer.add_text("b", "hello", step)
    assert runs(tmp_path) == {".": [("a", expected), ("b/text_summary", expected)]}


def test_a_step_of_more_than_63_bits_is_refused_and_hurts_nothing(tmp_path):
    """ValueError as in tensorboardX and torch; the file is whole and takes the next record."""
    with SummaryWriter(str(tmp_path)) as writer:
        with pytest.raises(ValueError, match=r"."):
            writer.add_scalar("a", 1.0, 2**63)
        with pytest.raises(ValueError, match=r"."):
            writer.add_scalars("sub", {"run": 1.0}, 2**63)
        writer.add_scalar("a", 1.0, 1)
    assert runs(tmp_path)["."] == [("a", 1)]


@pytest.mark.torch
@needs_torch
def test_tensors_of_every_type_can_be_logged(tmp_path):
    """bf16 as in torch, and float8, half, bool, with a gradient; scalars, sub-runs and histograms."""
    source = """
import torch
writer = SummaryWriter(sys.argv[1])
kinds = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.int8, torch.bool)
for step, kind in enumerate(kinds):
    for tensor in (torch.tensor(1, dtype=kind), torch.ones(1, dtype=kind)):
        writer.add_scalar("a", tensor, step)
    writer.add_scalars("b", {"c": torch.tensor(1, dtype=kind)}, step)
    if kind is not torch.bool: writer.add_histogram("h", torch.ones(4).to(kind), step)
writer.add_scalar("a", torch.ones((), requires_grad=True) * 1, 7)
writer.add_scalar("a", torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16)), 7)
writer.add_tensor("t", torch.ones(2, 3, dtype=torch.bfloat16), 7)
writer.close()
"""
    succeed(PRELUDE + source, tmp_path, env=WITH_TORCH)
    found = numbers(tmp_path)
    assert [(step, value) for tag, step, value in found if tag == "a"] == [(n // 2, 1.0) for n in range(16)]
    assert [step for tag, step, _ in found if tag == "h"] == list(range(6))
    assert [step for tag, step, _ in found if tag == "t"] == [7]
    assert numbers(tmp_path / "b" / "c") == [("b", step, 1.0) for step in range(7)]


def test_add_tensor_keeps_the_tensor(tmp_path):
    """As torch's add_tensor: TensorBoard's own reader returns the array."""
    from tensorboard.backend.event_processing import plugin_event_accumulator
    from tensorboard.util import tensor_util

    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_tensor("t", array, 3)
        writer.add_tensor("t", array + 1, global_step=4, walltime=5.0)
    found = plugin_event_accumulator.EventAccumulator(str(tmp_path)).Reload().Tensors("t")
    assert [event.step for event in found] == [3, 4]
    assert found[1].wall_time == 5.0
    np.testing.assert_array_equal(tensor_util.make_ndarray(found[0].tensor_proto), array)
    np.testing.assert_array_equal(tensor_util.make_ndarray(found[1].tensor_proto), array + 1)


def test_add_scalars_does_not_keep_what_it_has_written(tmp_path):
    """scalar_dict: 8000 values add nothing to the memory of the process."""
    with SummaryWriter(str(tmp_path)) as writer:

        def log(first: int, last: int) -> None:
            for step in range(first, last):
                writer.add_scalar("a", 0.5, step)
                writer.add_scalars("b", {"c": 1.0, "d": 2.0, "e": 3.0}, step)

        log(0, 200)
        tracemalloc.start()
        try:
            log(200, 400)
            before = tracemalloc.get_traced_memory()[0]
            log(400, 2400)
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert grown < 200_000  # tensorboardX: above a megabyte


def test_exported_scalars_are_those_of_tensorboardx(tmp_path):
    """export_scalars_to_json: the same names below the logdir, the same points, to the precision of a float32."""
    exported = {}
    for kind, name in ((SummaryWriter, "ours"), (tensorboardX.SummaryWriter, "theirs")):
        with kind(str(tmp_path / name)) as writer:
            for step in range(20):
                writer.add_scalars("loss", {"train": step / 3, "a/b": -step}, step, walltime=1e9 + step)
            writer.export_scalars_to_json(str(tmp_path / f"{name}.json"))
        content = json.loads((tmp_path / f"{name}.json").read_text())
        exported[name] = {os.path.relpath(key, tmp_path / name): points for key, points in content.items()}
    assert set(exported["ours"]) == set(exported["theirs"]) == {"loss/train", "loss/a/b"}
    for key, points in exported["theirs"].items():
        assert exported["ours"][key] == [[when, step, pytest.approx(value, rel=1e-6)] for when, step, value in points]


def test_nan_and_infinity_do_not_fill_the_log(tmp_path, caplog):
    """A diverged training logs NaN at every step: it is in the file, without a log line for every call."""
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(50):
            writer.add_scalar("a", math.nan, step)
            writer.add_scalar("a", np.array([math.inf]), step)
            writer.add_scalar("a", math.inf, step, display_name="title")
            writer.add_scalars("b", {"c": -math.inf}, step)
    assert len(caplog.records) <= 4, f"{len(caplog.records)} lines of 200 calls"
    assert [str(value) for _, _, value in numbers(tmp_path)[:2]] == ["nan", "inf"]
    assert len(numbers(tmp_path)) == 150
    assert {value for _, _, value in numbers(tmp_path / "b" / "c")} == {-math.inf}
