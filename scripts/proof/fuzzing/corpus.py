"""The corpus: real runs with all that is read of them, and a copy of it for each case.

    corpus/runs/exp1/         two ranks, uploaded once; then killed with a Hub that is down: members, outbox, in flight
    corpus/runs/beside/       a small run that is whole
    corpus/pulled/exp1/       the first one, pulled
    corpus/staged/exp2/       a staged run with a sampler; its logdir is corpus/logdir/exp2
    corpus/cache/             the user's cache: rate limit, folders, meeting
    hub/                      the Hub that has them

Paths and the endpoint are in many files. In a copy they are those of the copy.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lib.isolation import variables
from lib.marked import kill, marked
from lib.paths import HELPERS, PACKAGE
from lib.waiting import wait_for

from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import Listing
from hf_mpwriter.system.process import host_id

sys.path.insert(0, str(HELPERS))

from waits import timing

REPO = "fuzz/run"
MARK = "FUZZED"  # in the environment of all processes of a place
RUN, BESIDE, PULLED, STAGED, LOGDIR = "runs/exp1", "runs/beside", "pulled/exp1", "staged/exp2", "logdir/exp2"
TRAINING = """
import os, sys
from hf_mpwriter import HFSummaryWriter, SummaryWriter
from hf_mpwriter.base.errors import HfMpWriterError

logdir, name, hub, purge = sys.argv[1], sys.argv[2], sys.argv[3] == "hub", int(sys.argv[4])
options = {"logdir": logdir, "exit_timeout": 1, "repo_allow_patterns": None, "commit_every": 0.002}
try:
    writer = HFSummaryWriter("fuzz/run", purge_step=purge or None, **options) if hub else SummaryWriter(**options)
except HfMpWriterError as error:
    print(f"refused: {error}")
    sys.exit()
for step in range(40):
    writer.add_scalar(f"{name}/loss", 1 / (step + 1), step)
    writer.log({f"{name}/a": 1.0, f"{name}/b": 2.0}, step)
    if step % 10 == 1:
        writer.add_text(f"{name}/text", "words", step)
        writer.add_scalars(f"{name}/both", {"a": 1.0, "b": 2.0}, step)
        writer.flush()
    if step == 20:
        writer.push()
writer.status()
writer.last_step(), writer.last_step(f"{name}/loss")
writer.close()
print("logged")
"""
_RANK = """
import sys, time
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("fuzz/run", logdir=sys.argv[1], repo_allow_patterns=None, commit_every=0.005, exit_timeout=60)
for step in range(int(sys.argv[2])):
    writer.add_scalar("loss", 1 / (step + 1), step)
    writer.log({"a": 1.0, "b": 2.0, "step_time": 0.1}, step)
writer.add_text("text", "words", 1)
writer.add_scalars("both", {"a": 1.0, "b": 2.0}, 1)
if sys.argv[3] == "end":
    writer.close()
else:
    writer.push()
    print("logged", flush=True)
    while True:
        time.sleep(0.1)
        writer.add_scalar("more", 1.0, int(time.time()))
"""
_STAGED = """
import sys
sys.path.insert(0, sys.argv[3])
from staged import stage
from hf_mpwriter import HFSummaryWriter
stage(sys.argv[1], sys.argv[2])
writer = HFSummaryWriter("fuzz/run", logdir=sys.argv[1], commit_every=0.005, exit_timeout=60, system_metrics=True)
for part in range(3):
    for step in range(30):
        writer.add_scalar("loss", 1 / (step + 1), 30 * part + step)
    writer.close()
