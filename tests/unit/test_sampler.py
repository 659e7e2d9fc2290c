"""A sampler over time, in this process: when it writes, when it seals, what it leaves behind; and what it measures."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
from programs import succeed
from repository import ROOT
from support import events

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.daemon.starts import SamplerStart
from hf_mpwriter.sampler import (
    GB,
    LINGER,
    Metrics,
    Sampler,
    gpu_sources,
    machine_sources,
)
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.spool.status import SamplerStatus
from hf_mpwriter.spool.workers.members import OBSERVER, MemberFile, Members
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import Process, host_id


class Host:
    """A sampler of a run, its clock, and workers."""

    def __init__(self, spool: Spool) -> None:
        self.spool, self.now, self.sampler = spool, 1000.0, None
        self.host = spool.host(host_id())
        os.makedirs(self.host.root, exist_ok=True)

    def worker(self, name: str = "main") -> MemberFile:
        """A worker that lives."""
        return MemberFile(self.spool, name, Process.current(), Settings())

    def start(self) -> None:
        """Start a sampler, which has a second or more until its first sample."""
        lock = locks.try_exclusive(self.spool.lock_of("sampler"))
        assert lock is not None, "the one before has ended"
        clock, wall = (lambda: self.now), (lambda: 1_900_000_000.0 + self.now)
        self.sampler = Sampler(
            self.spool,
            SamplerStart(self.spool.run_dir, settings=Settings(commit_every=1.0)),
            lock,
            clock,
            random.Random(1),
            measure=lambda: {"a/b": self.now},
            wall_clock=wall,
        )

    def run(self, seconds: float) -> bool:
        """Let time pass, tick by tick; whether the sampler still works."""
        for _ in range(int(seconds / USUAL.sampler_tick)):
            self.now += USUAL.sampler_tick
            if not self.sampler.look():
                return False
        return True

    @property
    def files(self) -> list[Path]:
        """Its event files."""
        return sorted(Path(self.spool.run_dir).glob("_system/*/*"))

    @property
    def samples(self) -> list[tuple[int, float]]:
        """Step and value of each sample."""
        found = [event for path in self.files for event in events(path) if event.HasField("summary")]
        assert all([value.tag for value in event.summary.value] == ["a/b"] for event in found)
        return [(event.step, event.summary.value[0].simple_value) for event in found]


@pytest.fixture
def machine(own_spool) -> Host:
    """A local run."""
    return Host(own_spool)


def test_while_a_worker_lives_there_is_a_sample_every_15_seconds(machine):
    """The first one soon; steps are seconds, and it names itself for `stop`."""
    worker = machine.worker()
    machine.start()
    assert SamplerStatus.read(machine.host).process == Process.current()
    assert machine.run(61)
    times = [value for _, value in machine.samples]
    assert times == [1001.0, 1016.0, 1031.0, 1046.0, 1061.0]
    steps = [step for step, _ in machine.samples]
    assert [step - steps[0] for step in steps] == [0, 15, 30, 45, 60]
    worker.leave()


@pytest.mark.parametrize(("nodes", "name"), [("1", host_id().rpartition("-")[0]), ("2", host_id())])
def test_in_a_job_of_several_nodes_its_directory_is_named_by_the_id_of_the_host(machine, monkeypatch, nodes, name):
    """Else two nodes of one host name, each with a run directory of its own, would log into one run on the Hub."""
    monkeypatch.setenv("HF_MPWRITER_NODES", nodes)
    worker = machine.worker()
    machine.start()
    assert machine.run(5)
    assert {path.parent.name for path in machine.files} == {name}
    worker.leave()


def test_when_no_worker_lives_it_samples_once_more_seals_at_once_and_leaves_soon(machine):
    """Of a local run nothing waits for anybody, so no member file stays."""
    workers = [machine.worker("rank_00000"), machine.worker("rank_00001")]
    machine.start()
    assert machine.run(5)
    workers[0].leave()
    assert machine.run(2)
    assert [bool(member.growing) for member in Members(machine.spool).all() if member.is_sampler] == [True]
    workers[1].leave()
    assert machine.run(USUAL.sampler_tick)
    (member,) = (member for member in Members(machine.spool).all() if member.is_sampler)
    assert (member.growing, member.requests) == (frozenset(), 1), "an uploader that did not wait sends it all the same"
    assert [value for _, value in machine.samples] == [1001.0, 1007.5]
    assert not machine.run(LINGER + 2 * USUAL.sampler_tick)
    assert [member for member in Members(machine.spool).all() if member.is_sampler] == []
    assert SamplerStatus.read(machine.host).is_over, "it has left in good order"


def test_a_worker_that_comes_back_soon_meets_the_same_sampler(machine):
    """A program may close its writer and build another one."""
    worker = machine.worker()
    machine.start()
    machine.run(5)
    worker.leave()
    machine.run(LINGER - 1)
    worker = machine.worker()
    assert machine.run(USUAL.sample_every + 1)
    assert len(machine.files) == 2, "what is sealed never grows again"
    worker.leave()


def test_without_a_worker_it_writes_nothing(machine):
    """An observer is none, nor is a worker of another host. The uploader may have gone already."""
    observer = machine.worker(OBSERVER)
    machine.start()
    assert not machine.run(LINGER + 5)
    assert machine.files == []
    observer.leave()


def test_sigterm_ends_it_with_a_last_sample(machine, monkeypatch):
    """Even while workers live; the file is sealed."""
    ends = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "setitimer", lambda *limit: ends.append(limit))
    worker = machine.worker()
    machine.start()
    machine.run(4)
    machine.sampler.terminate()
    assert not machine.run(USUAL.sampler_tick)
    assert [value for _, value in machine.samples] == [1001.0, 1004.5]
    assert ends, "a driver that hangs cannot keep it"
    worker.leave()


def test_what_is_not_on_the_hub_yet_keeps_its_member_file_for_the_next_uploader(spool):
    """Its lock is free: it is dead, and has sealed its file."""
    machine = Host(spool)
    worker = machine.worker()
    machine.start()
    machine.run(3)
    worker.leave()
    assert not machine.run(LINGER + 2)
    (member,) = (member for member in Members(spool).all() if member.is_sampler)
    assert (member.alive, len(member.files), member.growing) == (False, 1, frozenset())


@pytest.mark.parametrize("what", ["spool", "run directory", "lock", "members"])
def test_it_ends_when_what_it_writes_to_is_removed(machine, what):
    """And makes nothing anew."""
    worker = machine.worker()
    machine.start()
    machine.run(3)
    spool = machine.spool
    places = {"spool": spool.root, "run directory": spool.run_dir, "lock": machine.host.root, "members": spool.members}
    gone = str(places[what])
    shutil.rmtree(gone)
    assert not machine.run(USUAL.sampler_tick)
    assert not os.path.exists(gone)
    worker.leave()


def test_of_a_staged_run_it_seals_by_time(machine, tmp_path):
    """The mirror brings only what is sealed; `commit_every` is a minute here."""
    MirrorRecord(str(tmp_path / "there"), 1_900_001_000.0).publish(machine.spool)
    worker = machine.worker()
    machine.start()
    machine.run(200)
    assert len(machine.files) == 3
    worker.leave()


def test_where_it_cannot_write_it_leaves_nothing_behind(machine):
    """A link in the place of its directory is not followed."""
    worker = machine.worker()
    (Path(machine.spool.run_dir) / "_system").symlink_to("/etc")
    machine.start()
    assert machine.run(20)
    worker.leave()
    assert not machine.run(LINGER + 2)
    assert [member for member in Members(machine.spool).all() if member.is_sampler] == []


def test_a_step_is_a_second_since_the_oldest_event_file(machine):
    """As its name says, here; files of others tell nothing. A run that was pulled has a new spool."""
    for name in ("events.out.tfevents.1800000000.there.1.0123abcd", "events.out.tfevents.1700000000.torch.1"):
        open(os.path.join(machine.spool.run_dir, name), "wb").close()
    worker = machine.worker()
    machine.start()
    assert machine.run(17)
    assert [step for step, _ in machine.samples] == [100_001_001, 100_001_016]
    worker.leave()


# what is measured


@pytest.fixture
def clock() -> list[float]:
    """Monotonic seconds, the last ones count."""
    return [1000.0]


@pytest.fixture
def metrics(tmp_path, clock):
    """What is measured of this machine, with the run directory in the directory of the test."""
    run_dir = os.open(tmp_path, os.O_RDONLY)
    yield Metrics(machine_sources(run_dir), lambda: clock[-1])
    os.close(run_dir)


def test_memory_and_disk_are_those_that_the_system_tells(metrics, tmp_path):
    """The disk is the one of the run directory, as `df` counts it."""
    found = metrics.sample()
    usage, memory = shutil.disk_usage(tmp_path), psutil.virtual_memory()
    assert found["disk/used_gb"] * GB == pytest.approx(usage.used, rel=0.1)
    assert found["disk/percent"] == pytest.approx(psutil.disk_usage(str(tmp_path)).percent, abs=5)
    assert 0 < found["memory/used_gb"] * GB < memory.total
    assert found["memory/percent"] == pytest.approx(100 * found["memory/used_gb"] * GB / memory.total, abs=1)
    assert 0 <= found["cpu/percent"] <= 100


def test_rates_are_bytes_per_second_in_mb_and_loopback_does_not_count(metrics, clock, monkeypatch):
    """From the second sample on."""
    disks = [SimpleNamespace(read_bytes=count, write_bytes=2 * count) for count in (0, 30_000_000)]
    interfaces = [
        {
            "lo": SimpleNamespace(bytes_recv=9 * count, bytes_sent=9 * count),
            "eth0": SimpleNamespace(bytes_recv=count, bytes_sent=3 * count),
            "ib0": SimpleNamespace(bytes_recv=count, bytes_sent=0),
        }
        for count in (5, 15_000_005)
    ]
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: disks.pop(0))
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: interfaces.pop(0))
    assert not any(name.endswith("_per_s") for name in metrics.sample())
    clock.append(1015.0)
    found = metrics.sample()
    assert {name: value for name, value in found.items() if name.endswith("_per_s")} == {
        "disk/read_mb_per_s": 2.0,
        "disk/written_mb_per_s": 4.0,
        "network/received_mb_per_s": 2.0,
        "network/sent_mb_per_s": 3.0,
    }


def test_what_the_system_does_not_tell_is_left_out(metrics, monkeypatch):
    """A container may have no disks, no interfaces and no swap."""
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: None)
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: {})
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=0, used=0))
    metrics.sample()
    found = metrics.sample()
    assert {name.partition("/")[0] for name in found} == {"cpu", "memory", "disk"}
    assert "memory/swap_used_gb" not in found


def test_a_source_that_fails_is_told_once_and_the_others_go_on(caplog):
    """Whatever it raises; after it has worked again, the next failure is told."""
    outcomes = [ValueError("no driver"), ValueError("no driver"), {"gpu": 1.0}, ValueError("no driver"), KeyError()]

    def broken() -> dict[str, float]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    metrics = Metrics({"GPU 0": broken, "cpu": lambda: {"cpu": 2.0}})
    with caplog.at_level(logging.INFO):
        found = [metrics.sample() for _ in range(5)]
    assert found == [{"cpu": 2.0}, {"cpu": 2.0}, {"gpu": 1.0, "cpu": 2.0}, {"cpu": 2.0}, {"cpu": 2.0}]
    assert [record.getMessage().partition(":")[2] for record in caplog.records] == [
        " ValueError: no driver",
        " ValueError: no driver",
        " KeyError: ",
    ]


def test_a_counter_that_is_new_or_was_reset_has_no_rate():
    """An interface that comes and goes must not show as a peak, nor below zero."""
    samples = [
        (10.0, {"sent_per_s": 5000}),
        (11.0, {"sent_per_s": 100, "received_per_s": 9000}),
        (13.0, {"sent_per_s": 300, "received_per_s": 9000}),
        (13.0, {"sent_per_s": 400}),
    ]
    clock = iter([0.0, *(at for at, _ in samples)])
    counters = iter([found for _, found in samples])
    metrics = Metrics({"network": lambda: next(counters)}, lambda: next(clock))
    assert [metrics.sample() for _ in samples] == [{}, {}, {"sent_per_s": 100.0, "received_per_s": 0.0}, {}]


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


def test_a_gpu_that_vanishes_and_comes_back_stops_no_other(nvml, monkeypatch):
    """As after a reset: its handle is asked for anew."""
    metrics = Metrics(gpu_sources(nvml.__name__))
    handle = nvml.nvmlDeviceGetHandleByIndex

    def lost(index: int) -> int:
        if not index:
            raise LostError("GPU is lost")
        return handle(index)

    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", lost)
    assert metrics.sample() == SECOND
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, nvml.__name__, nvml)
    assert "gpu.0/power_watts" in metrics.sample()


def test_without_nvml_and_with_a_failing_driver_there_are_no_gpus(nvml, monkeypatch, caplog):
    """One line in the log, and the rest of the machine is measured."""
    with caplog.at_level(logging.INFO):
        assert gpu_sources("no_such_module") == {}
        monkeypatch.setattr(nvml, "nvmlInit", lambda: 1 / 0)
        assert gpu_sources(nvml.__name__) == {}
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
    metrics = Metrics(machine_sources(run_dir) | gpu_sources(nvml.__name__), lambda: float(next(seconds)))
    metrics.sample()
    found = {name for name in metrics.sample() if not name.startswith("gpu.1/")}
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
from hf_mpwriter.sampler import Metrics, gpu_sources
print(json.dumps(Metrics(gpu_sources()).sample()))
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
