"""The demo, as a user runs it: with real processes, real kills and the real client."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import demos
import pytest
from demos import listen_to_ctrl_c, processes_of
from programs import DEADLINE, wait_for
from traps import Trap

from hf_mpwriter.demo.stage import STEPS
from hf_mpwriter.testing import read_journals

LOSES = 30.0  # seconds that a lost machine may take with it: CI is slow


def start_demo(directory: Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start the demo, with a directory for all that it keeps."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "hf_mpwriter", "demo", "--dir", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd or directory.parent,
        preexec_fn=listen_to_ctrl_c,  # noqa: PLW1509 - it makes one system call
    )


@pytest.fixture
def other_digits(monkeypatch, tmp_path):
    """Digits without scikit-learn."""
    demos.without_sklearn(tmp_path / "packages", monkeypatch)


@pytest.fixture
def trap(tmp_path):
    """Where the demo is started."""
    return Trap(tmp_path / "shared")


@pytest.fixture
def demo(tmp_path, trap):
    """A started demo and its directory; the demo does not outlive the test."""
    directory = tmp_path / "demo"
    process = start_demo(directory, trap.folder)
    yield process, directory
    if process.poll() is None:
        process.terminate()
        process.communicate(timeout=DEADLINE)


def lost(output: str) -> int:
    """What the verdict says of it."""
    return int(re.search(r"Lost: (\d+)\.$", output, re.MULTILINE)[1])


def journals_of(directory: Path) -> list[Path]:
    """The journals so far."""
    return list(directory.glob("journals/journal.*"))


@pytest.mark.timeout(600)
def test_the_demo_loses_nothing_but_the_last_seconds_of_a_lost_machine(demo, trap):
    """Exit code 0, a table without losses, two kills, a resume and a new uploader, and nothing is left running.

    What the machine takes with it is told: where its disk is gone, the bucket has all but the last seconds.

    No process imports a module from the folder where it was started. The same verdict fails when one record more is
    claimed than was written.
    """
    process, directory = demo
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, out + err
    assert lost(out) == 0
    counts = re.findall(r"^rank \d +(\d) +(\d+) +(\d+)$", out, re.MULTILINE)
    assert [here for _, here, there in counts if here != there] == []
    assert sum(int(lives) for lives, _, _ in counts) >= 2 * len(counts) == 8
    assert float(re.search(r"\d+ records are lost, of the last (\d+\.\d) s", out)[1]) < LOSES
    rank, pid = re.search(r"killed rank (\d) \(pid (\d+)\)", out).groups()
    uploader = re.search(r"killed the uploader \(pid (\d+)\)", out)[1]
    assert int(re.search(rf"rank {rank} resumed at step (\d+)", out)[1]) <= STEPS
    assert re.search(r"uploader (\d+) has taken the uploader lock", out)[1] != uploader
    assert int(pid) in {note.pid for note in read_journals(str(directory / "journals"))}, "it was killed at work"
    assert f"--logdir {directory}/runs/digits" in out
    assert processes_of(directory) == []
    assert trap.ran() == []
    forged = forged_verdict(directory)
    assert (forged.returncode, lost(forged.stdout)) == (1, 1)
    assert "1 returned records are not on the Hub" in forged.stderr


def forged_verdict(directory: Path) -> subprocess.CompletedProcess[str]:
    """Repeat the verdict on the same Hub, with a journal that claims one record more than was written."""
    from hf_mpwriter.demo.stage import Folder
    from hf_mpwriter.localhub import LocalHub
    from hf_mpwriter.spool.layout import Spool

    place = Folder(str(directory))
    note = next(read_journals(place.journals))
    claim = {"tag": note.tag, "step": STEPS + 1000, "path": note.path}
    (directory / "journals" / f"journal.{note.pid}.forged").write_text(json.dumps(claim) + "\n")
    endpoint = Spool(place.run_dir).destination().endpoint
    judge = "import sys; from hf_mpwriter.demo.verdict import judge; sys.exit(judge(sys.argv[1]))"
    command = [sys.executable, "-c", judge, str(directory)]
    with LocalHub(directory / "hub", port=int(endpoint.rpartition(":")[2])):
        return subprocess.run(
            command, env=place.environment(endpoint), capture_output=True, text=True, timeout=DEADLINE, check=False
        )


def test_an_interrupted_demo_leaves_no_process_behind(other_digits, demo):
    """SIGINT half-way ends the ranks, the uploader and the Hub."""
    process, directory = demo
    wait_for(lambda: len(journals_of(directory)) >= 4, "all ranks log")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert "Interrupted" in err
    assert "Traceback" not in err
    wait_for(lambda: processes_of(directory) == [], "a push that its uploader has left ends, too")


def test_a_demo_never_mixes_with_what_is_in_a_directory_already(tmp_path):
    """A directory that is not empty is refused and stays untouched."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine").write_text("x")
    process = start_demo(tmp_path / "demo")
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert "is not empty; give another directory" in err
    assert os.listdir(tmp_path / "demo") == ["mine"]
