"""Modules in the current folder, which may be a shared one: no process of ours runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hub_clients import ask
from programs import DEADLINE, wait_for
from repository import ROOT
from runs import LOG_AND_EXIT, check_oracle, finished
from traps import Trap

from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.store import WritableStore

OURS = (sys.executable, "-P", "-m", "hf_mpwriter")


@pytest.fixture
def trap(open_place) -> Trap:
    """A shared folder of modules."""
    return Trap(open_place / "shared")


def run_in(folder: Path, *words: object, path: str | None = None) -> str:
    """Run a program in a folder; its output."""
    env = os.environ | ({} if path is None else {"PYTHONPATH": path})
    done = subprocess.run(
        [*map(str, words)], cwd=folder, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_trap_is_one(trap):
    """What a Python imports that has the current folder on its path is noted."""
    run_in(trap.folder, sys.executable, "-c", "import argparse", path="")
    assert [name.partition(".")[0] for name in trap.ran()] == ["argparse"]


def test_a_run_and_the_commands_on_it_import_nothing_from_the_current_folder(hub, run_dir, trap):
    """Training, its uploader and the pushes; `sync`, `doctor`, `run` with its run of all ranks."""
    run_in(trap.folder, sys.executable, "-P", "-c", LOG_AND_EXIT, run_dir, 5)
    wait_for(lambda: finished(run_dir) or trap.ran(), "all is sent")
    assert trap.ran() == []
    check_oracle(run_dir, hub)
    for words in (["sync", run_dir], ["doctor", run_dir], ["run", "--ranks", "--logdir", run_dir, "--", "true"]):
        run_in(trap.folder, *OURS, *words)
    assert trap.ran() == []


MOVED = "import os, sys; os.chdir(sys.argv.pop(1))"


def test_an_empty_place_in_pythonpath_is_not_the_current_folder_of_an_uploader(hub, run_dir, trap, tmp_path):
    """`PYTHONPATH=:x`, with which training begins in a folder of its own, before it changes to another one."""
    path = f":x:{os.environ['PYTHONPATH']}"
    run_in(tmp_path, sys.executable, "-P", "-c", MOVED + LOG_AND_EXIT, trap.folder, run_dir, 5, path=path)
    wait_for(lambda: finished(run_dir) or trap.ran(), "all is sent")
    assert trap.ran() == []
    check_oracle(run_dir, hub)


HUB = """
import os, sys
from hf_mpwriter.localhub import LocalHub
trap, root, *prepared = sys.argv[1:]
os.chdir(trap)
for folder in prepared:
    for name in os.listdir(folder):
        os.rename(f"{folder}/{name}", name)
sys.path += ["", "lib", None]
with LocalHub(root):
    pass
"""
GONE = """
import os, shutil, sys
from hf_mpwriter.localhub import LocalHub
shutil.rmtree(os.getcwd())
LocalHub(sys.argv[1]).start().stop()
"""


def test_a_hub_imports_nothing_from_the_folder_where_it_is_made(trap, tmp_path):
    """Also with `PYTHONPATH=:x`, from another folder."""
    run_in(trap.folder, sys.executable, "-P", "-c", HUB, trap.folder, tmp_path / "one")
    run_in(tmp_path, sys.executable, "-P", "-c", HUB, trap.folder, tmp_path / "two", path=":x")
    assert trap.ran() == []


def test_a_hub_starts_where_the_current_folder_is_gone(tmp_path):
    """Nothing has to be left out."""
    (tmp_path / "here").mkdir()
    run_in(tmp_path / "here", sys.executable, "-P", "-c", GONE, tmp_path / "hub")


def test_a_folder_that_was_the_parents_by_pythonpath_is_not_a_childs(open_place, tmp_path):
    """`PYTHONPATH=:x` in the shared folder itself. Nothing makes the parent safe there; its children are."""
    shared, later = open_place / "shared", Trap(open_place / "later", "argparse", "asyncio")
    shared.mkdir()
    run_in(shared, sys.executable, "-P", "-c", HUB, shared, tmp_path / "hub", later.folder, path=":x")
    assert (shared / "x" / "asyncio.py").exists()
    assert later.ran() == []


def test_the_command_hub_and_its_tensorboard_import_nothing_from_the_current_folder(trap, tmp_path):
    """The server, and the board that the first visit of a repository starts."""
    root = tmp_path / "hub"
    root.mkdir(mode=0o700)
    store = WritableStore(root)
    store.prepare()
    store.create_repo("model", "me/run", private=False, author="me", files={"events.out.tfevents.1": b""})
    command = [*OURS, "hub", "--root", str(root), "--port", "0"]
    with subprocess.Popen(command, cwd=trap.folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            hub = LocalHub(root, port=int(process.stdout.readline().split(",")[0].rpartition(":")[2]))
            assert ask(hub, "GET", "/me/run/tensorboard/board/data/environment")[0] == 200
        finally:
            process.terminate()
    assert trap.ran() == []


NOTES = """
import os
with open(os.environ["NOTES"], "a") as file:
    file.write(__name__ + " ")
"""
WITH_HUB = """
from hf_mpwriter.localhub import LocalHub
LocalHub(sys.argv[3]).start().stop()
"""


@pytest.mark.parametrize("archive", [False, True])
def test_children_have_the_package_of_their_parent(hub, run_dir, tmp_path, archive, without_torch, monkeypatch):
    """A clone that is not installed, in which a program is started, or an archive: no other one that is installed."""
    clone, notes = tmp_path / "clone", tmp_path / "notes"
    package = clone / "hf_mpwriter"
    shutil.copytree(ROOT / "hf_mpwriter", package, ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("uploader/usher.py", "push/process.py", "localhub/server.py", "localhub/serving.py"):
        with (package / module).open("a") as file:
            file.write(NOTES)
    if archive:
        with zipfile.PyZipFile(clone / "app.zip", "w") as file:
            file.writepy(str(package))
        shutil.rmtree(package)
    monkeypatch.setenv("NOTES", str(notes))
    first = "import sys; sys.path[0] = 'app.zip'" if archive else ""
    run_in(
        clone, sys.executable, "-c", first + LOG_AND_EXIT + WITH_HUB, run_dir, 5, tmp_path / "own", path=without_torch
    )
    wait_for(lambda: finished(run_dir), "all is sent")
    check_oracle(run_dir, hub)
    parts = ("localhub.server", "localhub.serving", "push.process", "uploader.usher")
    assert set(notes.read_text().split()) == {f"hf_mpwriter.{part}" for part in parts}
