"""Secrets in whole runs: every trace on disk is searched."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from programs import wait_for
from runs import check_oracle, living_uploader, no_uploader, status_of
from tokens import ODD, SHAPED

from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.system import launch

# whole runs

TRAITOR = """
import os
raise {error}("cannot work with " + os.environ.get("HF_TOKEN", "") + " Bearer " + os.environ.get("HF_TOKEN", ""))
"""


def traces(*tops: Path) -> dict[str, bytes]:
    """The content of every file below these directories."""
    found = {}
    for top in tops:
        for path in top.rglob("*"):
            if path.is_file():
                found[str(path)] = path.read_bytes()
    return found


def command_lines(run_dir) -> set[str]:
    """The command lines of all processes that work for a run directory."""
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            line = Path("/proc", pid, "cmdline").read_text(errors="replace")
        except OSError:
            continue
        if str(run_dir) in line:
            found.add(line)
    return found


UNTIL_REFUSED = """
import sys, time
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], token=None, exit_timeout=0)
writer.add_scalar("loss", 1.0, 1)
end = time.monotonic() + 150
while not writer.status().error and time.monotonic() < end:
    writer.push(wait=0.2)
print(writer.status())
writer.close()
"""
UNTIL_THERE = UNTIL_REFUSED.replace("while not writer.status().error and", "while not writer.push(wait=1) and")


def test_a_run_leaves_its_token_nowhere(tmp_path, run_dir, start, monkeypatch):
    """A wrong token in a file is refused, the right one is an argument: neither is on disk or on a command line."""
    home, wrong, right = tmp_path / "home", "wrong-" + ODD, SHAPED
    (home / "hf").mkdir(parents=True)
    (home / "hf" / "token").write_text(wrong)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    seen: set[str] = set()

    def over(process: subprocess.Popen) -> bool:
        seen.update(command_lines(run_dir))
        return process.poll() is not None

    with LocalHub(tmp_path / "hub", token=right) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with_token = UNTIL_THERE.replace("token=None", "token=__import__('os').environ['MINE']")
        for source in (UNTIL_REFUSED, with_token):
            worker = start(source, run_dir, env={"MINE": right})
            wait_for(lambda worker=worker: over(worker.process), "the worker ends")
            code, out, err = worker.finish()
            assert code == 0, err
            seen |= {out, err}
            if source is UNTIL_REFUSED:
                seen.add(status_of(run_dir))
        check_oracle(run_dir, hub)
        wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    (home / "hf" / "token").unlink()
    everything = "".join(seen)
    assert "401" in everything, "the wrong token was refused"
    assert launch.KINDS["uploader"] in everything, "the search has seen an uploader"
    assert "hf_mpwriter.push.process" in everything, "and a push"
    for token in (wrong, right):
        assert token not in everything
        assert [path for path, data in traces(run_dir, home).items() if token.encode() in data] == []


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError"])
def test_a_push_that_dies_with_the_token_in_its_last_message_does_not_leak_it(
    tmp_path, run_dir, start, error, monkeypatch
):
    """A library puts the token into an exception: into a verdict, and into an uncaught traceback in the log."""
    library = tmp_path / "library" / "huggingface_hub"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text(TRAITOR.format(error=error))
    monkeypatch.setenv("PYTHONPATH", f"{library.parent}:{os.environ['PYTHONPATH']}")
    env = {"HF_TOKEN": ODD, "HF_ENDPOINT": "http://127.0.0.1:9"}
    code, out, err = start(UNTIL_REFUSED, run_dir, env=env).finish()
    assert code == 0, err
    found = traces(run_dir)
    log = next(data.decode() for path, data in found.items() if path.endswith("uploader.log"))
    assert "cannot work with <token> Bearer <token>" in log
    assert [path for path, data in found.items() if ODD.encode() in data] == []
    assert ODD not in out + err + status_of(run_dir)
    os.kill(living_uploader(run_dir), signal.SIGTERM)
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
