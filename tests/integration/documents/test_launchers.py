"""Launchers: the example of the README under a real torchrun, and other ways to start ranks."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from programs import DEADLINE, wait_for
from repository import README
from runs import check_oracle, kill_uploaders, no_uploader


@pytest.mark.torch
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_torchrun_example_of_the_readme_runs(hub, tmp_path, monkeypatch):
    """Two ranks with gloo: the data of both arrives by one uploader, rank 0 in the run directory, rank 1 below it."""
    monkeypatch.delenv("PYTHONPATH")  # with the real torch
    section = README.read_text().split("## torchrun")[1].split("\n## ")[0]
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (command,) = re.findall(r"^    (torchrun .*)$", section, re.MULTILINE)
    (tmp_path / "train.py").write_text(program)
    arguments = [sys.executable, "-m", "torch.distributed.run", "--standalone", *command.split()[1:]]
    subprocess.run(arguments, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=DEADLINE)
    run_dir = tmp_path / "runs" / "exp1"
    report = check_oracle(run_dir, hub)
    assert [(os.path.dirname(path), file.hub_events) for path, file in sorted(report.files.items())] == [
        ("", 100),
        ("rank_00001", 100),
    ]
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    log = next(run_dir.glob(".hf_mpwriter/hosts/*/uploader.log")).read_text()
    assert log.count("left the uploader lock") == log.count("took the uploader lock"), (
        "one after the other, never two at once"
    )


ONE_RANK_FAILS = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])  # without torch
from hf_mpwriter import HFSummaryWriter
place, rank = Path(sys.argv[2]), os.environ["RANK"]
def noticed(*_):
    (place / "noticed").write_text(str(time.time()))
    os._exit(0)
signal.signal(signal.SIGTERM, noticed)
with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=1000) as writer:
    writer.add_scalar("loss", 1.0, 1)
    (place / f"ready_{rank}").touch()
    while not (place / f"ready_{1 - int(rank)}").exists():
        time.sleep(0.02)
    while rank == "0":
        time.sleep(1000)
    (place / "raised").write_text(str(time.time()))
    raise ValueError("mine")
"""


@pytest.mark.torch
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_agent_of_a_rank_that_fails_notices_it_while_the_hub_is_down(tmp_path, run_dir, monkeypatch, without_torch):
    """Seconds after the exception, not after `exit_timeout`: so the other ranks restart."""
    monkeypatch.delenv("PYTHONPATH")  # with the real torch
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "train.py").write_text(ONE_RANK_FAILS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*command, "train.py", run_dir, tmp_path, without_torch],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    kill_uploaders(run_dir)
    assert ended.returncode == 1, ended.stderr
    raised, noticed = (float((tmp_path / name).read_text()) for name in ("raised", "noticed"))
    print(f"the agent has noticed after {noticed - raised:.1f} s")
    assert noticed - raised < 150
    assert "ValueError: mine" in ended.stderr
    ends = ended.stderr.count("hf-mpwriter sync") - ended.stderr.count("waiting up to")
    assert ends == 1, "the rank that fails tells what is not on the Hub"
