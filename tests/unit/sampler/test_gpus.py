"""GPUs: what NVML tells of each, and that nothing depends on it."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import psutil
import pytest
from programs import succeed
from repository import ROOT

from hf_mpwriter.sampler import gpus
from hf_mpwriter.sampler.machine import Machine
from hf_mpwriter.sampler.sources import Sources


class LostError(Exception):
    """As pynvml's NVMLError_GpuIsLost."""


@pytest.fixture
def nvml(monkeypatch) -> ModuleType:
    """A stand-in for pynvml with two GPUs; the second one has no power meter."""
    module = ModuleType("nvml_of_the_test")
    module.NVML_TEMPERATURE_GPU = 0
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: 2
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetUtilizationRates = lambda gpu: SimpleNamespace(gpu=90 + gpu)
    module.nvmlDeviceGetMemoryInfo = lambda gpu: SimpleNamespace(used=20_000_000_000, total=80_000_000_000 // (1 + gpu))
    module.nvmlDeviceGetTemperature = lambda gpu, sensor: 60 + gpu + sensor

    def power(gpu: int) -> int:
        if gpu:
            raise LostError("Not Supported")
        return 345_678

    module.nvmlDeviceGetPowerUsage = power
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


SECOND = {
    "gpu.1/utilization_percent": 91.0,
    "gpu.1/memory_used_gb": 20.0,
    "gpu.1/memory_percent": 50.0,
    "gpu.1/temperature_celsius": 61.0,
}


def test_each_value_of_each_gpu_is_measured_where_it_can_be(nvml, caplog):
    """A GPU without a power meter has the rest; that is told once."""
    sources = Sources(gpus.sources(nvml.__name__))
    with caplog.at_level(logging.INFO):
        found = [sources.sample() for _ in range(2)]
    assert (
        found[0]
        == found[1]
        == SECOND
        | {
            "gpu.0/utilization_percent": 90.0,
            "gpu.0/memory_used_gb": 20.0,
            "gpu.0/memory_percent": 25.0,
            "gpu.0/power_watts": 345.678,
            "gpu.0/temperature_celsius": 60.0,
        }
    )
    assert [record.getMessage() for record in caplog.records] == [
        "power of GPU 1 cannot be measured: LostError: Not Supported"
    ]


def test_a_gpu_that_vanishes_and_comes_back_stops_no_other(nvml, monkeypatch):
    """As after a reset: its handle is asked for anew."""
    sources = Sources(gpus.sources(nvml.__name__))
    handle = nvml.nvmlDeviceGetHandleByIndex

    def lost(index: int) -> int:
        if not index:
            raise LostError("GPU is lost")
        return handle(index)

    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", lost)
    assert sources.sample() == SECOND
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, nvml.__name__, nvml)
    assert "gpu.0/power_watts" in sources.sample()


def test_without_nvml_and_with_a_failing_driver_there_are_no_gpus(nvml, monkeypatch, caplog):
    """One line in the log, and the rest of the machine is measured."""
    with caplog.at_level(logging.INFO):
        assert gpus.sources("no_such_module") == {}
        monkeypatch.setattr(nvml, "nvmlInit", lambda: 1 / 0)
        assert gpus.sources(nvml.__name__) == {}
    assert [record.getMessage().split(":")[1] for record in caplog.records] == [
        " ModuleNotFoundError",
        " ZeroDivisionError",
    ]


def test_every_metric_is_in_the_guide_and_no_other(nvml, tmp_path, monkeypatch):
    """The table names what the first GPU and the machine give, swap included."""
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=2, used=1))
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: SimpleNamespace(read_bytes=1, write_bytes=1))
    interface = SimpleNamespace(bytes_recv=1, bytes_sent=1)
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: {"eth0": interface})
    run_dir, seconds = os.open(tmp_path, os.O_RDONLY), itertools.count()
    sources = Sources(Machine(run_dir, lambda: float(next(seconds))).sources() | gpus.sources(nvml.__name__))
    sources.sample()
    found = {name for name in sources.sample() if not name.startswith("gpu.1/")}
    os.close(run_dir)
    section = (ROOT / "docs" / "guide.md").read_text().partition("\n## System metrics")[2].partition("\n## ")[0]
    assert found == set(re.findall(r"`((?:cpu|memory|disk|network|gpu\.0)/\w+)`", section))


LIBRARY = r"""
#include <string.h>
typedef struct { unsigned int gpu, memory; } utilization;
typedef struct { unsigned long long total, free, used; } memory;
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned int flags) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = (void *)1; return 0; }
int nvmlDeviceGetUtilizationRates(void *device, utilization *found) { found->gpu = 73; found->memory = 5; return 0; }
int nvmlDeviceGetMemoryInfo(void *device, memory *found) {
    found->total = 16000000000ull; found->used = 4000000000ull; found->free = 12000000000ull; return 0;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned int *found) { *found = 250000; return 0; }
int nvmlDeviceGetTemperature(void *device, unsigned int sensor, unsigned int *found) { *found = 55; return 0; }
int nvmlDeviceGetTemperatureV(void *device, void *found) { return 3; }
const char *nvmlErrorString(int code) { return "no"; }
"""
ASK = """
import json
from hf_mpwriter.sampler import gpus
from hf_mpwriter.sampler.sources import Sources
print(json.dumps(Sources(gpus.sources()).sample()))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_real_binding_gives_what_the_library_says(tmp_path):
    """`pynvml` calls a library that stands for the driver's."""
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    (tmp_path / "nvml.c").write_text(LIBRARY)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True, timeout=120)
    path = os.pathsep.join([str(tmp_path), os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(os.pathsep)
    assert json.loads(succeed(ASK, env={"LD_LIBRARY_PATH": path})) == {
        "gpu.0/utilization_percent": 73.0,
        "gpu.0/memory_used_gb": 4.0,
        "gpu.0/memory_percent": 25.0,
        "gpu.0/power_watts": 250.0,
        "gpu.0/temperature_celsius": 55.0,
    }
