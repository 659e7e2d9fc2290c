"""What stands in the place of a file is no file: a pipe, a device, a directory. Nothing waits for it or follows it."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from programs import wait_for
from runs import LOG_AND_EXIT, finished, no_uploader, run

from hf_mpwriter.testing import processes

TRAINING = """
import sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.base.errors import HfMpWriterError
try:
    writer = HFSummaryWriter(sys.argv[2], logdir=sys.argv[1], commit_every=0.01, exit_timeout=2)
except HfMpWriterError as error:
    print("refused", flush=True)
    sys.exit()
for step in range(20):
    writer.add_scalar("loss", 1.0, step)
writer.push(wait=1)
writer.flush()
writer.close(wait=True)
print("trained")
"""


def put(kind: str, path: Path) -> None:
    """Put something else in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "endless device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path)


def complete(run_dir: Path) -> Path:
    """Add what a run that is over may lack in its spool; one in flight would mean minutes of settling."""
    (host,) = (run_dir / ".hf_mpwriter" / "hosts").iterdir()
    (host / "outbox" / "00000001.json").write_text("{}")
    (run_dir / ".hf_mpwriter" / "members" / "main.host-0.1.2-3").touch()
    return run_dir


def files_of_spool(run_dir: Path) -> list[str]:
    """Every regular file of a spool."""
    spool = run_dir / ".hf_mpwriter"
    return sorted(str(path.relative_to(spool)) for path in spool.rglob("*") if stat.S_ISREG(path.lstat().st_mode))


@pytest.fixture
def ended_run(hub, run_dir, start):
    """A run that is over, with every kind of file in its spool."""
    start(LOG_AND_EXIT, run_dir, 5).succeed()
    wait_for(lambda: finished(run_dir), "the uploader leaves")
    return complete(run_dir)


@pytest.mark.timeout(900)
def test_a_pipe_in_the_place_of_a_file_of_the_spool_stops_nothing(ended_run, tmp_path, start):
    """Of each file in turn: commands end, training ends well or is refused when it starts, and uploaders end."""
    names = files_of_spool(ended_run)
    assert len(names) >= 8, names
    places = {name: tmp_path / "attacked" / str(number) / "exp1" for number, name in enumerate(names)}
    for name, place in places.items():
        shutil.copytree(ended_run, place)
        put("pipe", place / ".hf_mpwriter" / name)
        if os.path.basename(name) in ("FORMAT", "run.json", "ledger.json", "status.json"):
            for words in (["status"], ["verify"], ["sync", "--timeout", "2"]):
                result = run(words[0], place, *words[1:])
                assert isinstance(result.exception, SystemExit | None), (name, words, result.output)
            put("pipe", place / ".hf_mpwriter" / name)
    programs = {name: start(TRAINING, place, "me/run") for name, place in places.items()}
    ends = {name: program.finish() for name, program in programs.items()}
    assert {name: end for name, end in ends.items() if end[0] or end[1] not in ("trained\n", "refused\n")} == {}
    for name, place in places.items():
        wait_for(lambda place=place: not processes.left_behind(str(place)), f"uploaders end, with {name}")


def test_what_stands_beside_the_event_files_stops_nothing_and_is_not_sent(hub, run_dir, tmp_path, start):
    """Under the names of an event file, of a rank's directory and of an attachment."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "events.out.tfevents.1.secret").write_bytes(b"a secret")
    run_dir.mkdir(parents=True)
    for number, kind in enumerate(["pipe", "link to a secret", "directory", "endless device"]):
        for name in (
            f"events.out.tfevents.179523300{number}.other.1.0",
            f"rank_0000{number + 5}",
            f"notes{number}.txt",
        ):
            path = run_dir / name
            if kind == "link to a secret":
                path.symlink_to(secret if name.startswith("rank") else secret / "events.out.tfevents.1.secret")
            else:
                path.touch()
                put(kind, path)
    program = start(LOG_AND_EXIT.replace("logdir=", "repo_allow_patterns=None, logdir="), run_dir, 5)
    program.succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    sent = [path for path in Path(hub.root).rglob("*") if path.is_file() and b"a secret" in path.read_bytes()]
    assert sent == []
    tree = hub.store.tree("model", "me/run", "main")
    (own,) = (path for path in run_dir.iterdir() if f".{program.pid}." in path.name)
    assert f"tensorboard/exp1/{own.name}" in tree
