"""The `add_*` methods other than scalars: the signatures of tensorboardX and of torch, in one.

    add_hparams      tensorboardX -> FileWriter.add_summary, into the directory of the trial
    add_embedding    tensorboardX -> files in the worker directory
    add_*            tensorboardX -> FileWriter.add_summary -> EventFile.append

Every method raises `NotLoggableError` for what cannot be logged. Where tensorboardX and torch differ, both parameter
names are accepted. By position, the type of the argument decides which parameter is meant. Everything here is encoded
by tensorboardX.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tensorboardX.summary import hparams
from tensorboardX.writer import SummaryWriter as _SummaryWriter

from hf_mpwriter.base.home import is_url
from hf_mpwriter.base.names import sub_directory
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.worker.worker import Worker
from hf_mpwriter.writer import summaries
from hf_mpwriter.writer.refusals import refusing
from hf_mpwriter.writer.scalars import ScalarMethods
from hf_mpwriter.writer.values import as_number, as_python, plain, sound, square


def _takes_any_tensor(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of tensorboardX, so that it accepts tensors of all of torch's types."""

    @functools.wraps(method)
    def call(self: AddMethods, *args: Any, **kwargs: Any) -> Any:
        return method(self, *map(plain, args), **{name: plain(value) for name, value in kwargs.items()})

    return call


class _Beside:
    """A writer as tensorboardX needs it for files: they go to where event files are, which the logdir may not be.

    Args:
        writer: that is meant.
        worker: of this process.
    """

    def __init__(self, writer: AddMethods, worker: Worker) -> None:
        self._writer, self._worker = writer, worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def _get_file_writer(self) -> _Beside:
        return self

    def get_logdir(self) -> str:
        """Return the worker directory on this disk."""
        return str(self._worker.files.directory())


