"""Children that log: of pools, of loky, of a DataLoader, of mp.spawn. Each child has a file of its own."""

from __future__ import annotations

import os
import sys
from collections import Counter

from programs import wait_for
from runs import no_uploader

from launching.stage import Laps, Stage

STEPS = 40  # of each kind
CHILDREN = f"""
import concurrent.futures, multiprocessing, os, sys, time
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.testing import Journal
logdir, journals, own = sys.argv[1], sys.argv[2], {{}}

def log(kind, step):
    if os.getpid() not in own:
        own.clear()
        own[os.getpid()] = HFSummaryWriter("me/run", logdir=logdir), Journal(journals)
    writer, journal = own[os.getpid()]
    writer.add_scalar(kind, 1.0, step)
    journal.note(writer, kind, step)
    return step

def pool():
    with multiprocessing.get_context("fork").Pool(2) as workers:
        workers.starmap(log, [("pool", step) for step in range({STEPS})])
        workers.close()
        workers.join()

def executor():
    with concurrent.futures.ProcessPoolExecutor(2) as workers:
        list(workers.map(log, ["executor"] * {STEPS}, range({STEPS})))

def loky():
    from joblib.externals.loky import get_reusable_executor
    workers = get_reusable_executor(max_workers=2)
    list(workers.map(log, ["loky"] * {STEPS}, range({STEPS})))
    workers.shutdown()

class Data:
    def __len__(self):
        return {STEPS}
    def __getitem__(self, step):
        return log("loader", step)

def loader():
    from torch.utils.data import DataLoader
    assert sum(len(batch) for batch in DataLoader(Data(), num_workers=2)) == {STEPS}

def rank(number):
    os.environ |= {{"RANK": str(number + 1), "WORLD_SIZE": "3"}}
    for step in range(number, {STEPS}, 2):
        log("spawn", step)

def spawn():
    import torch.multiprocessing
    torch.multiprocessing.spawn(rank, nprocs=2)

if __name__ == "__main__":
    log("main", 0)
    for kind in sys.argv[3:]:
        globals()[kind]()
    log("main", 1)
    with open(f"{{journals}}/../ended", "w") as file:
        file.write(str(time.monotonic_ns()))
    (writer, _), = own.values()
    writer.close(wait=True)
"""  # run directory, journals, kinds
LIGHT = ("pool", "executor", "loky")
OF_TORCH = ("loader", "spawn")


def of_pools(stage: Stage) -> Laps:
    """multiprocessing.Pool, ProcessPoolExecutor and loky."""
    return log(stage, *LIGHT)


def of_torch(stage: Stage) -> Laps:
    """DataLoader and mp.spawn."""
    return log(stage, *OF_TORCH, torch=True)


def log(stage: Stage, *kinds: str, torch: bool = False) -> Laps:
    """Run a program whose children log, of so many kinds, to its end."""
    command = [sys.executable, stage.program(CHILDREN), stage.run_dir, stage.journals, *kinds]
    process = stage.start(*command, torch=torch)
    arrived = stage.watch(0.0, lambda: process.poll() is not None, [stage.run_dir])
    stage.succeed(process)
    assert arrived is not None, stage.output(process)
    ended = int((stage.shared / "ended").read_text()) / 1e9
    wait_for(lambda: no_uploader(stage.run_dir), "the uploader leaves")
    report = stage.judge()
    logged = Counter(os.path.dirname(path) for path in report.files)
    tasks = {"proc_00001", "proc_00002"}  # of one pool after the other, which have no names of their own
    assert max(count for name, count in logged.items() if name not in tasks) == 1, "no process has two files"
    assert sum(file.hub_events for file in report.files.values()) == STEPS * len(kinds) + 2
    return {f"the end of {', '.join(kinds)}": arrived - ended}
