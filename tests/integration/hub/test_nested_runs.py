"""A run below another one: it goes where it is recorded for, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from programs import DEADLINE, wait_for
from runs import acknowledged, hub_view, kill_uploaders, no_uploader, sync
from support import event_file

TOLD = "has other runs below it: folders with a .hf_mpwriter of their own are not uploaded as part of it, such as "
INNER = ("deep/a/b", "localonly", "secret", "later", "same")  # below the outer run; the first lies three folders deep
THEIRS = "events.out.tfevents.1700000000.theirs"

LOG = """
import os, sys
from hf_mpwriter import HFSummaryWriter, SummaryWriter
def log(folder, repository):
    os.makedirs(folder, exist_ok=True)
    for name in (".env", "weights.bin"):
        with open(f"{folder}/{name}", "w") as file:
            file.write(f"of {folder}")
    everything = {"repo_allow_patterns": None} if repository else {}
    writer = HFSummaryWriter(repository, logdir=folder, **everything) if repository else SummaryWriter(folder)
    with writer:
        writer.add_scalar("loss", 1.0, 1)
        writer.add_scalars("both", {"a": 1.0}, 1)
"""
LOG_ONE = f"{LOG}\nlog(*sys.argv[1:])"
ONE_PROCESS = f"""{LOG}
runs = sys.argv[1]
inner = SummaryWriter(f"{{runs}}/deep/a/b")  # still open when the outer run begins
inner.add_scalar("loss", 1.0, 1)
log(f"{{runs}}/secret", "me/private")
log(f"{{runs}}/localonly", None)
log(f"{{runs}}/same", "me/public")  # of the same uploader
os.chdir(runs)
with HFSummaryWriter("me/public", logdir=".", repo_allow_patterns=None) as writer:
    writer.add_scalar("loss", 1.0, 1)
    writer.push(wait=60)
    log("later", None)
    writer.push(wait=60)
"""


def published(hub, repository: str) -> set[str]:
    """All paths that any commit of a repository has had, without what the Hub itself puts there."""
    view = hub_view(hub, repository, folder="tensorboard")
    return {path for commit in view.commits() for path in view.tree(commit)}


def folders(paths: set[str]) -> set[str]:
    """The folders of these paths, and the names of files that are no event files."""
    return {os.path.dirname(path) if "tfevents" in path else path for path in paths}


@pytest.fixture
def runs(run_dir):
    """The outer run directory."""
    yield run_dir
    for folder in (run_dir, *(run_dir / inner for inner in INNER)):
        kill_uploaders(folder)


def test_a_run_of_the_same_process_is_not_published_with_the_outer_one(hub, runs, start):
    """Neither the run of a private repository, nor one that has none, nor a later one; with `logdir="."`, told once."""
    code, _, errors = start(ONE_PROCESS, runs).finish()
    assert (code, errors.count(TOLD)) == (0, 1), errors
    assert folders(published(hub, "me/public")) == {runs.name, "same", "same/both/a", "same/weights.bin"}
    assert folders(published(hub, "me/private")) == {"secret", "secret/both/a", "secret/weights.bin"}


def test_runs_of_other_processes_are_not_published_and_sync_leaves_them_out_too(hub, runs, start):
    """Nor by an uploader that is started later. Files with a dot in front are never sent, not even those of the run."""
    local = f"{LOG}\nfor folder in sys.argv[1:]: log(folder, None)"
    inner = start(local, *(runs / folder for folder in INNER[:2])), start(LOG_ONE, runs / "secret", "me/private")
    for one in inner:
        one.succeed()
    _, _, errors = start(LOG_ONE, runs, "me/public").finish()
    assert errors.count(TOLD) == 1, errors
    wait_for(lambda: no_uploader(runs), "the uploader leaves")
    assert sync(runs).exit_code == 0
    assert folders(published(hub, "me/public")) == {runs.name, f"{runs.name}/both/a", f"{runs.name}/weights.bin"}
    assert folders(published(hub, "me/private")) == {"secret", "secret/both/a", "secret/weights.bin"}


@pytest.mark.parametrize("outer", ["staged", "direct"])
def test_a_run_whose_spool_is_elsewhere_is_another_run_all_the_same(hub, runs, start, tmp_path, outer):
    """Its logdir has no more than the name of a spool: no mirror brings its files to the outer run, and no scan finds
    them.
    """
    staging = {"HF_MPWRITER_STAGING": str(tmp_path / "staging")}
    (tmp_path / "staging").mkdir()
    start(LOG_ONE, runs / "secret", "me/private", env=staging).succeed()
    wait_for(lambda: list((runs / "secret").glob("*tfevents*")), "it is in its logdir")
    event_file(runs / THEIRS, 1)
    start(LOG_ONE, runs, "me/public", env=staging if outer == "staged" else {}).succeed()
    done = subprocess.run(
        [sys.executable, "-m", "hf_mpwriter", "sync", str(runs)],
        env=os.environ | (staging if outer == "staged" else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    there = published(hub, "me/public")
    assert not [path for path in there if "secret" in path]
    assert folders(there) >= {runs.name}
    assert [path for path in (runs / "secret").rglob("*") if "tfevents" in path.name]


FIRST_FILES = """
import os, sys
from hf_mpwriter import HFSummaryWriter, SummaryWriter, patch
patch()
from tensorboardX import SummaryWriter as Patched
runs, seen = sys.argv[1], []
def hook(event, arguments):
    if event == "open" and "tfevents" in str(arguments[0]) and arguments[2] & os.O_CREAT:
        seen.append(os.path.exists(f"{runs}/{name}/.hf_mpwriter/FORMAT"))
