"""Embeddings, which are files beside the event files, and meshes."""

from __future__ import annotations

from typing import Any

from tensorboardX.writer import SummaryWriter as _SummaryWriter

from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.worker.worker import Worker
from hf_mpwriter.writer.scalars import ScalarMethods
from hf_mpwriter.writer.values import Array, Step, plain, square


class _Beside:
    """A writer as tensorboardX needs it for files: they go to where event files are, which the logdir may not be."""

    def __init__(self, writer: PointMethods, worker: Worker) -> None:
        self._writer, self._worker = writer, worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def _get_file_writer(self) -> _Beside:
        return self

    def get_logdir(self) -> str:
        """Return the worker directory on this disk."""
        return str(self._worker.files.directory())


class PointMethods(ScalarMethods):
    """`add_embedding` and `add_mesh`."""

    def add_embedding(
        self,
        mat: Array,
        metadata: list[Any] | None = None,
        label_img: Array | None = None,
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
            label_img: shape (N, C, H, W): a picture of each point; values as in `add_image`. TensorBoard needs
                squares, so others are padded with black.
            global_step: step.
            tag: name of the embedding.
            metadata_header: names of the columns, if each label is a list.

        Raises:
            NotLoggableError: a shape does not fit, or there are not N labels or pictures.
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

    def add_mesh(
        self,
        tag: str,
        vertices: Array,
        colors: Array | None = None,
        faces: Array | None = None,
        config_dict: dict[str, Any] | None = None,
        global_step: Step = None,
        walltime: float | None = None,
    ) -> None:
        """Add a mesh, or a cloud of points, which TensorBoard shows in three dimensions.

        Args:
            tag: its name.
            vertices: shape (B, N, 3): x, y and z of N points, in B meshes.
            colors: shape (B, N, 3): red, green and blue of each point, in [0, 255].
            faces: shape (B, F, 3): numbers of the points of each triangle, in [0, N); None for a cloud of points.
            config_dict: classes of ThreeJS and how to configure them, such as `{"camera": {"fov": 75}}`.
            global_step: step, a whole number.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: a shape does not fit, or this is no tensor.
        """
        super().add_mesh(tag, plain(vertices), plain(colors), plain(faces), config_dict, global_step, walltime)
