"""Ordinary programs whose processes log: what users of multiprocessing, pools, torch and others write.

    program.py RUN REPO [RANK]      RUN is the logdir, or the folder of one logdir for each trial

Environment of a program:
    BACKWARDS    children, ranks or trials begin in the other order
    GO           path: each process logs until this file is there, and notes what returned beside its logdir, in
                 LOGDIR.journals; it makes a file `ended.PID` there when its `with` block is left

The tag of what a process logs tells which child, rank or trial it is: `loss/2`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hf_mpwriter.testing.oracle import keys

TRIALS = 4
PRELUDE = """
import os, sys, time
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

def ended(logdir):
    if GO:
        open(f"{logdir}.journals/ended.{os.getpid()}", "w").close()

def train(logdir, who, begun=lambda: None):
    with HFSummaryWriter(REPO, logdir=logdir) as writer:
        begun()
        log(writer, who)
    ended(logdir)
"""

_RANKS = """
def train_in_turn(rank):
    import torch.distributed as dist
    first = in_order(range(2))[0]
    if rank != first:
        dist.barrier()
    train(RUN, rank, dist.barrier if rank == first else lambda: None)
"""

_DDP_BY_SPAWN = (
    _RANKS
    + """
import tempfile, torch.distributed as dist, torch.multiprocessing as mp

def work(rank, place):
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
    train_in_turn(rank)
    dist.destroy_process_group()

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        mp.spawn(work, (place,), nprocs=2)
"""
)

_NODES = (
    _RANKS
    + """
import torch.distributed as dist

if __name__ == "__main__":
    rank, port = int(sys.argv[3]), int(sys.argv[4])
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    train_in_turn(rank)
    dist.destroy_process_group()
"""
)

_DEBUG_LAUNCHER = (
    _RANKS
    + """
from accelerate import debug_launcher

def work():
    import torch.distributed as dist
    train_in_turn(dist.get_rank())

if __name__ == "__main__":
    debug_launcher(work, num_processes=2)
"""
)

_LIGHTNING = """
import lightning, torch

class Module(lightning.LightningModule):
    def __init__(self, writer):
        super().__init__()
        self.writer, self.layer = writer, torch.nn.Linear(1, 1)
    def training_step(self, batch, number):
        log(self.writer, self.global_rank)
        return self.layer(batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

if __name__ == "__main__":
    with HFSummaryWriter(REPO, logdir=RUN) as writer:
        quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
        trainer = lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, **quiet)
        trainer.fit(Module(writer), torch.utils.data.DataLoader(torch.ones(2, 1)))
    ended(RUN)
"""

_PROCESSES = """
import multiprocessing

if __name__ == "__main__":
    context = multiprocessing.get_context("METHOD")
    children = [context.Process(target=train, args=(RUN, who), daemon=IS_DAEMON) for who in range(3)]
    for child in in_order(children):
        child.start()
    for child in children:
        child.join()
"""

_POOL = """
import multiprocessing

if __name__ == "__main__":
    trials = [(LOGDIR, who) for who in in_order(range(4))]
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

_JOBLIB = """
from joblib import Parallel, delayed

if __name__ == "__main__":
    Parallel(n_jobs=2)(delayed(train)(f"{RUN}/t{who}", who) for who in in_order(range(4)))
"""

_OPTUNA = """
import optuna

def objective(trial):
    train(f"{RUN}/t{trial.number}", trial.number)
    return 0.0

if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study().optimize(objective, n_trials=4, n_jobs=2)
"""

_RAY = """
import ray
from ray import tune

def trial(config):
    train(f"{RUN}/t{config['who']}", config["who"])

if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=os.environ["RAY_PLACE"])
    space = {"who": tune.grid_search(in_order(range(4)))}
    run = tune.RunConfig(storage_path=os.environ["RAY_PLACE"], verbose=0)
    tune.Tuner(tune.with_resources(trial, {"cpu": 1}), param_space=space, run_config=run).fit()
"""

_NESTED = """
import multiprocessing

if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    child = multiprocessing.Process(target=train, args=(RUN, f"{rank}.child"))
    with HFSummaryWriter(REPO, logdir=RUN) as writer:
        child.start()
        log(writer, rank)
        child.join()
    ended(RUN)
"""


