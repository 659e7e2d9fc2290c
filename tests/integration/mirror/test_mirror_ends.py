"""What is told of a logdir that does not take files, what brings them there, and what `status` and `verify` say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner
from hanging import hanging, why_not
from programs import DEADLINE, wait_for
from runs import hub_view
from staged import copy_pid, digests, event_files, is_there, lengths, mirror_pid, stage, steps
from waits import timing

from hf_mpwriter import testing
from hf_mpwriter.cli.main import main
from hf_mpwriter.delivery.sinks import LogdirSink
from hf_mpwriter.spool.staging import COPY_LOCK
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import host_id

LOG = """
import sys
from hf_mpwriter import SummaryWriter
with SummaryWriter(sys.argv[1], exit_timeout=float(sys.argv[2])) as writer:
    for step in range(50):
        writer.add_scalar("loss", step / 2, step)
    print(writer.push(0.5) if len(sys.argv) > 3 else writer.flush())
"""
LOG_TO_HUB = """
import sys
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=float(sys.argv[2])) as writer:
    for step in range(50):
        writer.add_scalar("loss", step / 2, step)
"""


def command(*arguments: object) -> tuple[int, str]:
    """Run a command of ours; its exit code and all that it prints."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_an_end_tells_what_is_not_in_the_logdir_and_sync_brings_it(tmp_path, start):
    """A logdir that cannot be made, mended later; a file that was removed there; one that others have changed."""
    run_dir, above = tmp_path / "here" / "exp1", tmp_path / "there"
    logdir = above / "exp1"
    above.write_text("no directory")
    spool = stage(run_dir, logdir)
    code, _, err = start(LOG, run_dir, 100).finish()
    told = err.splitlines()[-1]
    assert code == 0
    assert f"of {logdir} are not in the logdir yet: Not a directory. What is on disk ({run_dir}) stays there" in told
    assert told.endswith(f"hf-mpwriter sync {logdir}")
    assert "Hub" not in err
    code, out = command("sync", run_dir, "--timeout", "100")
    assert (code, "Not a directory" in out) == (1, True)
    out = command("status", run_dir)[1]
    assert f"  in logdir    0 B in {logdir}; " in out, out
    assert re.search(r"(?m)^  error +Not a directory", out), out
    assert f"next: see why the logdir is refused in {logdir}; then: hf-mpwriter sync {run_dir}" in out, out
    # mended
    above.unlink()
    code, out = command("sync", run_dir)
    assert (code, f"are in {logdir}" in out) == (0, True), out
    assert digests(logdir) == digests(run_dir)
    (name,) = event_files(logdir)
    status = json.loads(command("status", run_dir, "--json")[1])
    assert [(file["path"], file["in_logdir"]) for file in status["files"]] == list(lengths(run_dir).items())
    assert (status["mirror"]["to"], status["mirror"]["missing"]) == (str(logdir), 0)
    wait_for(
        lambda: json.loads(command("status", run_dir, "--json")[1])["mirror"]["error"] is None,
        "the mirror says so too, once its copy has ended",
    )
    assert command("verify", run_dir)[0] == 0
    # removed there
    (logdir / name).unlink()
    code, out = command("verify", run_dir)
    assert (code, f"{name}: not in the logdir any more" in out) == (1, True), out
    assert command("verify", run_dir, "--running")[0] == 1, "no training removes it"
    assert command("sync", run_dir)[0] == 0
    assert digests(logdir) == digests(run_dir)
    # changed there
    (logdir / name).write_bytes((run_dir / name).read_bytes()[::-1] + b"more")
    theirs = digests(logdir)
    assert command("verify", run_dir)[0] == 1
    code, out = command("sync", run_dir)
    assert code == 1
    assert "does not begin with the one here" in out
    assert "not brought to the logdir" in command("status", run_dir)[1]
    assert digests(logdir) == theirs, "what others have put there is left alone"
    wait_for(lambda: not mirror_pid(spool), "the mirror leaves: what is refused is nothing to wait for")


