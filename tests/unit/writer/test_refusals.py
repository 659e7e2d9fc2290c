"""What cannot be logged raises what callers of torch's and of tensorboardX's writers catch."""

from __future__ import annotations

import builtins
import logging

import numpy as np
import pytest
import tensorboardX
from support import events

from hf_mpwriter import SummaryWriter
from hf_mpwriter.writer.refusals import NotLoggableError

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch.utils.tensorboard import SummaryWriter as TorchWriter  # noqa: E402 - only if there is a torch

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

IMAGE = np.zeros((3, 4, 4), np.float32)
CALLS = {
    "add_scalar": lambda w, v: w.add_scalar("a", v, 1),
    "add_scalar: tag": lambda w, v: w.add_scalar(v, 1.0, 1),
    "add_scalar: global_step": lambda w, v: w.add_scalar("a", 1.0, v),
    "add_scalar: walltime": lambda w, v: w.add_scalar("a", 1.0, 1, v),
    "add_scalars": lambda w, v: w.add_scalars("a", v, 1),
    "add_scalars: value": lambda w, v: w.add_scalars("a", {"x": v}, 1),
    "add_scalars: tag": lambda w, v: w.add_scalars(v, {"x": 1.0}, 1),
    "add_histogram": lambda w, v: w.add_histogram("a", v, 1),
    "add_histogram: bins": lambda w, v: w.add_histogram("a", np.ones(3), 1, v),
    "add_histogram_raw": lambda w, v: w.add_histogram_raw("a", 0, 1, 2, 3, 4, v, [1, 2]),
    "add_image": lambda w, v: w.add_image("a", v, 1),
    "add_image: dataformats": lambda w, v: w.add_image("a", IMAGE, 1, dataformats=v),
    "add_images": lambda w, v: w.add_images("a", v, 1),
    "add_image_with_boxes": lambda w, v: w.add_image_with_boxes("a", v, np.zeros((1, 4)), 1),
    "add_image_with_boxes: box": lambda w, v: w.add_image_with_boxes("a", IMAGE, v, 1),
    "add_figure": lambda w, v: w.add_figure("a", v, 1),
    "add_video": lambda w, v: w.add_video("a", v, 1),
    "add_audio": lambda w, v: w.add_audio("a", v, 1),
    "add_text": lambda w, v: w.add_text("a", v, 1),
    "add_text: tag": lambda w, v: w.add_text(v, "a", 1),
    "add_embedding": lambda w, v: w.add_embedding(v),
    "add_embedding: metadata": lambda w, v: w.add_embedding(np.zeros((2, 2)), v),
    "add_pr_curve": lambda w, v: w.add_pr_curve("a", v, np.zeros(3)),
    "add_pr_curve: predictions": lambda w, v: w.add_pr_curve("a", np.zeros(3), v),
    "add_custom_scalars": lambda w, v: w.add_custom_scalars(v),
    "add_custom_scalars_multilinechart": lambda w, v: w.add_custom_scalars_multilinechart(v),
    "add_custom_scalars_marginchart": lambda w, v: w.add_custom_scalars_marginchart(v),
    "add_mesh": lambda w, v: w.add_mesh("a", v),
    "add_hparams": lambda w, v: w.add_hparams(v, {"a": 1.0}),
    "add_hparams: value": lambda w, v: w.add_hparams({"x": v}, {"a": 1.0}),
    "add_hparams: metrics": lambda w, v: w.add_hparams({"x": 1}, v),
    "add_hparams: metric": lambda w, v: w.add_hparams({"x": 1}, {"a": v}),
}


class Odd:
    """No value at all."""


BAD = [
    *(None, [], [1, 2], [1.0], (1, 2), {"a": 1}, {1, 2}, [[1, 2], [3]], object, Odd(), 1 + 2j, True, float("nan")),
    *("", "text", "1.5", b"1.5", b"text", bytearray(b"1"), "\udcff", 10**400),
    *(np.zeros(3), np.zeros((2, 2)), np.zeros(0), np.array("x"), IMAGE),
    *(torch.zeros(3), torch.zeros(0), torch.tensor(1 + 2j)),
]


