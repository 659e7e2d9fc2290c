"""The GPUs of the machine, as NVML knows them; it is asked by `pynvml`, of the package nvidia-ml-py.

    gpu.<n>/utilization_percent                  of the time, in which a kernel was at work
    gpu.<n>/memory_used_gb, gpu.<n>/memory_percent
    gpu.<n>/power_watts
    gpu.<n>/temperature_celsius

`<n>` is the number that `nvidia-smi` shows, whatever CUDA_VISIBLE_DEVICES says. GB are powers of ten.

Each value is a source of its own: of a GPU that has no power meter, as of one that has vanished, the rest goes on.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from hf_mpwriter.sampler.sources import Source

logger = logging.getLogger("hf_mpwriter")

GB = 1e9  # bytes
MILLIWATTS = 1000.0  # in a watt


def sources(module: str = "pynvml") -> dict[str, Source]:
    """Each value of each GPU; none where NVML is missing or does not work."""
    try:
        nvml: Any = importlib.import_module(module)
        nvml.nvmlInit()
        count = int(nvml.nvmlDeviceGetCount())
    except Exception as error:  # noqa: BLE001 - a driver may raise anything
        logger.info("GPUs are not measured: %s: %s", type(error).__name__, error)
        return {}
    logger.info("%d GPUs are measured", count)
    found: dict[str, Source] = {}
    for index in range(count):
        for what, read in _READERS.items():
            found[f"{what} of GPU {index}"] = partial(_read, nvml, index, read)
    return found


def _read(nvml: Any, index: int, read: Callable[[Any, Any], Mapping[str, float]]) -> dict[str, float]:
    """Values of one GPU; the handle is asked for anew, as one of a GPU that was reset is not valid any more."""
    values = read(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
    return {f"gpu.{index}/{name}": float(value) for name, value in values.items()}


def _utilization(nvml: Any, handle: Any) -> dict[str, float]:
    return {"utilization_percent": nvml.nvmlDeviceGetUtilizationRates(handle).gpu}


def _memory(nvml: Any, handle: Any) -> dict[str, float]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {"memory_used_gb": memory.used / GB, "memory_percent": 100 * memory.used / memory.total}


def _power(nvml: Any, handle: Any) -> dict[str, float]:
    return {"power_watts": nvml.nvmlDeviceGetPowerUsage(handle) / MILLIWATTS}


def _temperature(nvml: Any, handle: Any) -> dict[str, float]:
    return {"temperature_celsius": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)}


_READERS = {"utilization": _utilization, "memory": _memory, "power": _power, "temperature": _temperature}
