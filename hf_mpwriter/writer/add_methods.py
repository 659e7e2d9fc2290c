"""The `add_*` methods other than scalars and trials: tensorboardX encodes them, and the event file holds the bytes.

Where tensorboardX and torch differ, both parameter names are accepted. By position, the type of the argument decides
which parameter is meant. A tensor of a type that numpy lacks becomes float32.
"""

from __future__ import annotations

import os
from typing import Any, overload

import numpy as np

from hf_mpwriter.writer import summaries
from hf_mpwriter.writer.scalars import ScalarMethods
from hf_mpwriter.writer.values import Array, Number, Step, as_number, plain, sound


class AddMethods(ScalarMethods):
    """Images, sounds, texts, tensors, distributions, meshes, charts and graphs."""

    def add_image(
        self,
        tag: str,
        img_tensor: Array,
        global_step: Step = None,
        walltime: float | None = None,
        dataformats: str = "CHW",
    ) -> None:
        """Add an image. It needs Pillow.

        Args:
            tag: its name.
            img_tensor: tensor or array of shape (C, H, W) with C of 1, 3 or 4: grey, RGB or RGBA; other orders with
                `dataformats`. Values are uint8 in [0, 255]; those of any other type are taken for floats in [0, 1],
                and multiplied by 255.
            global_step: step, a whole number.
            walltime: unix time in seconds, None for now.
            dataformats: order of the dimensions: CHW, HWC, HW, or NCHW for a grid of images.

        Raises:
            NotLoggableError: the shape does not fit `dataformats`, or this is no tensor.

        Example:
            writer.add_image("samples", np.random.rand(3, 64, 64), step)
        """
        super().add_image(tag, plain(img_tensor), global_step, walltime, dataformats)

    def add_images(
        self,
        tag: str,
        img_tensor: Array,
        global_step: Step = None,
        walltime: float | None = None,
        dataformats: str = "NCHW",
    ) -> None:
        """Add several images, which TensorBoard shows as one grid. It needs Pillow.

        Args:
            tag: name of the grid.
            img_tensor: tensor or array of shape (N, C, H, W) with C of 1 or 3, or a list of N images of equal shape;
                with a list, `dataformats` is CHW or HWC, and torch has to be installed. Values as in `add_image`.
            global_step: step, a whole number.
            walltime: unix time in seconds, None for now.
            dataformats: order of the dimensions: NCHW or NHWC; of the images of a list: CHW or HWC.

        Raises:
            NotLoggableError: the shape does not fit `dataformats`, or this is no tensor.
        """
        super().add_images(tag, plain(img_tensor), global_step, walltime, dataformats)

    @overload
    def add_image_with_boxes(
        self,
        tag: str,
        img_tensor: Array,
        box_tensor: Array,
        global_step: Step = None,
        walltime: float | None = None,
        dataformats: str = "CHW",
        labels: list[str] | str | None = None,
        *,
        rescale: float = 1,
    ) -> None: ...

    @overload
    def add_image_with_boxes(
        self,
        tag: str,
        img_tensor: Array,
        box_tensor: Array,
        global_step: Step = None,
        walltime: float | None = None,
        rescale: float = 1,
        dataformats: str = "CHW",
        labels: list[str] | str | None = None,
    ) -> None: ...

    def add_image_with_boxes(
        self,
        tag: str,
        img_tensor: Array,
        box_tensor: Array,
        global_step: Step = None,
        walltime: float | None = None,
        *args: Any,
        rescale: float = 1,
        dataformats: str = "CHW",
        labels: list[str] | str | None = None,
    ) -> None:
        """Add an image, and draw boxes into it. It needs Pillow.

        Args:
            tag: its name.
            img_tensor: shape as `dataformats` says; values as in `add_image`.
            box_tensor: shape (N, 4): xmin, ymin, xmax, ymax in pixels.
            global_step: step, a whole number.
            walltime: unix time in seconds, None for now.
            *args: tensorboardX's order (dataformats, labels) or torch's (rescale, dataformats, labels): a number is
                the scale, the first string the format.
            rescale: factor by which the image is enlarged.
            dataformats: order of the dimensions: CHW, HWC or HW.
            labels: a text for each box; left out, with a warning, if there are not N.

        Raises:
            NotLoggableError: a shape does not fit, or this is no tensor.
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

    def add_figure(
        self,
        tag: str,
        figure: Any,
        global_step: Step = None,
        close: bool = True,
        walltime: float | None = None,
    ) -> None:
        """Draw a figure of matplotlib, and add it as an image.

        Args:
            tag: its name.
            figure: `matplotlib.figure.Figure`, or a list of figures of equal size in pixels, which become one grid.
            global_step: step, a whole number.
            close: whether to close the figure, so that pyplot keeps it no longer.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: this is no figure.
        """
        super().add_figure(tag, figure, global_step, close, walltime)

    def add_video(
        self,
        tag: str,
        vid_tensor: Array,
        global_step: Step = None,
        fps: float = 4,
        walltime: float | None = None,
        dataformats: str = "NTCHW",
    ) -> None:
        """Add a video, as an animated GIF. It needs moviepy.

        Args:
            tag: its name.
            vid_tensor: tensor or array of shape (N, T, C, H, W): N videos in a grid, of T frames each, with C of 1 or
                3. Values as in `add_image`.
            global_step: step, a whole number.
            fps: frames per second.
            walltime: unix time in seconds, None for now.
            dataformats: order of the dimensions.

        Raises:
            NotLoggableError: the shape does not fit `dataformats`, or this is no tensor.
        """
        super().add_video(tag, plain(vid_tensor), global_step, fps, walltime, dataformats)

    def add_audio(
        self,
        tag: str,
        snd_tensor: Array,
        global_step: Step = None,
        sample_rate: int = 44100,
        walltime: float | None = None,
    ) -> None:
        """Add a sound, as WAV with 16 bits a sample.

        Args:
            tag: its name.
            snd_tensor: tensor or array of shape (L, C) with L samples in one or two channels, or torch's (1, L).
                Values are floats in [-1, 1]; what is beyond is cut off.
            global_step: step, a whole number.
            sample_rate: in Hz.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: the shape does not fit, or this is no tensor.
        """
        summary = summaries.sound(tag, sound(plain(snd_tensor)), sample_rate)
        self._get_file_writer().add_summary(summary, global_step, walltime)

    def add_text(self, tag: str, text_string: str, global_step: Step = None, walltime: float | None = None) -> None:
        """Add a text.

        Args:
            tag: its name.
            text_string: Markdown, which TensorBoard renders.
            global_step: step, a whole number.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: this is no string.
        """
        self._get_file_writer().add_summary(summaries.text(tag, text_string), global_step, walltime)

    def add_tensor(
        self, tag: str, tensor: Array | Number, global_step: Step = None, walltime: float | None = None
    ) -> None:
        """Add a tensor with all its values, which a program can read from the event file.

        Args:
            tag: its name.
            tensor: a tensor or an array of any shape: bool, integers, floats or complex numbers; bfloat16 and 8-bit
                floats become float32.
            global_step: step, a whole number.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: the tensor has 2 GiB or more, or a type that cannot be stored.
        """
        self._get_file_writer().add_summary(summaries.tensor(tag, tensor), global_step, walltime)

    def add_histogram(
        self,
        tag: str,
        values: Array | Number,
        global_step: Step = None,
        bins: str | Array = "tensorflow",
        walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """Add a histogram.

        Args:
            tag: its name.
            values: a tensor or an array of any shape, with one finite number at least; or one number, also in a string
                or in bytes.
            global_step: step, a whole number.
            bins: how the bins are made: `tensorflow` for limits that grow by 10 % each; or `auto`, `fd`, the limits,
                and whatever `numpy.histogram` takes.
            walltime: unix time in seconds, None for now.
            max_bins: number of bins, at most; neighbours are joined.

        Raises:
            NotLoggableError: there is no value, one is not finite, or numpy does not know these bins.
        """
        number = as_number(values) if isinstance(values, (str, bytes)) else None
        array = plain(values) if number is None else np.array([number])
        super().add_histogram(tag, array, global_step, bins, walltime, max_bins)

    def add_histogram_raw(
        self,
        tag: str,
        min: Number,  # noqa: A002 - the name that both libraries have
        max: Number,  # noqa: A002 - the same
        num: Number,
        sum: Number,  # noqa: A002 - the same
        sum_squares: Number,
        bucket_limits: Array,
        bucket_counts: Array,
        global_step: Step = None,
        walltime: float | None = None,
    ) -> None:
        """Add a histogram that is counted already.

        Args:
            tag: its name.
            min: the smallest value.
            max: the largest value.
            num: number of values.
            sum: of the values.
            sum_squares: sum of the squares of the values.
            bucket_limits: shape (B,): upper limit of each bin. `numpy.histogram` returns B + 1: leave out the first.
            bucket_counts: shape (B,): number of values in each bin.
            global_step: step, a whole number.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: there are more limits than counts, or fewer.
        """
        facts = map(plain, (min, max, num, sum, sum_squares, bucket_limits, bucket_counts))
        super().add_histogram_raw(tag, *facts, global_step, walltime)

    def add_pr_curve(
        self,
        tag: str,
        labels: Array,
        predictions: Array,
        global_step: Step = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Add a precision-recall curve, of which TensorBoard lets you choose the threshold.

        Args:
            tag: its name.
            labels: shape (N,): what is true, 0 or 1, or a bool.
            predictions: shape (N,): the probability of each to be true, in [0, 1].
            global_step: step, a whole number.
            num_thresholds: points of the curve, at most 127.
            weights: shape (N,): weight of each, or one number for all; None for 1.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: a shape does not fit, or this is no tensor.
        """
        super().add_pr_curve(
            tag, plain(labels), plain(predictions), global_step, num_thresholds, plain(weights), walltime
        )

    def add_pr_curve_raw(
        self,
        tag: str,
        true_positive_counts: Array,
        false_positive_counts: Array,
        true_negative_counts: Array,
        false_negative_counts: Array,
        precision: Array,
        recall: Array,
        global_step: Step = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Add a precision-recall curve that is computed already.

        Args:
            tag: its name.
            true_positive_counts: shape (T,): at each threshold.
            false_positive_counts: shape (T,).
            true_negative_counts: shape (T,).
            false_negative_counts: shape (T,).
            precision: shape (T,), in [0, 1].
            recall: shape (T,), in [0, 1].
            global_step: step, a whole number.
            num_thresholds: T, at most 127.
            weights: accepted and not used, as in both libraries.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: the shapes differ.
        """
        counts = map(plain, (true_positive_counts, false_positive_counts, true_negative_counts, false_negative_counts))
        super().add_pr_curve_raw(
            tag, *counts, plain(precision), plain(recall), global_step, num_thresholds, plain(weights), walltime
        )

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

    def add_custom_scalars(self, layout: dict[str, dict[str, list[Any]]]) -> None:
        """Add the charts of the tab "Custom scalars". TensorBoard shows the layout that was added last.

        Args:
            layout: `{category: {title: ["Multiline", [tag, ...]]}}`, or `["Margin", [value, lower, upper]]`: tags of
                `add_scalar`.

        Raises:
            NotLoggableError: the layout has another form.

        Example:
            writer.add_custom_scalars({"Loss": {"both": ["Multiline", ["loss/train", "loss/test"]]}})
        """
        super().add_custom_scalars(layout)

    def add_custom_scalars_multilinechart(
        self, tags: list[str], category: str = "default", title: str = "untitled"
    ) -> None:
        """Add one chart with several lines.

        Args:
            tags: of `add_scalar`, a line for each; TensorBoard takes regular expressions too.
            category: of the tab "Custom scalars".
            title: of the chart.

        Raises:
            NotLoggableError: a tag is no string.
        """
        super().add_custom_scalars_multilinechart(tags, category, title)

    def add_custom_scalars_marginchart(
        self, tags: list[str], category: str = "default", title: str = "untitled"
    ) -> None:
        """Add one chart with a line in a band.

        Args:
            tags: three tags of `add_scalar`: value, lower and upper limit.
            category: of the tab "Custom scalars".
            title: of the chart.

        Raises:
            NotLoggableError: there are not three tags, or one is no string.
        """
        super().add_custom_scalars_marginchart(tags, category, title)

    def add_graph(
        self, model: Any, input_to_model: Any = None, verbose: bool = False, use_strict_trace: bool = True
    ) -> None:
        """Add the graph of a model of torch, which is traced for that.

        Args:
            model: `torch.nn.Module`.
            input_to_model: what it is called with: a tensor, or a list or tuple of them.
            verbose: whether to print the graph.
            use_strict_trace: `strict` of `torch.jit.trace`; False records lists and dictionaries too.

        Raises:
            Exception: torch cannot trace the model.
        """
        super().add_graph(model, input_to_model, verbose, use_strict_trace)

    def add_onnx_graph(
        self, onnx_model_file: str | os.PathLike[str] | None = None, *, prototxt: str | os.PathLike[str] | None = None
    ) -> None:
        """Add the graph of an ONNX model. It needs onnx.

        Args:
            onnx_model_file: path of the model.
            prototxt: torch's name for `onnx_model_file`.

        Raises:
            NotLoggableError: no path is given.
            OSError: the file cannot be read.
        """
        path = prototxt if onnx_model_file is None else onnx_model_file
        if path is None:
            raise TypeError("add_onnx_graph needs onnx_model_file, the path of a model.")
        super().add_onnx_graph(path)

    def add_openvino_graph(self, xmlname: str | os.PathLike[str]) -> None:
        """Add the graph of an OpenVINO model.

        Args:
            xmlname: path of its XML file.

        Raises:
            OSError: the file cannot be read.
        """
        super().add_openvino_graph(xmlname)