def refusal(writer, call, value) -> Exception | None:
    """What a call raises."""
    try:
        call(writer, value)
    except Exception as error:  # noqa: BLE001 - any
        return error
    return None


def built_in(error: Exception) -> type:
    """The class by which a program catches an error, which may be of a private class of numpy."""
    return next(kind for kind in type(error).__mro__ if kind.__module__ == builtins.__name__)


@pytest.mark.parametrize("name", CALLS)
def test_a_refusal_is_caught_by_what_catches_that_of_either_library(tmp_path, name):
    """For each method and kind of value: an instance of both classes; what one library takes is not refused."""
    logging.disable()
    kinds = {"ours": SummaryWriter, "x": tensorboardX.SummaryWriter, "torch": TorchWriter}
    writers = {place: kind(str(tmp_path / place)) for place, kind in kinds.items()}
    try:
        for value in BAD:
            ours, *theirs = (refusal(writer, CALLS[name], value) for writer in writers.values())
            if ours is not None:
                assert None not in theirs, f"{value!r} is refused: {ours!r}"
                for error in theirs:
                    assert isinstance(ours, built_in(error)), f"{value!r}: {ours!r}, but {error!r} there"
            elif None not in theirs:
                assert isinstance(value, (bytes, int)), f"{value!r} is accepted: bytes as a tag, and infinity"
    finally:
        for writer in writers.values():
            writer.close()
        logging.disable(logging.NOTSET)


def test_bytes_are_taken_as_torch_takes_them(tmp_path):
    """A number in bytes is a number, a tag in bytes is its text."""
    for place, kind in (("ours", SummaryWriter), ("theirs", TorchWriter)):
        with kind(str(tmp_path / place)) as writer:
            writer.add_scalar(b"loss", b"1.5", 1)
            writer.add_scalar(b"loss", 2.5, 2, new_style=True)
            writer.add_scalar("other", np.float32(3.5), 3)
            writer.add_histogram(b"weights", np.arange(3.0), 4)
            writer.add_image(b"picture", IMAGE, 5)
    found = [
        [(value.tag, event.step, value.simple_value) for event in events(path) for value in event.summary.value]
        for path in sorted(tmp_path.glob("*/*tfevents*"))
    ]
    assert found[0] == found[1]
    assert [tag for tag, _, _ in found[0]] == ["loss", "loss", "other", "weights", "picture"]


class StopError(RuntimeError):
    """An exception of the program."""


@pytest.mark.parametrize("name", ["add_scalar", "add_scalars: value", "add_text"])
def test_what_an_object_of_the_program_raises_passes_unchanged(tmp_path, name):
    """A class that the program knows, from inside a call."""

    class Stops:
        @property
        def shape(self) -> None:
            """Raise."""
            raise StopError("now")

        item = __array__ = __len__ = encode = __add__ = shape

    with SummaryWriter(tmp_path) as writer, pytest.raises(StopError) as found:
        CALLS[name](writer, Stops())
    assert type(found.value) is StopError


def test_a_refusal_shows_where_it_came_from(tmp_path):
    """One traceback, with the message of the first error; nothing is logged by the call."""
    with SummaryWriter(tmp_path) as writer:
        with pytest.raises(NotLoggableError, match="could not convert string") as found:
            writer.add_scalar("a", "text", 1)
        assert found.value.__suppress_context__
        assert "as_number" in {entry.name for entry in found.traceback}
    assert not list(tmp_path.glob("*tfevents*"))


def test_the_callback_of_skorch_skips_what_it_cannot_log(tmp_path):
    """It logs each entry of the history, and passes over those for which NotImplementedError is raised."""
    history = {"train_loss": 0.5, "batches": [{"loss": 1.0}, {"loss": 2.0}], "dur": 1.5, "none": [], "deep": [[1, 2]]}
    with SummaryWriter(tmp_path) as writer:
        logged = []
        for key, value in history.items():
            try:
                writer.add_scalar(key, value, global_step=1)
            except NotImplementedError:  # as in skorch.callbacks.TensorBoard.add_scalar_maybe
                continue
            logged.append(key)
    assert logged == ["train_loss", "dur"]
