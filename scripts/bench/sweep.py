#!/usr/bin/env python3
"""Measure a sweep: many run directories, one repository, with real processes and a local Hub, and the usual limits.

    --serial [N]     trials one after the other, each a process with a writer of its own (default: 64)
    --pool [N]       trials in a multiprocessing Pool of 4 (64)
    --block [N]      one program with a `with` block per epoch (30)
    --long [N]       long runs side by side (16); see --interval and --minutes
    --finished [N]   finished runs and 8 living ones in a folder (1000): the uploaders at rest, beside the 8 alone
    --faults [N]     long runs side by side (8), and something happens to one of them: the delay of the others, see
                     `sweep_faults`; --only chooses, --old measures another checkout of this project beside this one
    --names          two sweeps with trials of the same names: the folders that the Hub has; also when a trial is
                     restarted, moved, or pulled

    scripts/bench/sweep.py                            all of it: up to an hour and a half
    scripts/bench/sweep.py --quick                    small numbers, and no patience: a minute
    scripts/bench/sweep.py --serial --pool --dir /tmp

An end is the time from the last add_scalar of a trial until its process, or its block, has ended. Uploaders and pushes
are those of this script on the whole machine; memory is theirs at a time, shared pages in proportion (pss). An uploader
that has just started may be about to hand its run over and end, so those older than two seconds are counted apart.

The long runs are a model: an interval of 15 s instead of five minutes, and so many times more commits an hour. The age
is that of the oldest record of a run that is not on the Hub, seen each second; ticks and pushes are not scaled.

Each part has a Hub, a cache and a home of its own. No figure makes the script fail.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib import relay
from lib.arguments import add_directory, make_parser
from lib.figures import show
from lib.isolation import UNLIMITED, own_mounts
from lib.marked import by_kind
from lib.waiting import becomes_true
from scale import arrive
from sweep_faults import FAULTS, Fault, Trial
from sweep_stage import REPO, USHER, Peak, Stage, Watch, end_all, folder_of, memory
from uploader_costs import cpu

from hf_mpwriter.base.settings import DEFAULT_COMMIT_EVERY, DEFAULT_COMMITS_PER_HOUR, Destination
from hf_mpwriter.events import framing
from hf_mpwriter.localhub.config import HOST
from hf_mpwriter.spool.layout import Spool

LIVING = 8  # runs beside the finished ones
SETTLED, WATCHED = 2, 4  # intervals before a fault, and after it
BACKLOG = 2048  # connections
LOOK = 1.0  # seconds between two looks at the Hub
TWINS = ("sweepA/lr0.1", "sweepB/lr0.1", "outputs/2026-11-24/10-00-00", "outputs/2026-11-25/10-00-00")


@dataclass(frozen=True)
class Scale:
    """How much to do by default, and how long to wait."""

    serial: int = 64
    pool: int = 64
    block: int = 30
    long: int = 16
    finished: int = 1000
    faults: int = 8
    only: tuple[str, ...] = tuple(FAULTS)  # of the faults
    old: str = ""  # another checkout
    interval: float = 0.25  # minutes between two commits of a long run
    minutes: float = 4.0  # of long runs
    deadline: float = 900.0  # seconds after the last end
    marks: tuple[float, ...] = (0.0, 60.0, 210.0, 600.0, 900.0)  # seconds at which complete runs are counted
    watched: float = 60.0  # seconds for which uploaders are watched at rest
    settled: float = 90.0  # seconds in which the last push ends
    frameworks: bool = True  # whether those that are installed are used, which takes long


FULL = Scale()
QUICK = Scale(
    3,
    4,
    3,
    3,
    20,
    3,
    interval=0.05,
    minutes=0.2,
    deadline=20.0,
    marks=(0.0, 20.0),
    watched=2.0,
    settled=1.0,
    frameworks=False,
)


# trials


def show_ends(ends: Sequence[float]) -> None:
    """Print the seconds of ends."""
    show(f"an end, median of {len(ends)}", statistics.median(ends), "s")
    show("an end, longest", max(ends), "s", 10.0)
    show("ends above 10 s", sum(end > 10 for end in ends), "")


def show_arrival(stage: Stage, scale: Scale, ended_at: float) -> None:
    """Wait until all is on the Hub; print how long that took after a monotonic time."""
    run_dirs, marks, took = stage.run_dirs(), list(scale.marks), None
    while took is None and (passed := time.monotonic() - ended_at) < scale.deadline:
        count = stage.complete(run_dirs)
        took = passed if count == len(run_dirs) else None
        while marks and (took is not None or passed >= marks[0]):
            show(f"complete on the Hub {marks.pop(0):.0f} s after the last end, of {len(run_dirs)}", count, "")
            if took is not None:
                marks.clear()
        time.sleep(LOOK if took is None else 0)
    if took is None:
        left = len(run_dirs) - stage.complete(run_dirs)
        show(f"NOT on the Hub {scale.deadline:.0f} s after the last end, of {len(run_dirs)}", left, "runs")
    else:
        show("all on the Hub after the last end", took, "s", 600.0)
    show("commits that the Hub got", stage.commits(), "")


def show_peak(peak: Peak) -> None:
    """Print the most that was seen at a time."""
    show("uploaders at most at once", peak.uploaders, "")
    show(f"of these, older than {USHER:g} s", peak.settled, "", 1)
    show("memory of all uploaders at most (pss)", peak.uploader_memory, "MiB", 30.0)
    show("pushes at most at once", peak.pushes, "")
    show("memory of all pushes at most (pss)", peak.push_memory, "MiB")


def show_words(stage: Stage) -> None:
    """Print how much was said."""
    said = stage.said()
    show("lines that were printed", len(said), "")
    show("of these, that the repository is public", sum("public" in line for line in said), "")


def serial(stage: Stage, scale: Scale, count: int) -> None:
    """Run trials one after the other."""
    ends = []
    with Watch(stage.mark) as peak:
        for number in range(count):
            last, ended_at = stage.run("one", stage.runs / f"trial{number:04d}", REPO)
            ends.append(ended_at - last)
        show_ends(ends)
        print("the ends: " + " ".join(f"{end:.1f}" for end in ends), flush=True)
        show_arrival(stage, scale, ended_at)
    show_peak(peak)
    show_words(stage)


def pool(stage: Stage, scale: Scale, count: int) -> None:
    """Run trials in a Pool."""
    started_at = time.monotonic()
    with Watch(stage.mark) as peak:
        ends, ended_at = stage.run("pool", stage.runs, REPO, count)
        show("the program", ended_at - started_at, "s")
        show_ends(ends)
        show_arrival(stage, scale, ended_at)
    show_peak(peak)
    show_words(stage)


def block(stage: Stage, scale: Scale, count: int) -> None:
    """Run epochs in a block each."""
    with Watch(stage.mark) as peak:
        ends, ended_at = stage.run("blocks", stage.runs / "epochs", REPO, count)
        show_ends(ends)
        print("the ends: " + " ".join(f"{end:.1f}" for end in ends), flush=True)
        show_arrival(stage, scale, ended_at)
    show_peak(peak)
    show_words(stage)


# long runs


def faster(scale: Scale) -> dict[str, str]:
    """As many times more commits an hour as the interval is shorter."""
    limit = DEFAULT_COMMITS_PER_HOUR * DEFAULT_COMMIT_EVERY / scale.interval
    return {"HF_MPWRITER_COMMITS_PER_HOUR": str(int(limit))}


class Ages:
    """How old the oldest record is that is not on the Hub, of each run."""

    def __init__(self, stage: Stage, run_dirs: Sequence[Path]) -> None:
        self._stage, self._run_dirs, self._grown = stage, run_dirs, dict[Path, list[tuple[float, int]]]()
        self.worst = dict[Path, float]()  # seconds, per run

    def look(self) -> None:
        """Note what has been written, and what of it is on the Hub."""
        tree, now = self._stage.tree(), time.monotonic()
        for run_dir in self._run_dirs:
            for path in run_dir.rglob("*.tfevents.*"):
                lengths, size = self._grown.setdefault(path, []), path.stat().st_size
                if not lengths or size > lengths[-1][1]:
                    lengths.append((now, size))
                there = tree.get(f"tensorboard/{run_dir.name}/{path.relative_to(run_dir)}", 0)
                while lengths and lengths[0][1] <= there:
                    lengths.pop(0)
                if lengths:
                    self.worst[run_dir] = max(self.worst.get(run_dir, 0.0), now - lengths[0][0])
                else:
                    self._grown[path] = [(now, there)]  # the next growth is newer than now

    def look_for(self, seconds: float) -> None:
        """Look each second, for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.look()
            time.sleep(LOOK)


