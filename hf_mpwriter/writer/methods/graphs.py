"""Graphs of models.

Custom scalars: how TensorBoard puts several scalars into one chart.
"""

from __future__ import annotations

import os
from typing import Any

from hf_mpwriter.writer.scalars import ScalarMethods


class GraphMethods(ScalarMethods):
    """`add_graph`, `add_onnx_graph` and `add_openvino_graph`."""

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


class ChartMethods(ScalarMethods):
    """`add_custom_scalars`, `add_custom_scalars_multilinechart` and `add_custom_scalars_marginchart`."""

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
