"""What happens to one of the runs of `sweep.py --faults`, while the others go on.

    none       nothing
    refused    it gets an event file that the Hub refuses
    removed    its run directory is removed
    stranger   its spool becomes another user's, and its trial starts anew
    full       it is on a disk of its own, which becomes full
    cgroup     it runs in a cgroup of its own, which is killed, with what uploads it
    uploader   the uploader that serves it is killed
    heavy      it begins to log 4 MB a second
    uplink     the same, where a connection to the Hub takes 2 MB a second
    hang       it is on a mount of its own, which hangs
    in part    all runs are on one mount, where what is of this run hangs; the mount answers for the others

`stranger`, `full`, `cgroup` and the mounts, which are FUSE models, need root.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lib.paths import HELPERS, ROOT
from lib.waiting import becomes_true

sys.path += [str(ROOT / "scripts" / "proof")]
sys.path.insert(0, str(HELPERS))  # before `mounts` of this folder

import fuse_models
from power_cut_disk import LoopDisk
from soaking.storage import fill

from hf_mpwriter.events import framing
from hf_mpwriter.system.process import processes

STRANGER = 54321  # user id
UPLINK = 2e6  # bytes a second
ENDING = 5.0  # seconds for what was killed to end
REFUSED = ".git/events.out.tfevents.1700000000.theirs"  # a path that the Hub takes in no repository
DIRECT = dataclasses.replace(fuse_models.PLAIN, name="sshfs", fstype="sshfs", source="host:/data")


@dataclasses.dataclass
class Trial:
    """The run that something happens to."""

    run_dir: Path
    heavy: Path  # once it is there, the trial logs much
    start: Callable[[], subprocess.Popen[str]]
    child: subprocess.Popen[str]


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens, and where the runs are."""

    strike: Callable[[Trial], object]
    folder: Path | None = None  # of the run that it happens to, if that is not the usual one
    others: Path | None = None  # of the others, the same
    enter: Callable[[int], object] = lambda _pid: None  # what is done with the process of the trial at its start
    undo: Callable[[], object] = lambda: None  # called while its processes live
    rate: float = 0.0  # bytes a second that a connection to the Hub takes, 0 for no limit


def event_file(path: Path) -> None:
    """Make an event file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    events = [framing.version_event(1.0), framing.summary_event(1.0, 0, b"")]
    path.write_bytes(b"".join(map(framing.frame, events)))


def estrange(trial: Trial) -> None:
    """Give the spool to another user; who starts looks at that."""
    os.chown(trial.run_dir / ".hf_mpwriter", STRANGER, STRANGER)
    trial.child.kill()
    trial.child.wait()
    trial.child = trial.start()


def kill_uploader(trial: Trial) -> None:
    """Kill the process that holds the lock of the run, found by the lock: its command may name another run."""
    lock = os.stat(trial.run_dir / ".hf_mpwriter" / "uploader.lock")
    for pid in processes():
        with contextlib.suppress(OSError):
            held = (os.stat(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
            if any((one.st_dev, one.st_ino) == (lock.st_dev, lock.st_ino) for one in held):
                os.kill(pid, signal.SIGKILL)


def always(
    strike: Callable[[Trial], object], rate: float = 0.0
) -> Callable[[Path], contextlib.AbstractContextManager[Fault]]:
    """A fault that needs no place of its own."""
    return lambda _: contextlib.nullcontext(Fault(strike, rate=rate))


@contextlib.contextmanager
def full(root: Path) -> Iterator[Fault]:
    """Put the run on a disk, and fill it."""
    with LoopDisk(str(root)) as disk:
        filler = os.path.join(disk.path, "filler")
        yield Fault(lambda _: fill(filler), Path(disk.path))


@contextlib.contextmanager
def cgroup(_: Path) -> Iterator[Fault]:
    """Put the run into a cgroup, and kill that."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    top = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    if top is None:
        raise OSError("there is no cgroup v2")
    group = Path(top, f"bench_sweep_{os.getpid()}")
    group.mkdir()
    kill = group / "cgroup.kill"
    try:
        yield Fault(
            lambda _: kill.write_text("1"),
            enter=lambda pid: (group / "cgroup.procs").write_text(str(pid)),
            undo=lambda: kill.write_text("1"),
        )
    finally:
        becomes_true(lambda: not (group / "cgroup.procs").read_text(), ENDING)
        group.rmdir()


@contextlib.contextmanager
def hanging(root: Path, *, in_part: bool = False) -> Iterator[Fault]:
    """Put the run on a mount, or all, and let that hang, or what is of this run there."""
    if reason := fuse_models.why_not():
        raise OSError(reason)
    with fuse_models.mounted(DIRECT, root / "mount") as mount:
        yield Fault(
            lambda trial: mount.hang(below=trial.run_dir if in_part else mount.place),
            mount.place,
            others=mount.place if in_part else None,
            undo=mount.release,
        )


FAULTS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Fault]]] = {
    "none": always(lambda _: None),
    "refused": always(lambda trial: event_file(trial.run_dir / REFUSED)),
    "removed": always(lambda trial: shutil.rmtree(trial.run_dir, ignore_errors=True)),
    "stranger": always(estrange),
    "full": full,
    "cgroup": cgroup,
    "uploader": always(kill_uploader),
    "heavy": always(lambda trial: trial.heavy.touch()),
    "uplink": always(lambda trial: trial.heavy.touch(), rate=UPLINK),
    "hang": hanging,
    "in part": lambda root: hanging(root, in_part=True),
}
