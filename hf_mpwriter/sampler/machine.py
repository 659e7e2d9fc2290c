"""The machine: its processors, memory, disks and network, as psutil knows them.

    cpu/percent                      of all processors, since the last sample
    cpu/load_1m                      processes that run or want to, over the last minute
    memory/used_gb, memory/percent   what programs could not get
    memory/swap_used_gb              where there is swap
    disk/used_gb, disk/percent       of the filesystem that holds the run directory
    disk/read_mb_per_s, disk/written_mb_per_s            of all disks, since the last sample
    network/received_mb_per_s, network/sent_mb_per_s     of all interfaces but loopback, since the last sample

GB and MB are powers of ten. What the system does not tell is left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

from hf_mpwriter.sampler.sources import Rates, Source

GB, MB = 1e9, 1e6  # bytes
LOOPBACK = "lo"


class Machine:
    """What is measured of the machine, but for its GPUs. The first sample has nothing to compare with, so no rates."""

    def __init__(self, run_dir: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._run_dir, self._clock = run_dir, clock
        self._disk_rates, self._network_rates = Rates(), Rates()

    def sources(self) -> dict[str, Source]:
        """Each part of the machine."""
        return {"cpu": self._cpu, "memory": _memory, "disk": self._disk, "disks": self._disks, "network": self._network}

    def _cpu(self) -> dict[str, float]:
        return {"cpu/percent": psutil.cpu_percent(), "cpu/load_1m": os.getloadavg()[0]}

    def _disk(self) -> dict[str, float]:
        found = os.fstatvfs(self._run_dir)
        used, free = found.f_blocks - found.f_bfree, found.f_bavail  # as `df` counts them
        share = 100 * used / (used + free) if used + free else 0.0
        return {"disk/used_gb": used * found.f_frsize / GB, "disk/percent": share}

    def _disks(self) -> dict[str, float]:
        found = psutil.disk_io_counters()
        counters = {"disk/read_mb_per_s": found.read_bytes, "disk/written_mb_per_s": found.write_bytes} if found else {}
        return self._in_mb(self._disk_rates, counters)

    def _network(self) -> dict[str, float]:
        found = [one for name, one in psutil.net_io_counters(pernic=True).items() if name != LOOPBACK]
        received, sent = sum(one.bytes_recv for one in found), sum(one.bytes_sent for one in found)
        counters = {"network/received_mb_per_s": received, "network/sent_mb_per_s": sent} if found else {}
        return self._in_mb(self._network_rates, counters)

    def _in_mb(self, rates: Rates, counters: dict[str, int]) -> dict[str, float]:
        return {name: rate / MB for name, rate in rates.of(counters, self._clock()).items()}


def _memory() -> dict[str, float]:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    found = {"memory/used_gb": (memory.total - memory.available) / GB, "memory/percent": memory.percent}
    return found | ({"memory/swap_used_gb": swap.used / GB} if swap.total else {})