def long(stage: Stage, scale: Scale, count: int) -> None:
    """Let long runs log side by side."""
    seconds, limit = 60 * scale.minutes, faster(scale)
    with Watch(stage.mark) as peak:
        run_dirs = [stage.runs / f"run{number:02d}" for number in range(count)]
        children = [stage.start("long", run_dir, REPO, scale.interval, seconds, **limit) for run_dir in run_dirs]
        ages = Ages(stage, run_dirs)
        ages.look_for(seconds)
        commits, intervals = stage.commits(), scale.minutes / scale.interval
        for child in children:
            child.wait()
    ended_at, interval = time.monotonic(), 60 * scale.interval
    show(f"commits per interval of {interval:g} s, of {count} runs", commits / intervals, "", 1.0)
    worst = [age / interval for age in ages.worst.values()] or [0.0]
    show("oldest record not on the Hub, worst run", max(worst), "inter.", 1.1)
    show("oldest record not on the Hub, median of the runs", statistics.median(worst), "inter.")
    show_arrival(stage, scale, ended_at)
    show_peak(peak)


# faults


def faults(stage: Stage, scale: Scale, count: int) -> None:
    """Let something happen to one of several long runs, in this checkout and in another one."""
    for name in scale.only:
        for tree in [*filter(None, [scale.old]), ""]:
            what, place = f"{'old' if tree else 'ours'}, {name}", stage.place / "fault"
            place.mkdir()
            try:
                with FAULTS[name](place) as fault, Stage(stage.place, "case") as case:
                    _strike(case, scale, count, fault, tree, what)
            except OSError as error:
                print(f"{what}: left out: {error}", flush=True)
            shutil.rmtree(place)


