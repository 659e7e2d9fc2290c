"""Ordinary programs whose processes log: what users of multiprocessing, pools and torch write.

    program.py RUN REPO       RUN is the logdir, or the folder of one logdir for each trial

Environment of a program:
    BACKWARDS    children, ranks or trials begin in the other order
    GO           path: each process logs until this file is there, and notes what returned beside its logdir, in
                 LOGDIR.journals

The tag of what a process logs tells which child, rank or trial it is: `loss/2`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hf_mpwriter.testing.oracle import keys

TRIALS = 4
PRELUDE = """
import multiprocessing, os, sys, time
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.testing import Journal

RUN, REPO = sys.argv[1:3]
GO, END = os.environ.get("GO", ""), time.monotonic() + 120

def in_order(things):
    return list(things)[::-1] if "BACKWARDS" in os.environ else list(things)

def log(writer, who):
    for step in range(0 if GO else 40):
        writer.add_scalar(f"loss/{who}", 1 / (step + 1), step)
        time.sleep(0.02)
    if GO:
        log_until_told(writer, who, Journal(f"{writer.logdir}.journals"))

def log_until_told(writer, who, journal):
    step = 0
    while step < 20 or not (os.path.exists(GO) or time.monotonic() > END):
        writer.add_scalar(f"loss/{who}", 1 / (step + 1), step)
        journal.note(writer, f"loss/{who}", step)
        step += 1
        if step % 100 == 0:
            writer.push()
        time.sleep(0.003)

def train(logdir, who, begun=lambda: None):
    with HFSummaryWriter(REPO, logdir=logdir) as writer:
        begun()
        log(writer, who)
"""

_DDP_BY_SPAWN = """
import tempfile, torch.distributed as dist, torch.multiprocessing as mp

def work(rank, place):
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
    first = in_order(range(2))[0]
    if rank != first:
        dist.barrier()
    train(RUN, rank, dist.barrier if rank == first else lambda: None)
    dist.destroy_process_group()

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        mp.spawn(work, (place,), nprocs=2)
"""

_PROCESSES = """
if __name__ == "__main__":
    context = multiprocessing.get_context("METHOD")
    children = [context.Process(target=train, args=(RUN, who), daemon=IS_DAEMON) for who in range(3)]
    for child in in_order(children):
        child.start()
    for child in children:
        child.join()
"""

_POOL = """
if __name__ == "__main__":
    trials = [(f"{RUN}/t{who}", who) for who in in_order(range(4))]
    with multiprocessing.get_context("METHOD").Pool(2, maxtasksperchild=TASKS) as pool:
        pool.starmap(train, trials, chunksize=1)
"""

_EXECUTOR = """
from concurrent.futures import ProcessPoolExecutor

if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        for done in [pool.submit(train, f"{RUN}/t{who}", who) for who in in_order(range(4))]:
            done.result()
"""

_NESTED = """
if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    child = multiprocessing.Process(target=train, args=(RUN, f"{rank}.child"))
    with HFSummaryWriter(REPO, logdir=RUN) as writer:
        child.start()
        log(writer, rank)
        child.join()
"""


@dataclass(frozen=True)
class Ordinary:
    """An ordinary program."""

    body: str  # what follows the prelude
    logs: int = 2  # how many processes log at once
    runs: int = 1  # number of run directories; one for each trial if there are several
    is_launched: bool = False  # whether it is started twice, with ranks
    directories: tuple[str, ...] = (".",)  # below each run directory, "." for itself

    @property
    def source(self) -> str:
        """The text of the program."""
        return PRELUDE + self.body

    def run_dirs(self, run: Path) -> list[Path]:
        """The run directories."""
        return [run] if self.runs == 1 else [run / f"t{trial}" for trial in range(self.runs)]


def _processes(method: str, *, daemon: bool = False) -> Ordinary:
    names = {"fork": "ForkProcess", "spawn": "SpawnProcess"}
    body = _PROCESSES.replace("METHOD", method).replace("IS_DAEMON", str(daemon))
    return Ordinary(body, logs=3, directories=tuple(f"{names[method]}-{number}" for number in (1, 2, 3)))


def _pool(method: str, tasks: int | None = None) -> Ordinary:
    return Ordinary(_POOL.replace("METHOD", method).replace("TASKS", str(tasks)), runs=TRIALS)


_NAMES_OF_NESTED = (".", "rank_00000_Process-1", "rank_00001", "rank_00001_Process-1")
PROGRAMS = {
    "ddp-by-spawn": Ordinary(_DDP_BY_SPAWN, directories=(".", "rank_00001")),
    "process-fork": _processes("fork"),
    "process-spawn": _processes("spawn"),
    "daemon": _processes("fork", daemon=True),
    "pool-fork": _pool("fork"),
    "pool-spawn": _pool("spawn"),
    "pool-one-task": _pool("fork", 1),
    "executor": Ordinary(_EXECUTOR, runs=TRIALS),
    "nested": Ordinary(_NESTED, logs=4, is_launched=True, directories=_NAMES_OF_NESTED),
}


def begun(run_dirs: Iterable[Path]) -> int:
    """How many processes have begun to log, of a program with GO."""
    return sum(
        path.stat().st_size > 0 for run_dir in run_dirs for path in Path(f"{run_dir}.journals").glob("journal.*")
    )


def names(run_dirs: Iterable[Path]) -> dict[str, set[Path]]:
    """The directories in which each child, rank or trial has logged, by its tag."""
    found: dict[str, set[Path]] = {}
    for run_dir in run_dirs:
        for path in run_dir.rglob("*tfevents*"):
            for tag in {tag for tag, _ in keys(str(path))}:
                found.setdefault(tag, set()).add(path.parent)
    return found
