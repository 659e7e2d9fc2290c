"""Run directory and spool are held: a second user who may rename in them, and the calls that a run makes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from forks import in_child
from programs import wait_for
from runs import LOG_AND_EXIT, no_uploader
from shared_spools import GROUP, STRANGER, root_only

from hf_mpwriter.base import state
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.spool.ownership import FORMAT, RunRecord
from hf_mpwriter.spool.workers.member_lines import COUNTERS_LENGTH
from hf_mpwriter.system.process import Process

SECRET = b"a secret of the victim"


def end_uploader(run: Path) -> bool:
    """Ask an uploader that goes on trying to leave."""
    from runs import uploaders

    for pid in uploaders(run):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    return False


TRACED = 800  # seconds for what strace slows down many times
HARMLESS = ("stat", "newfstatat", "lstat", "statx", "readlink", "access", "faccessat", "faccessat2", "execve")
CALL = re.compile(r"^\S*\s*(?P<call>\w+)\((?P<arguments>.*)")


@pytest.mark.timeout(900)
def test_nothing_of_ours_is_opened_by_its_absolute_path(hub, run_dir, tmp_path):
    """By no process of a run: the run directory is opened and made by its path, and everything below it beneath it."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-q", "-e", "trace=%file", "-s", "512", "-o", str(trace), sys.executable, "-c"]
    subprocess.run([*command, LOG_AND_EXIT, str(run_dir), "20"], check=True, timeout=TRACED, capture_output=True)
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    seen, wrong = 0, []
    for line in trace.read_text(errors="replace").splitlines():
        match = CALL.match(line)
        if match is None:
            continue
        seen += ".hf_mpwriter" in line or "tfevents" in line
        named = re.findall(r'"((?:[^"\\]|\\.)*)"', match["arguments"])
        below = [path for path in named if path.startswith(f"{run_dir}/") and "/cache/" not in path]
        if below and match["call"] not in HARMLESS:
            wrong.append(line)
    assert seen > 20, "the trace shows what is reached beneath descriptors"
    assert wrong == []


CONSTRUCT = """
import os, sys
from hf_mpwriter import SummaryWriter
SummaryWriter(sys.argv[1] + "/first").close()
os.path.exists("/begins")
writer = SummaryWriter(sys.argv[1] + "/run")
os.path.exists("/ends")
"""


@pytest.mark.timeout(900)
def test_a_constructor_makes_few_calls(tmp_path):
    """Each use of a held directory could compare it: a constructor compares once a step."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    command = ["strace", "-q", "-e", "trace=%file,%desc,%creds", "-o", str(trace), sys.executable, "-c"]
    subprocess.run([*command, CONSTRUCT, str(tmp_path)], check=True, timeout=TRACED)
    _, _, constructor = trace.read_text(errors="replace").partition('"/begins"')
    calls = Counter(re.findall(r"^\w+", constructor.partition('"/ends"')[0], re.MULTILINE))
    stats = sum(count for call, count in calls.items() if "stat" in call)
    assert 0 < calls["openat"] <= 15, calls
    assert 0 < stats <= 66, calls  # three of them for what a mount that is gone has left in staging directories
    assert calls["fsync"] == 3, calls


LOG_TWICE = """
import os, sys
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=30) as writer:
    writer.add_scalar("loss", 1.0, int(sys.argv[2]))
"""


@root_only
@pytest.mark.root
def test_a_directory_of_the_user_that_the_group_may_write_is_no_spool(hub, open_place, start):
    """2775: a stranger renames one into the place of the spool and fills it; it decides nothing about what is sent."""
    run = open_place / "exp1"
    run.mkdir()
    os.chown(run, 0, GROUP)
    run.chmod(0o2775)
    (run / "checkpoints").mkdir()
    (run / "checkpoints").chmod(0o2775)  # as umask 002 makes it
    (run / "private.txt").write_bytes(SECRET)
    (run / "private.txt").chmod(0o600)
    env = {"HF_TOKEN": "hf_secret", "TMPDIR": str(open_place)}
    start(LOG_TWICE, run, 1, env=env).succeed()
    wait_for(lambda: no_uploader(run), "the uploader leaves")
    settings = {**json.loads(state.dump(Settings())), "allow_patterns": None}
    process = dataclasses.asdict(Process.current())

    def swap() -> None:
        os.setgroups([GROUP])
        os.setgid(GROUP)
        os.setuid(STRANGER)
        os.umask(0o002)
        os.rename(run / ".hf_mpwriter", run / "away")
        os.rename(run / "checkpoints", run / ".hf_mpwriter")
        spool = run / ".hf_mpwriter"
        for folder in ("claims", "members", "hosts"):
            (spool / folder).mkdir()
            (spool / folder).chmod(0o2777)
        (spool / "FORMAT").write_text(f"{FORMAT}\n")
        (spool / "run.json").write_bytes(
            state.dump(RunRecord(Destination(hub.endpoint, "me/run", path_in_repo="tensorboard/exp1")))
        )
        line = {"worker": "main", "process": process, "started_at": 9e9, "settings": settings, "agent": None}
        line["launcher"] = None
        (spool / "members" / "main.host-0.1.2-3").write_text(
            json.dumps(line)
            + "\n"
            + json.dumps({"requests": 0, "dropped": 0, "in_memory": 0}).ljust(COUNTERS_LENGTH - 1)
            + "\n"
        )

    assert in_child(swap) == 0
    code, _, err = start(LOG_TWICE, run, 2, env=env).finish()
    assert code == 0 or "is not used" in err, err
    wait_for(lambda: no_uploader(run) or end_uploader(run), "the uploader leaves")
    for directory, _, names in os.walk(hub.root):
        for path in (Path(directory, name) for name in names):
            assert SECRET not in path.read_bytes(), "what the user did not choose was sent"
    assert "is not used" in err
