"""How fast an uploader reacts, and what a Hub that hangs costs the training."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import time
from array import array

import processes
from lib.figures import interleaved, median_ratio, quantile, show, show_times
from lib.waiting import wait_for
from processes import Bench, Run, stopped

from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.events import framing


class Reactions(Bench):
    """The measurements by the clock."""

    def takeover(self) -> None:
        """Kill uploaders; time the takeover."""
        took = []
        for number in range(self.scale.kills):
            with self.run(f"takeover{number}") as run:
                for rank in range(2):
                    run.start(rank, processes.log_for_ever)
                old = wait_for(run.uploader, "an uploader")
                time.sleep(self.rng.uniform(0, USUAL.housekeeping_every))
                os.kill(old, signal.SIGKILL)
                killed_at = time.monotonic()
                wait_for(lambda run=run, old=old: run.uploader() not in (0, old), "another uploader")
                took.append(time.monotonic() - killed_at)
        show_times("takeover: another uploader holds the lock", took, 8.0)

    def latency(self) -> None:
        """Kill workers; time the upload of what they logged."""
        with self.run("latency") as run:
            run.start(0, processes.log_for_ever)
            took = [self._kill_worker(run, rank=1) for _ in range(self.scale.kills)]
        show_times("latency: a killed worker's last event is on the Hub", took, 5.0)
        took = []
        for number in range(self.scale.kills):
            with self.run(f"alone{number}") as run:
                took.append(self._kill_worker(run, rank=0))
        show_times("latency: the killed worker was the only one", took, 5.0)

    def _kill_worker(self, run: Run, rank: int) -> float:
        victim = run.start(rank, processes.log_for_ever)
        wait_for(lambda: victim.step >= 0 and run.uploader(), "the worker logs, an uploader lives")
        if rank == 0:
            wait_for(run.is_at_rest, "the first commit")
        time.sleep(self.rng.uniform(0.5, 2.0))
        victim.kill()
        killed_at = time.monotonic()
        file = run.newest_file(f"rank_{rank:05d}" if rank else "")
        written = len(list(framing.payloads(str(file)))) - 1
        if written <= victim.step:
            raise RuntimeError(f"{victim.step + 1} calls returned, {written} events are in the file")
        wait_for(lambda: run.bytes_on_hub(file) >= file.stat().st_size, "the events on the Hub")
        return time.monotonic() - killed_at

    def hang(self) -> None:
        """Time calls while the Hub hangs, and without a Hub."""
        hanging, without = [], []
        for number in range(self.scale.pairs):
            for hangs in interleaved((True, False), self.rng):
                (hanging if hangs else without).append(self._time_calls(f"hang{number}{hangs}", hangs=hangs))
        for what, times in (("while the Hub hangs", hanging), ("without a Hub", without)):
            show(f"hang: p99.9 of add_scalar {what}", statistics.median(took for took, _ in times), "us")
        (walls, cpus), (walls_without, cpus_without) = (zip(*times, strict=True) for times in (hanging, without))
        ratios = [one / other for one, other in zip(walls, walls_without, strict=True)]
        show(f"hang: ratio, median of {len(ratios)}", statistics.median(ratios), "", 1.3)
        show("hang: ratio, smallest", min(ratios), "")
        show("hang: ratio, largest", max(ratios), "")
        show("hang: ratio of CPU times, also on a busy machine", median_ratio(cpus, cpus_without), "")

    def _time_calls(self, name: str, *, hangs: bool) -> tuple[float, float]:
        """Return the 99.9 % quantile of the calls of two workers, in microseconds: by the clock, and of CPU time."""
        took, used = array("q"), array("q")
        with stopped(self.hub), self.run(name, local=not hangs) as run:
            pipes = []
            for rank in range(2):
                receiver, sender = multiprocessing.Pipe(duplex=False)
                run.start(rank, processes.time_calls, self.scale.timed, sender)
                sender.close()
                pipes.append(receiver)
            for receiver in pipes:
                both = array("q", receiver.recv_bytes())
                took += both[: len(both) // 2]
                used += both[len(both) // 2 :]
        return quantile(took, 0.999) / 1e3, quantile(used, 0.999) / 1e3
