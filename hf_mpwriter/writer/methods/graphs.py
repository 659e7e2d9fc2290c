"""Graphs of models."""

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