def test_what_goes_to_hub_and_logdir_is_waited_for_in_both(hub, tmp_path, start, monkeypatch):
    """The end of a block waits for both, silently; if one of them refuses, the message says what is where."""
    run_dir, logdir = tmp_path / "here" / "exp1", tmp_path / "there" / "exp1"
    spool = stage(run_dir, logdir)
    code, _, err = start(LOG_TO_HUB, run_dir, 60).finish()
    assert code == 0
    assert " yet" not in err, err
    assert is_there(spool)
    assert testing.check(str(run_dir), hub_view(hub)).problems == []
    status = json.loads(command("status", run_dir, "--json")[1])
    assert all(file["bytes"] == file["on_hub"] == file["in_logdir"] for file in status["files"])
    assert command("verify", run_dir)[0] == 0
    # without a Hub
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    other, far = tmp_path / "here" / "exp2", tmp_path / "there" / "exp2"
    stage(other, far)
    err = start(LOG_TO_HUB, other, 20).finish()[2]
    told = err.splitlines()[-1]
    assert f"of {far} are not on the Hub yet" in told
    assert "All of it is in the logdir." in told
    assert told.index(str(far)) < told.index(f"What is on disk ({other}) stays there")
    assert digests(far) == digests(other)
    # without both
    other, far = tmp_path / "here" / "exp3", tmp_path / "there" / "exp1" / next(iter(lengths(run_dir))) / "exp3"
    stage(other, far)
    told = start(LOG_TO_HUB, other, 8).finish()[2].splitlines()[-1]
    assert "not on the Hub yet" in told
    assert "are not in the logdir yet" in told
    assert told.count("hf-mpwriter sync") <= 1


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_logdir_that_hangs_holds_up_nothing_but_the_copy(tmp_path, start):
    """Training and its end go on; the copy is ended by its timer, and tried again; then all arrives."""
    run_dir, logdir = tmp_path / "here" / "exp1", tmp_path / "there"
    spool = stage(run_dir, logdir / "exp1")
    soon = {"HF_MPWRITER_TIMING": timing(copy_limit=8.0)}  # seconds, the first; each further copy has twice as long
    with hanging(logdir):
        err = start(LOG, run_dir, 4, env=soon).finish()[2]
        assert f"of {logdir / 'exp1'} are not in the logdir yet" in err
        wait_for(lambda: LogdirSink(spool).status().failures, "the copy is given up")
        assert "hung" in LogdirSink(spool).status().reason
    wait_for(lambda: is_there(spool) or command("sync", run_dir)[0] == 0, "it is there")
    assert digests(logdir / "exp1") == digests(run_dir)


def test_beside_a_copy_that_cannot_be_killed_no_other_one_starts(tmp_path, start):
    """The lock of a copy tells that it lives, whatever has become of its mirror; status and end say so."""
    run_dir, logdir = tmp_path / "here" / "exp1", tmp_path / "there" / "exp1"
    spool = stage(run_dir, logdir)
    os.makedirs(spool.host(host_id()).root)
    lock = locks.try_exclusive(spool.host(host_id()).root / COPY_LOCK)
    code, out, err = start(LOG, run_dir, 20, "push").finish()
    assert (code, out) == (0, "False\n"), "push() is honest"
    assert "hangs in it, and cannot be killed" in err
    assert not copy_pid(spool)
    assert not event_files(logdir)
    assert "stuck, process" in command("status", run_dir)[1]
    locks.release(lock)
    assert command("sync", run_dir)[0] == 0
    assert digests(logdir) == digests(run_dir)


PUSH = """
import os, sys
from hf_mpwriter import SummaryWriter
writer = SummaryWriter(sys.argv[1])
for step in range(20):
    writer.add_scalar("loss", step / 2, step)
print(writer.push(90), flush=True)
for step in range(20, 40):
    writer.add_scalar("loss", step / 2, step)
print(writer.push(90), flush=True)
os.kill(os.getpid(), 9)
"""

KILLED = """
import os, sys
from hf_mpwriter import SummaryWriter
writer = SummaryWriter(sys.argv[1])
for step in range(40, 60):
    writer.add_scalar("loss", step / 2, step)
os.kill(os.getpid(), 9)
"""


def test_what_a_push_says_is_there_is_in_the_logdir(tmp_path, start, monkeypatch):
    """It seals what is open, and is True when the mirror has brought it; a supervisor brings what was left."""
    logdir = tmp_path / "there" / "exp1"
    monkeypatch.setenv("HF_MPWRITER_STAGING", str(tmp_path / "here"))
    code, out, err = start(PUSH, logdir).finish()
    assert (code, out) == (-9, "True\nTrue\n"), err
    assert sorted(steps(logdir, "loss")) == list(range(40))
    assert command("verify", logdir)[0] == 0
    # below a supervisor, whose program is killed before it can close
    run = [
        sys.executable,
        "-m",
        "hf_mpwriter",
        "run",
        "--grace",
        "150",
        "--",
        sys.executable,
        "-c",
        KILLED,
        str(logdir),
    ]
    supervised = subprocess.run(run, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert supervised.returncode == 128 + 9
    assert f"are in the logdir: {logdir}" in supervised.stderr, supervised.stderr
    assert sorted(steps(logdir, "loss")) == list(range(60))