"""


def environment(place: Path, endpoint: str) -> dict[str, str]:
    """Return what all processes of a place have in their environment."""
    paths = os.environ.get("PYTHONPATH", str(PACKAGE.parent))
    return {
        **os.environ,
        **variables(place),
        "PYTHONPATH": paths,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_MPWRITER_TIMING": timing(quiet_wait=2.0, logdir_wait=5.0),
        MARK: str(place),
    }


class Making:
    """Makes the corpus by real processes."""

    def __init__(self, root: Path) -> None:
        self.place, self.hub = root / "corpus", LocalHub(root / "hub", xet=False)
        for folder in (RUN, BESIDE, PULLED, STAGED, LOGDIR):
            (self.place / folder).mkdir(parents=True)

    def make(self) -> str:
        """Make it; the endpoint that its files name."""
        self.hub.start()
        try:
            self._upload()
            self._crash()
            self._come_back()
        finally:
            kill(self._mark)
            self.hub.stop()
        for path in filter(Path.is_socket, self.place.rglob("*")):  # of the uploader that was killed; it has no copy
            path.unlink()
        return self.hub.endpoint

    @property
    def _mark(self) -> str:
        return f"{MARK}={self.place}"

    def _start(self, source: str, *arguments: object, rank: int = 0, world: int = 1) -> subprocess.Popen[bytes]:
        ranks = {"RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 else {}
        command = [sys.executable, "-c", source, *map(str, arguments)]
        env = environment(self.place, self.hub.endpoint) | ranks
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _run(self, *arguments: object, world: int = 1) -> None:
        for started in [self._start(*arguments, rank=rank, world=world) for rank in range(world)]:  # type: ignore[arg-type]
            if started.wait(300):
                raise RuntimeError(f"a program of the corpus ended with {started.returncode}")

    def _command(self, *words: object) -> None:
        self._run("from hf_mpwriter.cli.main import main; main()", *words)

    def _upload(self) -> None:
        run = self.place / RUN
        (run / "notes.txt").write_text("a note\n")
        (run / "sub").mkdir()
        (run / "sub" / "metadata.tsv").write_text("a\tb\n")
        self._run(_RANK, run, 50, "end", world=2)
        self._run(_RANK, self.place / BESIDE, 5, "end")
        self._command("ranks", run)
        self._run(_STAGED, self.place / STAGED, self.place / LOGDIR, HELPERS)
        Listing.of(
            staged := Spool(str(self.place / STAGED)), {"events.out.tfevents.1795233002.h.1.00000000": 9}, 1.0
        ).save(staged)
        wait_for(lambda: not list(marked(self._mark)), "all processes of the corpus leave")

    def _crash(self) -> None:
        """Kill ranks and uploader with data on its way."""
        run = self.place / RUN
        self.hub.kill()
        ranks = [self._start(_RANK, run, 30, "live", rank=rank, world=2) for rank in range(2)]
        host = run / SPOOL_NAME / "hosts" / host_id()
        wait_for(lambda: json.loads((host / "uploader_status.json").read_text())["failures"], "a failure")
        self.hub.start()
        os.kill(self.hub.pid or 0, signal.SIGSTOP)
        wait_for(lambda: list((host / "outbox").glob("*.json")) and (host / "in_flight.json").exists(), "a batch")
        for rank in ranks:
            rank.send_signal(signal.SIGKILL)
            rank.wait()
        kill(self._mark)
        os.kill(self.hub.pid or 0, signal.SIGCONT)

    def _come_back(self) -> None:
        self._command("pull", self.place / PULLED, "--repo-id", REPO)


def copy(source: Path, target: Path, names: dict[str, str]) -> None:
    """Copy a corpus; what its text files name is replaced. A spool stays that of its run."""
    shutil.copytree(source, target, symlinks=True)
    for path in files_of(target):
        if path.suffix == ".json" or path.parent.name == "members":
            text = path.read_text()
            for before, after in names.items():
                text = text.replace(before, after)
            path.write_text(text)
    settle(target)


def settle(place: Path) -> None:
    """Record in each run.json the inode of the spool, as in a run that was not copied."""
    for path in place.rglob("run.json"):
        record = json.loads(path.read_text())
        record["inode"] = path.parent.stat().st_ino
        path.write_text(json.dumps(record))


def files_of(place: Path) -> Iterator[Path]:
    """Yield the regular files of a corpus, in an order that does not depend on ids and times."""
    found = [path for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    return iter(sorted(found, key=lambda path: ("".join(c for c in str(path) if not c.isdigit()), str(path))))


def is_lock(path: Path) -> bool:
    """Whether a file has no content by design."""
    return path.suffix == ".lock" or path.name == "lock"
