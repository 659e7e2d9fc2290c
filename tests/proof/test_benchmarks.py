"""The benchmarks of uploads, uploaders and sweeps in small: every part shows its figures, and leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from repository import BENCH

UPLOAD = ("--commits", "3", "--unit", "64000", "--rounds", "1")
UPLOADS = {
    "Xet": ("--ways", "Xet", "--ranks"),
    "shared": ("--ways", "LFS", "--libraries", "ours", "--ranks", "2"),
}
UPLOADER = {
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
SWEEP = {
    ("--serial", "--block"): {
        "an end, median of 3": "s",
        "an end, longest": "s target 10",
        "all on the Hub after the last end": "s target 600",
        "uploaders at most at once": "",
        "memory of all uploaders at most (pss)": "MiB target 30",
    },
    ("--pool",): {"an end, median of 4": "s", "the program": "s", "commits that the Hub got": ""},
    ("--long", "--finished"): {
        "commits per interval of 3 s, of 3 runs": "target 1",
        "oldest record not on the Hub, worst run": "inter. target 1.1",
        "8 living runs alone: uploaders": "",
        "beside 20 finished ones: memory of the uploaders (pss)": "MiB",
    },
    ("--faults", "--only", "refused"): {"ours, refused: oldest record of the 2 others, worst run": "s"},
    ("--names",): {"folders shared by runs that differ": "target 0", "folders that a pull has changed": "target 0"},
}


def lines(directory: Path, script: str, *options: str) -> list[str]:
    """What a benchmark prints, of which no file and no process is left."""
    place = directory / "bench"
    place.mkdir()
    command = [sys.executable, str(BENCH / script), "--dir", str(place), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not list(place.iterdir())
    commands = (process.info["cmdline"] or () for process in psutil.process_iter(["cmdline"]))
    assert not [command for command in commands if str(place) in " ".join(command)]
    return result.stdout.splitlines()


@pytest.mark.parametrize("part", UPLOADS)
def test_every_row_of_an_upload_shows_what_was_counted(tmp_path, part):
    """A row ends only if the Hub has what was logged; then there are its figures."""
    head, *printed = (row.split("  ") for row in lines(tmp_path, "upload.py", *UPLOAD, *UPLOADS[part]))
    names, rows = [name.strip() for name in head if name.strip()][2:], {}
    for row in printed:
        fields = " ".join(row).split()
        rows[" ".join(fields[:3])] = dict(zip(names, map(float, fields[3:]), strict=True))
    assert len(rows) == 2
    for row in rows.values():
        assert row["commits"] >= 1
        assert row["requests"] > row["commits"]
        assert row["logged MB"] >= 0.064
        assert row["sent/log"] == pytest.approx(row["sent MB"] / row["logged MB"], rel=0.2)
        assert min(row["cpu s"], row["start s"], row["log s"], row["upload s"], row["read/log"]) > 0
    if part == "Xet":
        assert rows["ours Xet 1"]["sent/log"] < rows["HFSummaryWriter Xet 1"]["sent/log"]


@pytest.mark.parametrize("parts", UPLOADER, ids=" ".join)
def test_every_part_of_the_uploader_shows_its_figures(tmp_path, parts):
    """A row per figure, with a value, its target, and whether it is met."""
    rows = lines(tmp_path, "uploader.py", "--tiny", "--seed", "7", *parts)
    for what, target in UPLOADER[parts].items():
        (row,) = (row.removeprefix(what).split() for row in rows if row.startswith(what))
        assert float(row[0]) >= 0
        assert " ".join(row[1:]).startswith(target)
        assert not target or row[-1] in ("met", "MISSED")


@pytest.mark.parametrize("parts", SWEEP, ids=" ".join)
def test_every_part_of_a_sweep_shows_its_figures(tmp_path, parts):
    """A row per figure, with a value, and whether its target is met."""
    rows = lines(tmp_path, "sweep.py", "--quick", *parts)
    for what, target in SWEEP[parts].items():
        found = [row.removeprefix(what).split() for row in rows if row.startswith(what)]
        assert found, rows
        for row in found:
            assert float(row[0]) >= 0
            assert " ".join(row[1:]).startswith(target)
            assert "target" not in target or row[-1] in ("met", "MISSED")
