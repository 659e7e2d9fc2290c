"""The benchmark of the uploader in small: every part works, shows figures and targets, and leaves nothing."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
from repository import BENCH

SCRIPT = BENCH / "uploader.py"
PARTS = {
    ("--takeover", "--hang", "--push"): {
        "takeover: another uploader holds the lock, p95": "s target 8",
        "hang: ratio, median of 1": "target 1.3",
        "push of 1 MiB that may grow, Xet: memory (pss)": "MiB target 300",
        "push of 1 MiB that may grow, LFS: memory (pss)": "MiB target 300",
    },
    ("--latency",): {
        "latency: a killed worker's last event is on the Hub, p95": "s target 5",
        "latency: the killed worker was the only one, p95": "s target 5",
    },
    ("--rest", "--many-files", "--children"): {
        "rest, 3 workers: CPU of the uploader in 5 min": "s target 0.6",
        "rest, 3 workers: memory of the uploader (pss)": "MiB target 25",
        "many files, 30: a snapshot, the first of an uploader": "s target 1",
        "many files, 30: CPU in 5 min, that commit included": "s target 3",
        "children, 5: claims left, one per worker directory": "",
    },
}


@pytest.mark.parametrize("parts", PARTS, ids=" ".join)
def test_every_part_of_the_benchmark_shows_its_figures_and_leaves_nothing(tmp_path, parts):
    """A row per figure, with a value, its target, and whether it is met; no process and no file is left behind."""
    (tmp_path / "bench").mkdir()
    command = [sys.executable, str(SCRIPT), "--tiny", "--seed", "7", "--dir", str(tmp_path / "bench"), *parts]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = result.stdout.splitlines()
    for what, target in PARTS[parts].items():
        (row,) = (row.removeprefix(what).split() for row in rows if row.startswith(what))
        assert float(row[0]) >= 0
        assert " ".join(row[1:]).startswith(target)
        assert not target or row[-1] in ("met", "MISSED")
    assert not list((tmp_path / "bench").iterdir())
    commands = (process.info["cmdline"] or () for process in psutil.process_iter(["cmdline"]))
    assert not [command for command in commands if str(tmp_path) in " ".join(command)]
