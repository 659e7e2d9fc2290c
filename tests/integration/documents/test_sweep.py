"""The example of a sweep, as it is: its trials are on the Hub, have a row each under HPARAMS, and say little."""

from __future__ import annotations

import os
import subprocess
import sys

from programs import DEADLINE, wait_for
from repository import EXAMPLES, ROOT
from runs import check_oracle, no_uploader

TRIALS = 8


def test_the_sweep_runs_as_it_is_written(hub, tmp_path):
    """One line of each trial at its end; that the repository is public is told once."""
    ended = subprocess.run(
        [sys.executable, EXAMPLES / "sweep.py", "--repo-id", "me/sweep"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "best: lr 0.03, momentum 0.9, last loss 0.187\n"
    runs = sorted((tmp_path / "runs" / "sweep").iterdir())
    assert len(runs) == TRIALS
    ends = [line for line in ended.stderr.splitlines() if line.startswith("hf_mpwriter: done: ")]
    assert sorted(line.split("/")[-1].split(" ")[0] for line in ends) == [run.name for run in runs], ended.stderr
    assert ended.stderr.count(" is PUBLIC: ") == 1, ended.stderr
    assert "not uploading" not in ended.stderr
    for run in runs:
        wait_for(lambda run=run: no_uploader(run), "its uploader has left")
        check_oracle(run, hub, repo="me/sweep", folder=f"tensorboard/{run.name}")
    for run in runs:
        (path,) = run.glob("events.out.tfevents.*")
        data = path.read_bytes()
        assert b"_hparams_/session_start_info" in data, "HPARAMS has a row"
        assert b"last_loss" in data