sys.addaudithook(hook)
for name, make in {
    "ours": lambda: SummaryWriter(f"{runs}/ours"),
    "hub": lambda: HFSummaryWriter("me/run", logdir=f"{runs}/hub"),
    "patched": lambda: Patched(f"{runs}/patched"),
}.items():
    with make() as writer:
        writer.add_scalars("both", {"a": 1.0, "b": 2.0}, 1)
        if not os.fork():
            writer.add_scalar("loss", 1.0, 1)
            os._exit(0 if all(seen) else 1)
        assert not os.wait()[1]
print(seen)
"""


def test_each_run_has_its_spool_before_its_first_event_file(hub, runs, start):
    """By whichever writer and process; so no look of an outer run comes between the two."""
    assert start(FIRST_FILES, runs, env={"HF_HUB_OFFLINE": "1"}).succeed() == f"{[True] * 6}\n"


LIVING = f"""{LOG}
import time
writer = HFSummaryWriter("me/public", logdir=sys.argv[1], repo_allow_patterns=None)
for step in range(3):
    while not os.path.exists(f"{{sys.argv[2]}}/go{{step}}"):
        time.sleep(0.02)
    writer.add_scalar("loss", 1.0, step)
    print(writer.push(wait=60), flush=True)
writer.close()
"""


def test_what_becomes_a_run_below_a_living_one_is_left_from_then_on(hub, runs, start):
    """What was sent before stays there, which is told once; a file of then that grows is not sent any more."""
    (runs / "later").mkdir(parents=True)
    event_file(runs / "later" / THEIRS, 1)
    outer = start(LIVING, runs, runs.parent)
    (runs.parent / "go0").touch()
    assert outer.process.stdout.readline()
    before = {f"{runs.name}/later/{THEIRS}"}
    assert {path for path in published(hub, "me/public") if "later" in path} == before
    start(LOG_ONE, runs / "later", "me/private").succeed()
    event_file(runs / "later" / THEIRS, 5)
    for step in (1, 2):
        (runs.parent / f"go{step}").touch()
        assert outer.process.stdout.readline()
    code, _, errors = outer.finish()
    assert code == 0, errors
    assert errors.count(f"gets 1 event file of other writers: later/{THEIRS}") == errors.count(TOLD) == 1, errors
    assert errors.count(f"1 file of them that were uploaded before, such as later/{THEIRS}, stay at ") == 1, errors
    assert {path for path in published(hub, "me/public") if "later" in path} == before
    there = hub.store.read_blob("model", "me/public", f"tensorboard/{runs.name}/later/{THEIRS}")
    assert len(there) < (runs / "later" / THEIRS).stat().st_size


FOLLOW = """
import sys
from hf_mpwriter.cli.main import main
from hf_mpwriter.cli import folders
from hf_mpwriter.supervisor import drain
drain.ROUND, folders.LOOK_EVERY, folders.QUIET = 0.5, 0.1, 0.5
main(["sync", sys.argv[1], "--repo-id", "me/public", "--follow"])
"""


def test_sync_follow_leaves_out_a_run_that_begins_below(hub, runs, start):
    """The folder is one of another writer, whose event files are listed with their number before the first commit."""
    runs.mkdir(parents=True)
    for number in range(12):
        event_file(runs / f"{THEIRS}{number:02d}", 1)
    follower = subprocess.Popen([sys.executable, "-c", FOLLOW, str(runs)], stderr=subprocess.PIPE, text=True)
    try:
        with open(runs / f"{THEIRS}00", "ab"):  # until its writer has gone, it is followed
            wait_for(lambda: acknowledged(runs), "the first upload")
            inner = start(LOG_ONE, runs / "deep/a/b", ""), start(LOG_ONE, runs / "secret", "me/private")
            for one in inner:
                one.succeed()
            event_file(runs / f"{THEIRS}99", 1)
        _, errors = follower.communicate(timeout=DEADLINE)
    finally:
        follower.kill()
    assert f"12 event files of other writers: {THEIRS}00, " in errors
    assert " and 2 more" in errors
    assert published(hub, "me/public") == {f"{runs.name}/{THEIRS}{number:02d}" for number in (*range(12), 99)}


def test_event_files_of_other_writers_are_listed_before_they_become_public(hub, runs, start):
    """By training, which finds them below its logdir; files that a link leads to are not there at all."""
    outside = runs.parent / "outside"
    for folder in (runs / "theirs", outside):
        folder.mkdir(parents=True)
        event_file(folder / THEIRS, 1)
        (folder / "weights.bin").write_text("secret")
    (runs / "linked").symlink_to(outside)
    (runs / "linked.bin").symlink_to(outside / "weights.bin")
    _, _, errors = start(LOG_ONE, runs, "me/public").finish()
    assert errors.count(f"gets 1 event file of other writers: theirs/{THEIRS}") == 1, errors
    there = {f"{runs.name}{name}" for name in ("", "/both/a", "/weights.bin", "/theirs", "/theirs/weights.bin")}
    assert folders(published(hub, "me/public")) == there
