"""Summaries, the protobufs that hold what users log: those that tensorboardX cannot build, and scalars read back.

torch's writer builds three kinds that tensorboardX does not: `add_scalar(new_style=True)`, `add_tensor` and
`add_hparams(hparam_domain_discrete=...)`. Three more replace tensorboardX's: the classic scalar, because tensorboardX
warns of every NaN; the text, which takes a fifth of the time here; and the sound, for which tensorboardX needs
soundfile, and torch no package. All use tensorboardX's protobuf classes.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError
from tensorboardX.proto import event_pb2, plugin_hparams_pb2
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboardX.summary import _clean_tag, make_np
from tensorboardX.summary import text as _text

from hf_mpwriter.events import framing
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.writer.values import plain

MAX_BYTES = 1 << 31  # a protobuf message is smaller

# numpy's name -> protobuf's type and field; half_val holds the 16 bits, see TensorFlow's tensor.proto
_FIELDS = {
    "float16": ("DT_HALF", "half_val"),
    "float32": ("DT_FLOAT", "float_val"),
    "float64": ("DT_DOUBLE", "double_val"),
    "int8": ("DT_INT8", "int_val"),
    "uint8": ("DT_UINT8", "int_val"),
    "int16": ("DT_INT16", "int_val"),
    "uint16": ("DT_UINT16", "int_val"),
    "int32": ("DT_INT32", "int_val"),
    "int64": ("DT_INT64", "int64_val"),
    "bool": ("DT_BOOL", "bool_val"),
    "complex64": ("DT_COMPLEX64", "scomplex_val"),
    "complex128": ("DT_COMPLEX128", "dcomplex_val"),
}
_TEXT = _text("", "")


def _summary(tag: str, tensor: Any, plugin: str) -> Any:
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin))
    return Summary(value=[Summary.Value(tag=_clean_tag(tag), tensor=tensor, metadata=metadata)])


def scalar(tag: str, value: float, display_name: str = "", summary_description: str = "") -> Any:
    """Build a classic scalar; unlike tensorboardX's function, log no warning for NaN, which may come at every step."""
    if not display_name and not summary_description:
        return Summary(value=[Summary.Value(tag=_clean_tag(tag), simple_value=value)])
    metadata = SummaryMetadata(display_name=display_name, summary_description=summary_description)
    return Summary(value=[Summary.Value(tag=_clean_tag(tag), simple_value=value, metadata=metadata)])


def text(tag: str, string: str) -> Any:
    """Build a text, as a copy of an empty one."""
    summary = Summary()
    summary.CopyFrom(_TEXT)
    (value,) = summary.value
    value.tag = tag + "/text_summary"
    value.tensor.string_val[0] = string.encode()
    return summary


def sound(tag: str, samples: Any, sample_rate: int) -> Any:
    """Build a sound of shape (L,) or (L, C), with the bytes that tensorboardX gets from soundfile.

    soundfile rounds to 32 bits and keeps the upper 16 of them.
    """
    import wave  # few programs log sounds

    array = make_np(samples)
    if isinstance(samples, list) and array.dtype.kind != "f":
        raise TypeError("a sound is a tensor or an array, or a list of floats")
    array = np.nan_to_num(array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32)).clip(-1, 1)
    if array.ndim == 1:
        array = array[:, None]
    if not array.size or array.ndim != 2 or array.shape[1] not in (1, 2):
        raise ValueError(f"a sound has samples in one or two channels, not the shape {array.shape}")
    frames = np.minimum(np.rint(array * 2.0**31).astype(np.int64) >> 16, 0x7FFF).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setparams((array.shape[1], 2, int(sample_rate), len(array), "NONE", ""))
        wav.writeframes(frames.tobytes())
    audio = Summary.Audio(
        sample_rate=sample_rate,
        num_channels=array.shape[1],
        length_frames=len(array),
        encoded_audio_string=file.getvalue(),
        content_type="audio/wav",
    )
    return Summary(value=[Summary.Value(tag=tag, audio=audio)])


def scalar_tensor(tag: str, value: float, *, double_precision: bool) -> Any:
    """Build a scalar in the tensor field, as TensorFlow 2 writes it."""
    if double_precision:
        return _summary(tag, TensorProto(double_val=[value], dtype="DT_DOUBLE"), "scalars")
    return _summary(tag, TensorProto(float_val=[value], dtype="DT_FLOAT"), "scalars")


def tensor(tag: str, value: Any) -> Any:
    """Build the summary of a tensor with all its values."""
    value = plain(value)
    array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    if array.nbytes >= MAX_BYTES:
        raise ValueError(f"{tag} has {array.nbytes} bytes; a tensor must have less than 2 GiB")
    if array.dtype.name not in _FIELDS:
        raise ValueError(f"{tag} has unsupported tensor dtype {array.dtype}")
    dtype, field = _FIELDS[array.dtype.name]
    flat = array.reshape(-1)
    if field == "half_val":
        flat = flat.view(np.uint16)
    elif field.endswith("complex_val"):
        flat = flat.view(flat.real.dtype)
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in array.shape])
    return _summary(tag, TensorProto(dtype=dtype, tensor_shape=shape, **{field: flat.tolist()}), "tensor")


def with_domains(experiment: Any, hparams: dict[str, Any], domains: dict[str, list[Any]]) -> Any:
    """Add to the summary of an experiment the values that its hyperparameters can have, and return it."""
    for name, domain in domains.items():
        kind = type(hparams.get(name))
        if name not in hparams or not isinstance(domain, list) or not all(isinstance(one, kind) for one in domain):
            raise TypeError(f"hparam_domain_discrete[{name!r}] should be a list of the type of hparam_dict[{name!r}].")
    metadata = experiment.value[0].metadata
    content = plugin_hparams_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
    for info in content.experiment.hparam_infos:
        if info.name in domains:
            values = struct_pb2.ListValue()
            values.extend(domains[info.name])
            info.domain_discrete.CopyFrom(values)
    metadata.plugin_data.content = content.SerializeToString()
    return experiment


def read_scalars(paths: Iterable[Place], seen: dict[str, int]) -> dict[str, list[list[float]]]:
    """Return the scalars that event files have beyond what was `seen`, as [wall time, step, value], per tag."""
    found: dict[str, list[list[float]]] = {}
    for path in paths:
        try:
            payloads = framing.payloads(disk.open_beneath(path))
        except ours(FileNotFoundError):
            continue
        known = count = seen.get(str(path), 0)
        for payload in itertools.islice(payloads, known, None):
            count += 1
            try:
                event = event_pb2.Event.FromString(payload)
            except ours(DecodeError):  # only the beginning of a long record is there: it holds no scalar
                continue
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    point = [event.wall_time, event.step, _shortest(value.simple_value)]
                    found.setdefault(value.tag, []).append(point)
        seen[str(path)] = count
    return found


def _shortest(value: float) -> float:
    """Return the shortest number that rounds to this float32: 0.1, not 0.10000000149."""
    return float(str(np.float32(value)))