class AddMethods(ScalarMethods):
    """All that can be logged; `SummaryWriter` adds construction, closing and pickling."""

    def add_hparams(
        self,
        hparam_dict: dict[str, Any],
        metric_dict: dict[str, Any],
        *args: Any,
        name: str | None = None,
        hparam_domain_discrete: dict[str, list[Any]] | None = None,
        run_name: str | None = None,
        global_step: Any = None,
    ) -> None:
        """Add hyperparameters and metrics, in a run of their own.

        Args:
            hparam_dict: values of the hyperparameters.
            metric_dict: values of the metrics, as in `add_scalar`.
            *args: tensorboardX's order (name, global_step) or torch's (hparam_domain_discrete, run_name, global_step):
                a string is the name, a dict the domains, a number the step.
            name: directory below this worker's; default: a new one, named after the time.
            hparam_domain_discrete: values that a hyperparameter can have, of the hyperparameter's type.
            run_name: torch's name for `name`.
            global_step: step of the metrics.

        Raises:
            NotLoggableError: hparam_dict or metric_dict is no dictionary, or a domain does not fit its hyperparameter.
        """
        if type(hparam_dict) is not dict or type(metric_dict) is not dict:
            raise TypeError("hparam_dict and metric_dict should be dictionary.")
        by_type = {type(value): value for value in args}
        hparam_domain_discrete = by_type.pop(dict, hparam_domain_discrete)
        name = by_type.pop(str, None) or name or run_name
        by_type.pop(type(None), None)
        global_step = next(iter(by_type.values()), global_step)
        python = {key: as_python(value) for key, value in hparam_dict.items()}
        experiment, *others = hparams(python, metric_dict)
        if hparam_domain_discrete:
            experiment = summaries.with_domains(experiment, python, hparam_domain_discrete)
        self._add_trial(name, [experiment, *others], metric_dict, global_step)

    def _add_trial(self, name: str | None, setup: list[Any], metrics: dict[str, Any], step: Any) -> None:
        """Log a trial into a directory of its own, and seal its event file: a search makes thousands of trials.

        Args:
            name: directory below this worker's; None for a new one, named after the time.
            setup: summaries of the hyperparameters.
            metrics: value per tag.
            step: of the metrics.
        """
        sub = self._trial_directory(name) if name else str(time.time())
        file_writer = self._directory_writer(sub)
        for summary in setup:
            file_writer.add_summary(summary)
        for tag, value in metrics.items():
            self._add_to_directory(file_writer, tag, value, step, time.time())
        if not name:  # no later call uses this directory again
            (self.all_writers or {}).pop(os.path.join(self.logdir, sub), None)
        if self._worker is not None and sub:
            self._worker.files.finish(sub, self._filename_suffix, forget=not name)

    def _trial_directory(self, name: str) -> str:
        """Return the relative directory of a trial; its name may be an absolute path inside the run directory."""
        run_dir = str(self.logdir)
        if is_url(run_dir):
            name = name.removeprefix(f"{run_dir}/")
        elif os.path.isabs(name) and os.path.commonpath([name, run_dir]) == run_dir:
            name = os.path.relpath(name, run_dir)
        return sub_directory(name)

    def add_histogram(
        self,
        tag: str,
        values: Any,
        global_step: Any = None,
        bins: Any = "tensorflow",
        walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """Add a histogram.

        Args:
            tag: its name.
            values: a tensor, an array, or one number, also in a string or in bytes.
            global_step: step.
            bins: how the bins are made: `tensorflow`, or what `numpy.histogram` knows.
            walltime: unix time in seconds, None for now.
            max_bins: number of bins, at most.
        """
        number = as_number(values) if isinstance(values, (str, bytes)) else None
        array = plain(values) if number is None else np.array([number])
        super().add_histogram(tag, array, global_step, bins, walltime, max_bins)

    add_histogram_raw = _takes_any_tensor(_SummaryWriter.add_histogram_raw)
    add_image = _takes_any_tensor(_SummaryWriter.add_image)
    add_images = _takes_any_tensor(_SummaryWriter.add_images)
    add_video = _takes_any_tensor(_SummaryWriter.add_video)
    add_pr_curve = _takes_any_tensor(_SummaryWriter.add_pr_curve)
    add_pr_curve_raw = _takes_any_tensor(_SummaryWriter.add_pr_curve_raw)
    add_mesh = _takes_any_tensor(_SummaryWriter.add_mesh)

    def add_image_with_boxes(
        self,
        tag: str,
        img_tensor: Any,
        box_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        *args: Any,
        rescale: float = 1,
        dataformats: str = "CHW",
        labels: list[str] | str | None = None,
    ) -> None:
        """Add an image, and draw boxes into it.

        Args:
            tag: its name.
            img_tensor: shape as `dataformats` says; uint8 in [0, 255] or float in [0, 1].
            box_tensor: shape (N, 4): xmin, ymin, xmax, ymax in pixels.
            global_step: step.
            walltime: unix time in seconds, None for now.
            *args: tensorboardX's order (dataformats, labels) or torch's (rescale, dataformats, labels): a number is
                the scale, the first string the format.
            rescale: factor by which the image is enlarged.
            dataformats: order of the dimensions: CHW, HWC or HW.
            labels: a text for each box.
        """
        rest = list(args)
        if rest and not isinstance(rest[0], str):
            rescale = rest.pop(0)
        dataformats = rest.pop(0) if rest else dataformats
        labels = rest.pop(0) if rest else labels
        super().add_image_with_boxes(
            tag,
            plain(img_tensor),
            plain(box_tensor),
            global_step,
            walltime,
            dataformats=dataformats,
            labels=labels,
            rescale=rescale,
        )

    def add_tensor(self, tag: str, tensor: Any, global_step: Any = None, walltime: float | None = None) -> None:
        """Add a tensor with all its values.

        Args:
            tag: its name.
            tensor: a tensor or an array; bfloat16 becomes float32.
            global_step: step.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: the tensor has 2 GiB or more, or a type that cannot be stored.
        """
        self._get_file_writer().add_summary(summaries.tensor(tag, tensor), global_step, walltime)

    def add_text(self, tag: str, text_string: str, global_step: Any = None, walltime: float | None = None) -> None:
        """Add a text.

        Args:
            tag: its name.
            text_string: Markdown.
            global_step: step.
            walltime: unix time in seconds, None for now.
        """
        self._get_file_writer().add_summary(summaries.text(tag, text_string), global_step, walltime)

    def add_audio(
        self,
        tag: str,
        snd_tensor: Any,
        global_step: Any = None,
        sample_rate: int = 44100,
        walltime: float | None = None,
    ) -> None:
        """Add a sound.

        Args:
            tag: its name.
            snd_tensor: shape (L, C) with one or two channels, or torch's (1, L); values between -1 and 1.
            global_step: step.
            sample_rate: in Hz.
            walltime: unix time in seconds, None for now.
        """
        super().add_audio(tag, sound(plain(snd_tensor)), global_step, sample_rate, walltime)

    def add_onnx_graph(
        self, onnx_model_file: str | os.PathLike[str] | None = None, *, prototxt: str | os.PathLike[str] | None = None
    ) -> None:
        """Add an ONNX graph.

        Args:
            onnx_model_file: path of the model.
            prototxt: torch's name for `onnx_model_file`.
        """
        super().add_onnx_graph(prototxt if onnx_model_file is None else onnx_model_file)

    def add_embedding(
        self,
        mat: Any,
        metadata: list[Any] | None = None,
        label_img: Any = None,
        global_step: int | None = None,
        tag: str = "default",
        metadata_header: list[str] | None = None,
    ) -> None:
        """Add data for the embedding projector, as files in the worker directory instead of events.

        Where event files are kept on a local disk on their way to the logdir, these files go there, too.

        To upload them, name them in `repo_allow_patterns`, such as `["*.tfevents.*", "*.tsv", "*.png", "*.pbtxt"]`. If
        the disk refuses them, `dropped` counts one more.

        Args:
            mat: shape (N, D): N points of dimension D.
            metadata: N labels.
            label_img: shape (N, C, H, W): a picture of each point. TensorBoard needs squares, so others are padded with
                black.
            global_step: step.
            tag: name of the embedding.
            metadata_header: names of the columns, if each label is a list.
        """
        try:
            data = plain(mat), metadata, square(plain(label_img)), global_step, tag, metadata_header
            _SummaryWriter.add_embedding(self if self._worker is None else _Beside(self, self._worker), *data)
        except OSError as error:
            logger.warning("%s: an embedding cannot be written: %s", self.logdir, error.strerror or error)
            if self._worker is not None:
                self._worker.files.count_lost(1)
        else:
            if self._worker is not None:
                self._worker.note_logged()


for _name in dir(AddMethods):
    if _name.startswith("add_") and _name != "add_scalar":  # the short path has it in its own body
        setattr(AddMethods, _name, refusing(getattr(AddMethods, _name)))
