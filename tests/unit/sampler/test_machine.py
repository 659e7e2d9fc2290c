"""What is measured of a machine, against what the system itself tells."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import psutil
import pytest

from hf_mpwriter.sampler.machine import GB, Machine
from hf_mpwriter.sampler.sources import Sources


@pytest.fixture
def clock() -> list[float]:
    """Monotonic seconds, the last ones count."""
    return [1000.0]


@pytest.fixture
def sources(tmp_path, clock):
    """Those of this machine, with the run directory in the directory of the test."""
    run_dir = os.open(tmp_path, os.O_RDONLY)
    yield Sources(Machine(run_dir, lambda: clock[-1]).sources())
    os.close(run_dir)


def test_memory_and_disk_are_those_that_the_system_tells(sources, tmp_path):
    """The disk is the one of the run directory, as `df` counts it."""
    found = sources.sample()
    usage, memory = shutil.disk_usage(tmp_path), psutil.virtual_memory()
    assert found["disk/used_gb"] * GB == pytest.approx(usage.used, rel=0.1)
    assert found["disk/percent"] == pytest.approx(psutil.disk_usage(str(tmp_path)).percent, abs=5)
    assert 0 < found["memory/used_gb"] * GB < memory.total
    assert found["memory/percent"] == pytest.approx(100 * found["memory/used_gb"] * GB / memory.total, abs=1)
    assert 0 <= found["cpu/percent"] <= 100


def test_rates_are_bytes_per_second_in_mb_and_loopback_does_not_count(sources, clock, monkeypatch):
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
    assert not any(name.endswith("_per_s") for name in sources.sample())
    clock.append(1015.0)
    found = sources.sample()
    assert {name: value for name, value in found.items() if name.endswith("_per_s")} == {
        "disk/read_mb_per_s": 2.0,
        "disk/written_mb_per_s": 4.0,
        "network/received_mb_per_s": 2.0,
        "network/sent_mb_per_s": 3.0,
    }


def test_what_the_system_does_not_tell_is_left_out(sources, monkeypatch):
    """A container may have no disks, no interfaces and no swap."""
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: None)
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: {})
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=0, used=0))
    sources.sample()
    found = sources.sample()
    assert {name.partition("/")[0] for name in found} == {"cpu", "memory", "disk"}
    assert "memory/swap_used_gb" not in found
