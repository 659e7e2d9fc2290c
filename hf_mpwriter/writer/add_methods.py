"""The `add_*` methods: tensorboardX's and torch's together, onto our event files.

    add_scalar                   ScalarEncoder.record -> EventFile.append_record
    add_scalars, add_hparams     the same, into the event files of directories below the worker's
    add_*                        tensorboardX -> FileWriter.add_summary -> EventFile.append

Where tensorboardX and torch differ, the parameters of both are accepted by name, and by position where the type of the
argument tells which one is meant.

Invariants:
- A plain scalar is encoded by hand, byte-identical to the protobuf; everything else is encoded by tensorboardX.
- Nothing of what is logged stays in memory: only the encoders of TAGS_KEPT tags, and what is known of each directory.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from tensorboardX.summary import _clean_tag, hparams, scalar
from tensorboardX.writer import DummyFileWriter
from tensorboardX.writer import SummaryWriter as _SummaryWriter

from hf_mpwriter.base.names import sub_directory
from hf_mpwriter.events.framing import ScalarEncoder
from hf_mpwriter.worker.worker import Worker
from hf_mpwriter.writer import file_writer as file_writer_module
from hf_mpwriter.writer import summaries
from hf_mpwriter.writer.file_writer import FileWriter
from hf_mpwriter.writer.values import as_number, as_python, plain, sound, square

logger = logging.getLogger("hf_mpwriter")

TAGS_KEPT = 4096  # tags whose encoder a writer remembers


def _takes_any_tensor(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of tensorboardX for tensors of all of torch's types."""

    @functools.wraps(method)
    def call(self: AddMethods, *args: Any, **kwargs: Any) -> Any:
        return method(self, *map(plain, args), **{name: plain(value) for name, value in kwargs.items()})

    return call


