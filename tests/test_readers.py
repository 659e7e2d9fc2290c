"""TensorBoard's readers on what we write: the default one (data server) and the Python one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import wait_for

WRITE_WHEN_TOLD = """
import sys
from hf_mpwriter import SummaryWriter
writer = SummaryWriter(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for step in range(500):
    writer.add_scalar("loss", step, step)
"""


@contextmanager
def tensorboard(logdir, *options) -> Iterator:
    """TensorBoard on a free port; yields a function that asks it for a path and returns the JSON."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--reload_interval", "1", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(path: str, **query: str):
        url = f"http://127.0.0.1:{port}/data/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            return None

    try:
        yield ask
    finally:
        server.terminate()
        server.wait()


def test_eight_processes_in_the_same_second_are_eight_whole_runs(tmp_path):
    """No rank anywhere, one logdir that does not exist yet: 8 files, 8 runs, all points in the default reader."""
    logdir = tmp_path / "runs" / "new"
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE_WHEN_TOLD, str(logdir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(8)
    ]
    for program in programs:
        assert program.stdout.readline() == b"ready\n"
    for program in programs:
        program.stdin.write(b"go\n")
        program.stdin.flush()
    for program in programs:
        program.communicate(timeout=60)
        assert program.returncode == 0
    assert len(list(logdir.rglob("*tfevents*"))) == 8
    with tensorboard(logdir) as ask:
        wait_for(lambda: len(ask("runs") or []) == 8, "eight runs")
        for run in ask("runs"):
            found = wait_for(lambda run=run: ask("plugin/scalars/scalars", run=run, tag="loss"), f"points of {run}")
            assert [point[1] for point in found] == list(range(500))


@pytest.mark.parametrize("reader", ["fast", "slow"])
def test_a_resumed_run_shows_each_step_once(tmp_path, start, reader):
    """purge_step in the second attempt: both readers show the steps of the first one up to it, then the new ones."""
    source = """
import sys
from hf_mpwriter import SummaryWriter
first, last, purge = map(int, sys.argv[2:])
with SummaryWriter(sys.argv[1], purge_step=purge if purge else None) as writer:
    for step in range(first, last):
        writer.add_scalar("loss", last, step)
"""
    start(source, tmp_path / "run", 0, 80, 0).succeed()
    start(source, tmp_path / "run", 50, 100, 50).succeed()
    with tensorboard(tmp_path / "run", "--load_fast", "true" if reader == "fast" else "false") as ask:

        def whole():
            points = ask("plugin/scalars/scalars", run=".", tag="loss") or []
            return points if len(points) >= 100 and points[-1][1] == 99 else None

        points = wait_for(whole, "the points")
    assert [point[1] for point in points] == list(range(100))
    assert [point[2] for point in points] == [80.0] * 50 + [100.0] * 50