def _strike(stage: Stage, scale: Scale, count: int, fault: Fault, tree: str, what: str) -> None:
    interval, heavy, line = 60 * scale.interval, stage.place / "heavy", None
    if fault.rate:
        with socket.create_server((HOST, 0), backlog=BACKLOG) as listener:
            stage.env["HF_ENDPOINT"] = f"http://{HOST}:{listener.getsockname()[1]}"
            line = relay.start(listener, stage.hub.port, fault.rate)
    env = faster(scale) | {"PYTHONPATH": os.pathsep.join(filter(None, [tree, stage.env["PYTHONPATH"]]))}
    run_dirs = [(fault.others or stage.runs) / f"run{number:02d}" for number in range(1, count)]
    victim = (fault.folder or stage.runs) / "run00"

    def start(run_dir: Path, *more: object) -> subprocess.Popen[str]:
        return stage.start("long", run_dir, REPO, scale.interval, 3600, *more, **env)

    trial = Trial(victim, heavy, lambda: start(victim, heavy), start(victim, heavy))
    fault.enter(trial.child.pid)
    for run_dir in run_dirs:
        start(run_dir)
    try:
        ages = Ages(stage, run_dirs)
        ages.look_for(SETTLED * interval)
        becomes_true(lambda: len({path.split("/")[1] for path in stage.tree() if "/" in path}) == count, scale.deadline)
        ages.look_for(interval)
        ages.worst.clear()
        fault.strike(trial)
        ages.look_for(WATCHED * interval)
    finally:
        fault.undo()
        end_all(stage.mark)
        if line is not None:
            line.kill()
            line.join()
    worst = [ages.worst.get(run_dir, math.inf) for run_dir in run_dirs]
    show(f"{what}: oldest record of the {count - 1} others, worst run", max(worst), "s")
    show(f"{what}: the same, median of the runs", statistics.median(worst), "s")