class AddMethods(_SummaryWriter):
    """What can be logged. The constructor and the life of a writer are in `SummaryWriter`."""

    _worker: Worker | None = None
    _purges = False
    file_writer: Any
    all_writers: Any

    def _start_adding(self) -> None:
        """Forget what belongs to one process."""
        self._user = object()  # stands for this writer where its worker counts its users
        self._encoders: dict[str, ScalarEncoder] = {}
        self._groups: set[str] = set()  # directories of add_scalars
        self._exported: dict[str, int] = {}
        self._purged: set[str] = set()  # directories

    def _purge_of(self, sub: str) -> int | None:
        """The step from which a directory is to be purged: once for each writer that was constructed."""
        if not self._purges or sub in self._purged:
            return None
        self._purged.add(sub)
        step: int = self.purge_step
        return step

    def _sub_writer(self, sub: str) -> Any:
        """The FileWriter of a directory below the worker directory."""
        main = self._get_file_writer()
        writers = self.all_writers
        if not sub or writers is None:  # another thread closes at this moment
            return main if not sub else self._new_sub_writer(sub)
        key = os.path.join(self.logdir, sub)
        if key not in writers:
            writers[key] = self._new_sub_writer(sub)
        return writers[key]

    def _new_sub_writer(self, sub: str) -> Any:
        if self._worker is None:
            return DummyFileWriter(logdir=os.path.join(self.logdir, sub))
        return FileWriter(self._worker, sub, self._filename_suffix, self._purge_of(sub))

    # scalars

    def add_scalar(
        self,
        tag: str,
        scalar_value: Any,
        global_step: Any = None,
        walltime: float | None = None,
        display_name: str | bool = "",
        summary_description: str | bool = "",
        *,
        new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        """Add a scalar.

        Args:
            tag: its name.
            scalar_value: a Python or numpy number, a Decimal, a number in a string, a tensor or array of one element.
            global_step: step.
            walltime: unix time in seconds, None for now.
            display_name: title of the plot; a bool is torch's `new_style`.
            summary_description: text behind the information icon of the plot; a bool is torch's `double_precision`.
            new_style: whether to use the tensor field.
            double_precision: with `new_style`, whether to keep a float64; a classic scalar is a float32.

        Raises:
            ValueError: the step does not fit into 64 bits, or a string is no number.
        """
        file_writer, worker = self.file_writer or self._get_file_writer(), self._worker
        value = scalar_value if type(scalar_value) is float else as_number(scalar_value)
        special = (
            display_name or summary_description or new_style or walltime == 0 or file_writer_module.is_intercepted()
        )
        if special or value is None or worker is None or file_writer._default_metadata:
            summary = self._special_scalar(
                tag,
                scalar_value if value is None else value,
                (display_name, summary_description),
                new_style=new_style or bool(display_name and not isinstance(display_name, str)),
                double_precision=double_precision
                or bool(summary_description and not isinstance(summary_description, str)),
            )
            file_writer.add_summary(summary, global_step, walltime)
            return
        encoder = self._encoders.get(tag) or self._encoder(tag)
        step = global_step if global_step is None or type(global_step) is int else int(global_step)
        now = time.time() if walltime is None else walltime
        file_writer.event_writer.file.append_record(encoder.record(now, step, value))
        if time.monotonic() >= worker.next_housekeeping:
            worker.keep_house()

    def _special_scalar(
        self,
        tag: str,
        value: Any,
        texts: tuple[str | bool, str | bool],
        *,
        new_style: bool,
        double_precision: bool,
    ) -> Any:
        if (number := as_number(value)) is None:
            number = scalar(tag, value).value[0].simple_value
        if new_style:
            return summaries.scalar_tensor(tag, number, double_precision=double_precision)
        return summaries.scalar(tag, number, *(text if isinstance(text, str) else "" for text in texts))

    def _encoder(self, tag: str) -> ScalarEncoder:
        if len(self._encoders) >= TAGS_KEPT:
            self._encoders.clear()
        encoder = self._encoders[tag] = ScalarEncoder(_clean_tag(tag) or "")
        return encoder

    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: dict[str, Any],
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Add several scalars to one plot, each in a run of its own at `<main_tag>/<tag>/`.

        Args:
            main_tag: name of the plot.
            tag_scalar_dict: value per tag, as in `add_scalar`.
            global_step: step.
            walltime: unix time in seconds, None for now.
        """
        defaults = self._get_file_writer()._default_metadata if self._worker else {}
        step = defaults.get("global_step") if global_step is None else global_step
        now = defaults.get("walltime") if walltime is None else walltime
        now = time.time() if now is None else now
        for tag, value in tag_scalar_dict.items():
            self._groups.add(sub := sub_directory(main_tag, tag))
            self._add_to_sub(self._sub_writer(sub), main_tag, value, step, now)

    def _add_to_sub(self, sub_writer: Any, tag: str, value: Any, step: Any, walltime: float) -> None:
        number = as_number(value)
        if number is None or not walltime or self._worker is None or file_writer_module.is_intercepted():
            summary = scalar(tag, value) if number is None else summaries.scalar(tag, number)
            sub_writer.add_summary(summary, step, walltime)
            return
        encoder = self._encoders.get(tag) or self._encoder(tag)
        record = encoder.record(walltime, None if step is None else int(step), number)
        sub_writer.event_writer.append_record(record)

    def export_scalars_to_json(self, path: str | os.PathLike[str]) -> None:
        """Write what `add_scalars` has logged since the last export: `{directory: [[time, step, value], ...], ...}`.

        Nothing is kept in memory for this: the event files of this process are read. They have float32 values, and 0
        for no step.

        Args:
            path: of the JSON file.
        """
        found: dict[str, list[list[float]]] = {}
        if (worker := self._worker) is not None:
            for sub in sorted(self._groups):
                directory = os.path.join(worker.files.directory(), sub)
                found[directory] = summaries.read_scalars(worker.files.segments(sub), self._exported)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(found, file)

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
            name: directory below this worker's, default the time.
            hparam_domain_discrete: the values that a hyperparameter can have, of its type.
            run_name: torch's name for `name`.
            global_step: step of the metrics.

        Raises:
            TypeError: hyperparameters or metrics are no dictionary, or a domain does not fit its hyperparameter.
        """
        if type(hparam_dict) is not dict or type(metric_dict) is not dict:
            raise TypeError("hparam_dict and metric_dict should be dictionary.")
        by_type = {type(value): value for value in args}
        hparam_domain_discrete = by_type.pop(dict, hparam_domain_discrete)
        given = by_type.pop(str, None) or name or run_name
        by_type.pop(type(None), None)
        global_step = next(iter(by_type.values()), global_step)
        python = {key: as_python(value) for key, value in hparam_dict.items()}
        experiment, *others = hparams(python, metric_dict)
        if hparam_domain_discrete:
            experiment = summaries.with_domains(experiment, python, hparam_domain_discrete)
        sub = self._directory_of_trial(given) if given else str(time.time())
        sub_writer = self._sub_writer(sub)
        for summary in (experiment, *others):
            sub_writer.add_summary(summary)
        for tag, value in metric_dict.items():
            self._add_to_sub(sub_writer, tag, value, global_step, time.time())
        if not given:  # a search makes thousands of them, each under a name that nobody else has
            (self.all_writers or {}).pop(os.path.join(self.logdir, sub), None)
        if self._worker is not None and sub:
            self._worker.files.finish(sub, self._filename_suffix, forget=not given)

    def _directory_of_trial(self, name: str) -> str:
        """Relative; an absolute path inside the run directory, such as `log_dir`, is meant as it is."""
        run_dir = str(self.logdir)
        if os.path.isabs(name) and os.path.commonpath([name, run_dir]) == run_dir:
            name = os.path.relpath(name, run_dir)
        return sub_directory(name)

    # everything else

    add_histogram = _takes_any_tensor(_SummaryWriter.add_histogram)
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
        """Add an image with boxes drawn into it.

        Args:
            tag: its name.
            img_tensor: shape as `dataformats` says; uint8 in [0, 255] or float in [0, 1].
            box_tensor: shape (N, 4): xmin, ymin, xmax, ymax in pixels.
            global_step: step.
            walltime: unix time in seconds, None for now.
            *args: tensorboardX's order (dataformats, labels) or torch's (rescale, dataformats, labels): a number is
                the scale, the first string the format.
            rescale: factor of the size.
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
        """Add a whole tensor.

        Args:
            tag: its name.
            tensor: a tensor or an array; bfloat16 becomes float32.
            global_step: step.
            walltime: unix time in seconds, None for now.

        Raises:
            ValueError: it has 2 GiB or more, or a type that cannot be stored.
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
            prototxt: torch's name for it.
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
        """Add data for the embedding projector: files in the worker directory, not events.

        They are uploaded if `repo_allow_patterns` names them, such as `["*.tfevents.*", "*.tsv", "*.png", "*.pbtxt"]`.
        What the disk refuses is counted in `dropped`.

        Args:
            mat: shape (N, D): N points of dimension D.
            metadata: N labels.
            label_img: shape (N, C, H, W): a picture of each point; TensorBoard wants squares, so others are filled up.
            global_step: step.
            tag: name of the embedding.
            metadata_header: names of the columns, if each label is a list.
        """
        try:
            super().add_embedding(plain(mat), metadata, square(plain(label_img)), global_step, tag, metadata_header)
        except OSError as error:
            logger.warning("%s: the disk refuses an embedding: %s", self.logdir, error.strerror or error)
            if self._worker is not None:
                self._worker.files.count_lost(1)
        else:
            if self._worker is not None:
                self._worker.note_logged()