@dataclass(frozen=True)
class Ordinary:
    """An ordinary program."""

    body: str  # what follows the prelude
    logs: int = 2  # how many processes or threads log at once
    runs: int = 1  # number of run directories; one for each trial if there are several
    needs: tuple[str, ...] = ()  # modules that it imports
    launcher: tuple[str, ...] = ()  # what comes between the interpreter and the program
    nodes: int = 1  # how many times it is started, with its rank and a port; each has a disk of its own
    by_chance: bool = False  # whether it is chance which process has which directory
    directories: tuple[str, ...] = (".",)  # below each run directory, "." for itself

    @property
    def source(self) -> str:
        """The text of the program."""
        return PRELUDE + self.body

    @property
    def missing(self) -> str:
        """Why it cannot run here, "" if it can."""
        found = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{', '.join(found)} is not installed" if found else ""

    @property
    def has_torch(self) -> bool:
        """Whether it needs torch, which is hidden from the others: it takes seconds of each process."""
        return "torch" in self.needs

    def run_dirs(self, run: Path) -> list[Path]:
        """The run directories on one node."""
        return [run] if self.runs == 1 else [run / f"t{trial}" for trial in range(self.runs)]


def _processes(method: str, *, daemon: bool = False) -> Ordinary:
    names = {"fork": "ForkProcess", "spawn": "SpawnProcess", "forkserver": "ForkServerProcess"}
    body = _PROCESSES.replace("METHOD", method).replace("IS_DAEMON", str(daemon))
    return Ordinary(body, logs=3, directories=tuple(f"{names[method]}-{number}" for number in (1, 2, 3)))


def _pool(method: str, tasks: int | None = None, *, shared: bool = False) -> Ordinary:
    body = _POOL.replace("METHOD", method).replace("TASKS", str(tasks))
    body = body.replace("LOGDIR", "RUN" if shared else 'f"{RUN}/t{who}"')
    if shared:
        return Ordinary(body, by_chance=True, directories=(".", "proc_00001"))
    return Ordinary(body, runs=TRIALS)


_TORCH, _TWO_RANKS = ("torch",), (".", "rank_00001")
_AGENT = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
_NAMES_OF_NESTED = (".", "rank_00000_Process-1", "rank_00001", "rank_00001_Process-1")
PROGRAMS = {
    "ddp-by-spawn": Ordinary(_RANKS + _DDP_BY_SPAWN, needs=_TORCH, directories=_TWO_RANKS),
    "process-fork": _processes("fork"),
    "process-spawn": _processes("spawn"),
    "process-forkserver": _processes("forkserver"),
    "daemon": _processes("fork", daemon=True),
    "pool-fork": _pool("fork"),
    "pool-spawn": _pool("spawn"),
    "pool-one-task": _pool("fork", 1),
    "pool-one-logdir": _pool("fork", 1, shared=True),
    "executor": Ordinary(_EXECUTOR, runs=TRIALS),
    "joblib": Ordinary(_JOBLIB, runs=TRIALS, needs=("joblib",)),
    "optuna": Ordinary(_OPTUNA, runs=TRIALS, needs=("optuna",)),
    "nested": Ordinary(_NESTED, logs=4, needs=_TORCH, launcher=_AGENT, directories=_NAMES_OF_NESTED),
    "debug-launcher": Ordinary(_RANKS + _DEBUG_LAUNCHER, needs=("torch", "accelerate"), directories=_TWO_RANKS),
    "lightning-ddp": Ordinary(_LIGHTNING, needs=("torch", "lightning"), directories=_TWO_RANKS),
    "ray-tune": Ordinary(_RAY, runs=TRIALS, needs=("ray", "pandas")),
    "nodes": Ordinary(_RANKS + _NODES, needs=_TORCH, nodes=2, directories=_TWO_RANKS),
}


def journals(run_dir: Path, kind: str = "journal") -> list[tuple[int, Path]]:
    """The journals of a run directory by pid, or the marks of processes that have left their `with` block (`ended`)."""
    return [(int(path.name.split(".")[1]), path) for path in Path(f"{run_dir}.journals").glob(f"{kind}.*")]


def begun(run_dirs: Iterable[Path]) -> int:
    """How many processes or threads have begun to log, of a program with GO."""
    return sum(path.stat().st_size > 0 for run_dir in run_dirs for _, path in journals(run_dir))


def names(run_dirs: Iterable[Path]) -> dict[str, set[Path]]:
    """The directories in which each child, rank or trial has logged, by its tag."""
    found: dict[str, set[Path]] = {}
    for run_dir in run_dirs:
        for path in run_dir.rglob("*tfevents*"):
            for tag in {tag for tag, _ in keys(str(path))}:
                found.setdefault(tag, set()).add(path.parent)
    return found