# finished runs


def finish(run_dir: Path, destination: Destination) -> None:
    """Make a finished run: an event file, and a ledger that says that the Hub has all of it."""
    Spool(str(run_dir)).create()
    events = [framing.version_event(1.0), *(framing.summary_event(1.0, step, b"") for step in range(20))]
    name = f"events.out.tfevents.1700000000.host.1.{os.urandom(4).hex()}"
    (run_dir / name).write_bytes(b"".join(map(framing.frame, events)))
    arrive(run_dir, destination)


def finished(stage: Stage, scale: Scale, count: int) -> None:
    """Watch the uploaders of living runs at rest: alone, then beside finished ones."""
    _at_rest(stage, scale, stage.runs / "alone", f"{LIVING} living runs alone")
    folder = stage.runs / "beside"
    for number in range(count):
        path = f"tensorboard/done{number:04d}"
        finish(folder / f"done{number:04d}", Destination(stage.hub.endpoint, REPO, path_in_repo=path))
    _at_rest(stage, scale, folder, f"beside {count} finished ones")


def _at_rest(stage: Stage, scale: Scale, folder: Path, what: str) -> None:
    run_dirs = [folder / f"living_{folder.name}_{number}" for number in range(LIVING)]
    limit = {"HF_MPWRITER_COMMITS_PER_HOUR": UNLIMITED}  # what is at rest has had its turn
    children = [stage.start("idle", run_dir, REPO, **limit) for run_dir in run_dirs]
    if not becomes_true(lambda: stage.complete(list(filter(Path.exists, run_dirs))) == LIVING, scale.deadline, LOOK):
        print(f"{what}: the first commits took longer than {scale.deadline:.0f} s")
    becomes_true(lambda: not by_kind(stage.mark)["push"], scale.settled, LOOK)
    busy = {pid: cpu(pid) for pid in by_kind(stage.mark)["uploader"]}
    show(f"{what}: processor of the uploaders until then", sum(busy.values()), "s")
    time.sleep(scale.watched)
    used = 0.0
    for pid, before in busy.items():
        with contextlib.suppress(OSError):  # it has left
            used += cpu(pid) - before
    uploaders = by_kind(stage.mark)["uploader"]
    show(f"{what}: uploaders", len(uploaders), "")
    show(f"{what}: processor of the uploaders in a minute", used * 60 / scale.watched, "s")
    show(f"{what}: memory of the uploaders (pss)", memory(uploaders), "MiB")
    for child in children:
        child.kill()
    end_all(stage.mark)


# names


def names(stage: Stage, scale: Scale, count: int) -> None:
    """Let two sweeps have trials of the same names."""
    run_dirs = [stage.runs / name for name in TWINS[: 2 * count]]
    for run_dir in run_dirs:
        stage.run("one", run_dir, REPO)
    if scale.frameworks and importlib.util.find_spec("lightning"):
        path = os.environ.get("PYTHONPATH", "")
        projects = [stage.runs / "projectA", stage.runs / "projectB"]
        run_dirs += [Path(stage.run("lightning", project, REPO, PYTHONPATH=path)[0]) for project in projects]
    else:
        print("lightning is not used")
    show_arrival(stage, scale, time.monotonic())
    first = _show_folders(stage, run_dirs, "the first time")
    stage.run("one", run_dirs[1], REPO)
    moved = stage.runs / "moved" / run_dirs[0].name
    moved.parent.mkdir()
    run_dirs[0].rename(moved)
    stage.run("one", moved, REPO)
    again = _show_folders(stage, [moved, *run_dirs[1:]], "one restarted, one moved and restarted")
    show(
        "folders that a restart or a move has changed",
        sum(old != new for old, new in zip(first, again, strict=True)),
        "",
    )
    _pull(stage, sorted(set(first)))


