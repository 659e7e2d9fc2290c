"""The sampler: the process that holds the sampler lock of a host, and logs what the machine does.

    tick    a worker of this host lives    a sample when its time has come: one record, with all values
            none does                      one more sample, then the event file is sealed: the uploader waits for that
            none has for LINGER, SIGTERM   the same, and it leaves

    _system/<host>/events.out.tfevents...    step: whole seconds since the run was created

The guide says what is measured, and a test compares. What the system does not tell is left out; of a GPU that has no
power meter, as of one that has vanished, the rest goes on.

A worker that comes later starts the next sampler. A program may close its writer and build another one, so it lingers.

Invariants:
- It opens no event file unless a worker lives: an uploader may be gone, and nothing else would send it.
- It writes only under the claim of its directory. Hosts of one name have directories of their own: by claims where they
  share a run directory and its locks, else by their ids in a job of several nodes.
- At its end it leaves a member file only if an uploader or a mirror has still to come for what it has written.
- It needs no token and gets none.
- Steps only grow within a process, whatever the clock of the system does.
- What a driver raises does not keep it from its work.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from hf_mpwriter.base.job import host_directory
from hf_mpwriter.base.names import event_second, is_ours, is_worker, sampler_directory, sampler_name
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.timing import USUAL, Timing
from hf_mpwriter.daemon import loop
from hf_mpwriter.daemon.background import let_read, rotate_log
from hf_mpwriter.daemon.starts import SamplerStart
from hf_mpwriter.daemon.status_file import DaemonStatusFile
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink
from hf_mpwriter.events import framing
from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.events.series import SEGMENT_MIN
from hf_mpwriter.snapshot.search import RunSearch
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import Listing, MirrorRecord, least_age
from hf_mpwriter.spool.status import SamplerStatus
from hf_mpwriter.spool.workers.member_lines import MemberName
from hf_mpwriter.spool.workers.members import MemberFile, MemberFiles, claim
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import Process

logger = logging.getLogger("hf_mpwriter")

LEAST_APART = 1.0  # seconds between the last sample and the one before
LINGER = 5.0  # seconds without a worker
LOOPBACK = "lo"
RATE = "_per_s"  # the end of the name of a rate, of which a source gives the counter
GB, MB = 1e9, 1e6  # bytes
MILLIWATTS = 1000.0  # in a watt

Source = Callable[[], Mapping[str, float]]  # gives values per name of a metric


class Sampler(loop.Daemon[SamplerStart]):
    """The holder of the sampler lock."""

    kind = "sampler"

    def __init__(
        self,
        spool: Spool,
        start: SamplerStart,
        lock: int,
        clock: Callable[[], float],
        rng: random.Random,
        timing: Timing = USUAL,
        measure: Source | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(spool, start, lock, clock, rng, timing)
        self.status = DaemonStatusFile(self.host, SamplerStatus(process=self._process), clock, wall_clock, math.inf)
        self._measure, self._wall_clock = measure or _machine(spool), wall_clock
        self._workers, self._is_ending = Workers(spool, self._process.host), False
        now = wall_clock()
        self._born = clock() - (now - created_at(spool, now))  # monotonic seconds when the run was created
        self.recover()

    def recover(self) -> None:
        """Join."""
        now = self._clock()
        self._samples = Samples(self._spool, self._start.settings, self._clock)
        self.status.beat()
        self._staged_at = record.made_at if (record := MirrorRecord.read(self._spool)) else None
        self._worked_at, self._sampled_at, self._next_sample = now, now, now + self._timing.first_sample_after

    def tick(self) -> bool:
        """One round, and a pause."""
        goes_on = self.look()
        if goes_on:
            time.sleep(self._timing.sampler_tick)
        return goes_on

    def look(self) -> bool:
        """Look for workers, sample; False when it is time to end. OSError if the disk refuses."""
        if not self.is_in_place():
            return False
        has_workers, now = self._workers.any_alive(), self._clock()
        if has_workers:
            self._worked_at = now
        if self._is_ending or not has_workers:
            self._seal()
            if self._is_ending or now - self._worked_at > LINGER:
                return not self.leave()
        elif now >= self._next_sample:
            self._sample()
        self.forget_starts(is_over=False)
        self.status.beat()
        return True

    def close(self) -> None:
        """Leave no member file."""
        self._samples.leave()
        self.forget_starts(is_over=True)
        self.status.change(phase="left")
        self.status.beat()

    def is_in_place(self) -> bool:
        """Whether all that this process holds is where it was."""
        return super().is_in_place() and self._samples.are_there()

    def _sample(self) -> None:
        now = self._clock()
        self._sampled_at = now
        every = self._timing.sample_every
        self._next_sample += every * max(0.0, (now - self._next_sample) // every + 1)
        self._samples.add(int(now - self._born), self._wall_clock(), self._measure())
        if self._staged_at is not None:
            age = max(0.0, self._wall_clock() - self._staged_at)
            self._samples.file.seal_older(now - least_age(age, self._start.settings.commit_every))
        rotate_log(self.host.daemon("sampler").log)

    def _seal(self) -> None:
        """Log what the machine has done since the last sample, and seal."""
        if self._samples.file.is_open:
            if self._clock() - self._sampled_at >= LEAST_APART:
                self._sample()
            self._samples.seal()

    def terminate(self) -> None:
        """SIGTERM: one last sample, then leave."""
        self._is_ending = True
        super().terminate()


def _machine(spool: Spool) -> Source:
    """What this machine does. All who may read the run directory may read what is logged there."""
    let_read(spool.run.fd)
    metrics = Metrics(machine_sources(spool.run.fd) | gpu_sources())
    metrics.sample()  # rates begin here
    return metrics.sample


def main() -> None:
    """Entry point of the process."""
    loop.main(Sampler, SamplerStart)


class Workers:
    """Whether a worker of one host lives; as a rule one lock is looked at, however many workers there are."""

    def __init__(self, spool: Spool, host: str) -> None:
        self._spool, self._host = spool, host
        self._last = ""  # member file of the worker that was seen alive last

    def any_alive(self) -> bool:
        """Whether one lives; OSError if the spool cannot be read."""
        if self._last and locks.is_held(self._spool.members / self._last):
            return True
        for file_name in self._spool.members.names():
            name = MemberName.parse(file_name)
            is_here = name is not None and name.host == self._host and is_worker(name.worker)
            if is_here and locks.is_held(self._spool.members / file_name):
                self._last = file_name
                return True
        return False


class Samples:
    """The claim, the member file and the event file of a sampler; the home of that file."""

    def __init__(self, spool: Spool, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool, self._settings = spool, settings
        taken = claim(spool, sampler_name(host_directory(os.environ)))
        self._name, self._claim = taken.name, taken.claim
        try:
            process = Process.current()
            self._member = MemberFiles(functools.partial(MemberFile, spool, self._name, process, settings))
        except BaseException:
            locks.release(self._claim)
            raise
        self.after, self.segment_min, self.mark = Listing.read(spool).last, SEGMENT_MIN, ""
        self._written: dict[str, int] = {}  # bytes per path that is sealed
        self.file = EventFile(self, clock=clock)

    def directory(self) -> Place:
        """The directory of this sampler."""
        return Place(self._spool.run, sampler_directory(self._name))

    def opened(self, path: Place) -> None:
        """Record a segment that is about to be created."""
        self._member.opened(path.name)

    def sealed(self, path: Place, length: int) -> None:
        """Record a segment that is complete."""
        if length:
            self._written[path.name] = length
        self._member.sealed(path.name)

    def add(self, step: int, wall_time: float, values: Mapping[str, float]) -> None:
        """Log a sample, of what is a finite number; what the disk refuses waits in memory."""
        self.file.check()
        if data := framing.scalars((tag, value) for tag, value in values.items() if math.isfinite(value)):
            self.file.append(framing.summary_event(wall_time, step, data))

    def seal(self) -> None:
        """Seal the event file, and ask for a push of it; the next sample opens another one."""
        self.file.close()
        with contextlib.suppress(OSError):  # an uploader that waits for the seal comes without it
            self._member.request()

    def are_there(self) -> bool:
        """Whether the member file is where it was; not after the spool was deleted."""
        return self._member.is_there()

    def leave(self) -> None:
        """Give up claim and member file."""
        self._member.leave(self.file.dropped)
        if not self._are_awaited():  # asked now: an uploader that looks later finds the member dead
            for file in self._member.files:
                with contextlib.suppress(OSError):
                    disk.remove(file.path, "members.file", durable=False)
        locks.release(self._claim)

    def _are_awaited(self) -> bool:
        """Whether an uploader or a mirror has still to come for what was written."""
        lengths = {path: length for path, length in self._written.items() if self._settings.allows(path)}
        uploads = bool(lengths) and self._spool.has_destination()
        return bool(
            (uploads and HubSink(self._spool).missing(lengths)) or LogdirSink(self._spool).missing(self._written)
        )


def created_at(spool: Spool, now: float) -> float:
    """Unix time when a run was created, as the name of its oldest event file says, here or in its logdir."""
    seconds = [event_second(name) for name in map(os.path.basename, RunSearch(spool.run)) if is_ours(name)]
    return min([*seconds, Listing.read(spool).first or now, now])


class Metrics:
    """What one sampler measures; a source that fails is told once, and the others go on."""

    def __init__(self, sources: Mapping[str, Source], clock: Callable[[], float] = time.monotonic) -> None:
        self._sources, self._clock = sources, clock
        self._failures: dict[str, str] = {}  # why each source failed last
        self._counters: tuple[float, dict[str, float]] = (clock(), {})  # of the sample before, and when that was

    def sample(self) -> dict[str, float]:
        """What can be measured now, per name of a metric."""
        found: dict[str, float] = {}
        for name, read in self._sources.items():
            try:
                found.update(read())
            except Exception as error:  # noqa: BLE001 - below are drivers, which may raise anything
                failure = f"{type(error).__name__}: {error}"
                if self._failures.get(name) != failure:
                    logger.info("%s cannot be measured: %s", name, failure)
                self._failures[name] = failure
            else:
                self._failures.pop(name, None)
        counters = {name: found.pop(name) for name in list(found) if name.endswith(RATE)}
        return found | self._rates(counters)

    def _rates(self, counters: dict[str, float]) -> dict[str, float]:
        """What counters grow by per second: not one that is new, nor one that has become less, as it was reset."""
        (at, before), now = self._counters, self._clock()
        self._counters = now, counters
        grown = {name: count - before.get(name, math.inf) for name, count in counters.items() if now > at}
        return {name: growth / (now - at) for name, growth in grown.items() if growth >= 0}


def machine_sources(run_dir: int) -> dict[str, Source]:
    """Each part of the machine, but for its GPUs; `run_dir` is a descriptor."""
    disk_of_run = functools.partial(_disk_of, run_dir)
    return {"cpu": _cpu, "memory": _memory, "disk": disk_of_run, "disks": _disks, "network": _network}


def _cpu() -> dict[str, float]:
    return {"cpu/percent": psutil.cpu_percent(), "cpu/load_1m": os.getloadavg()[0]}


def _memory() -> dict[str, float]:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    found = {"memory/used_gb": (memory.total - memory.available) / GB, "memory/percent": memory.percent}
    return found | ({"memory/swap_used_gb": swap.used / GB} if swap.total else {})


def _disk_of(run_dir: int) -> dict[str, float]:
    found = os.fstatvfs(run_dir)
    used, free = found.f_blocks - found.f_bfree, found.f_bavail  # as `df` counts them
    share = 100 * used / (used + free) if used + free else 0.0
    return {"disk/used_gb": used * found.f_frsize / GB, "disk/percent": share}


def _disks() -> dict[str, float]:
    found = psutil.disk_io_counters()
    return (
        {f"disk/read_mb{RATE}": found.read_bytes / MB, f"disk/written_mb{RATE}": found.write_bytes / MB}
        if found
        else {}
    )


def _network() -> dict[str, float]:
    found = [one for name, one in psutil.net_io_counters(pernic=True).items() if name != LOOPBACK]
    received, sent = sum(one.bytes_recv for one in found), sum(one.bytes_sent for one in found)
    return {f"network/received_mb{RATE}": received / MB, f"network/sent_mb{RATE}": sent / MB} if found else {}


def gpu_sources(module: str = "pynvml") -> dict[str, Source]:
    """Each value of each GPU, by the package nvidia-ml-py; none where NVML is missing or does not work."""
    try:
        nvml: Any = importlib.import_module(module)
        nvml.nvmlInit()
        count = int(nvml.nvmlDeviceGetCount())
    except Exception as error:  # noqa: BLE001 - a driver may raise anything
        logger.info("GPUs are not measured: %s: %s", type(error).__name__, error)
        return {}
    logger.info("%d GPUs are measured", count)
    return {
        f"{what} of GPU {index}": functools.partial(_read_gpu, nvml, index, read)
        for index in range(count)
        for what, read in _GPU_READERS.items()
    }


def _read_gpu(nvml: Any, index: int, read: Callable[[Any, Any], Mapping[str, float]]) -> dict[str, float]:
    """Values of one GPU; the handle is asked for anew, as one of a GPU that was reset is not valid any more."""
    values = read(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
    return {f"gpu.{index}/{name}": float(value) for name, value in values.items()}


def _gpu_utilization(nvml: Any, handle: Any) -> dict[str, float]:
    return {"utilization_percent": nvml.nvmlDeviceGetUtilizationRates(handle).gpu}


def _gpu_memory(nvml: Any, handle: Any) -> dict[str, float]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {"memory_used_gb": memory.used / GB, "memory_percent": 100 * memory.used / memory.total}


def _gpu_power(nvml: Any, handle: Any) -> dict[str, float]:
    return {"power_watts": nvml.nvmlDeviceGetPowerUsage(handle) / MILLIWATTS}


def _gpu_temperature(nvml: Any, handle: Any) -> dict[str, float]:
    return {"temperature_celsius": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)}


_GPU_READERS = {
    "utilization": _gpu_utilization,
    "memory": _gpu_memory,
    "power": _gpu_power,
    "temperature": _gpu_temperature,
}
