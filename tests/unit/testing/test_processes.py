"""The finders of processes: each finds a living process, so that "none is left" cannot hold for want of a match."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
import runs
from programs import wait_for
from runs import LOG_FOR_EVER, silent_hub

from hf_mpwriter.demo.stage import Folder, Stage
from hf_mpwriter.system import launch
from hf_mpwriter.testing import processes


def found(run_dir: str) -> dict[str, list[int]]:
    """What each finder finds."""
    return {
        "uploader": [processes.uploader(run_dir)],
        "push": [processes.push(run_dir)],
        "workers": processes.workers(run_dir),
        "uploaders left behind": processes.left_behind(run_dir, "uploader"),
        "pushes left behind": processes.left_behind(run_dir, "push"),
        "left behind": sorted(processes.left_behind(run_dir, "uploader", "push")),
        "uploaders of the tests": sorted(runs.uploaders(run_dir)),
    }


def test_each_finder_finds_a_living_process_of_its_kind(tmp_path, start, monkeypatch):
    """A worker, its uploader, and a push that waits for a silent Hub; once they are dead, none."""
    place = Folder(str(tmp_path / "demo"))
    run_dir = place.run_dir
    with silent_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        worker = start(LOG_FOR_EVER, run_dir, place.journals)
        push = wait_for(lambda: processes.push(run_dir), "a push")
        uploader = psutil.Process(push).ppid()
        try:
            assert found(run_dir) == {
                "uploader": [uploader],
                "push": [push],
                "workers": [worker.pid],
                "uploaders left behind": [uploader],
                "pushes left behind": [push],
                "left behind": sorted([uploader, push]),
                "uploaders of the tests": [uploader],
            }
            assert Stage(place).uploader() == uploader, "the demo finds it too"
            assert processes.left_behind(f"{run_dir}2") == [], "the processes of another run"
        finally:
            worker.process.kill()
            worker.process.wait()
            os.kill(uploader, signal.SIGKILL)
        wait_for(lambda: not processes.left_behind(run_dir), "the push dies with its uploader")
    nothing = {"uploader": [0], "push": [0]}
    assert found(run_dir) == {name: nothing.get(name, []) for name in found(run_dir)}


@pytest.mark.parametrize("kind", processes.KINDS)
def test_a_mark_is_in_the_boot_string_of_its_kind_only(kind):
    """A word that is in both, or in neither, would make the finders wrong."""
    for other, boot in launch.BOOTS.items():
        assert launch.is_command_of(kind, ["python", "-c", boot, "/run"], "/run") == (kind == other)