def _show_folders(stage: Stage, run_dirs: Sequence[Path], when: str) -> list[str]:
    folders, there = [folder_of(run_dir) for run_dir in run_dirs], stage.tree()
    print(f"{when}:")
    for run_dir, folder in zip(run_dirs, folders, strict=True):
        files = sum(path.startswith(f"{folder}/") for path in there)
        shared = f", SHARED by {folders.count(folder)} runs" if folders.count(folder) > 1 else ""
        print(f"  {run_dir.relative_to(stage.runs)!s:44} {folder}: {files} files{shared}")
    show("folders shared by runs that differ", sum(folders.count(folder) > 1 for folder in set(folders)), "", 0)
    return folders


def _pull(stage: Stage, folders: Sequence[str]) -> None:
    """Continue each folder of the Hub on another machine: one with a cache of its own."""
    env, changed = stage.env | {"XDG_CACHE_HOME": str(stage.place / "cache of another machine")}, 0
    for folder in folders:
        above, _, name = folder.rpartition("/")
        run_dir = stage.runs / "pulled" / name
        where = [str(run_dir), "--repo-id", REPO, "--path-in-repo", above]
        command = [sys.executable, "-m", "hf_mpwriter", "pull", *where]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"  pull of {folder}: {(done.stderr or done.stdout).strip()}")
            changed += 1
        elif above == "tensorboard":  # what is elsewhere has a logger of its own
            stage.run("one", run_dir, REPO, XDG_CACHE_HOME=env["XDG_CACHE_HOME"])
            changed += folder_of(run_dir) != folder
    show("folders that a pull has changed", changed, "", 0)


PARTS: dict[str, Callable[[Stage, Scale, int], None]] = {
    "serial": serial,
    "pool": pool,
    "block": block,
    "long": long,
    "finished": finished,
    "faults": faults,
    "names": names,
}


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parts = parser.add_argument_group("parts", "default: all")
    for name in PARTS:
        if name == "names":
            parts.add_argument("--names", action="store_const", const=len(TWINS) // 2)
        else:
            parts.add_argument(f"--{name}", type=int, nargs="?", const=0, metavar="N")
    parser.add_argument("--quick", action="store_true", help="small numbers; waits that are too long are given up")
    parser.add_argument("--interval", type=float, help=f"minutes between commits of long runs ({FULL.interval:g})")
    parser.add_argument("--minutes", type=float, help=f"of long runs ({FULL.minutes:g})")
    parser.add_argument("--only", nargs="+", choices=FAULTS, help="of the faults (default: all)")
    parser.add_argument("--old", help="another checkout of this project, whose delays by faults are measured, too")
    add_directory(parser)
    return parser.parse_args()


def main() -> int:
    """Run the parts."""
    options, signals = parse(), (signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        signal.signal(number, lambda *_: sys.exit(1))  # what was started is ended
    scale = QUICK if options.quick else FULL
    own_mounts()  # whatever ends this process, no mount of a fault stays
    names = ("interval", "minutes", "only", "old")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    scale = Scale(**vars(scale) | given)
    chosen = {name: getattr(options, name) for name in PARTS if getattr(options, name) is not None}
    directory = Path(tempfile.mkdtemp(prefix="bench_sweep_", dir=options.dir))
    try:
        for name in chosen or PARTS:
            count = chosen.get(name) or (len(TWINS) // 2 if name == "names" else getattr(scale, name))
            print(f"--{name} {count}", flush=True)
            with Stage(directory, name) as stage:
                PARTS[name](stage, scale, count)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
