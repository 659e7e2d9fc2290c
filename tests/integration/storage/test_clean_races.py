"""`hf-mpwriter clean` beside a start in the same staged run: each process is stopped at every point that it passes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from programs import Program, wait_for
from runs import run
from staged import machine, steps

from hf_mpwriter.spool import storage
from hf_mpwriter.testing import processes

STOPS = """
import os, signal, sys
from hf_mpwriter.system import failpoints
def reach(name):
    if name == sys.argv[1]:
        sys.argv[1] = ""
        os.kill(os.getpid(), signal.SIGSTOP)
failpoints.reach = reach
"""
START = """
from hf_mpwriter import SummaryWriter
with SummaryWriter(sys.argv[2]) as writer:
    failpoints.reach("constructed")
    writer.add_scalar("loss", 1.0, int(sys.argv[3]))
    failpoints.reach("logged")
"""
CLEAN = """
from hf_mpwriter.cli.main import main
main(["clean", "--older-than", "0"])
"""


@pytest.fixture
def logdir(tmp_path, monkeypatch) -> Path:
    """A logdir of runs that are staged in `tmp_path/local`."""
    for name, value in machine(tmp_path / "local").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "bucket" / "exp1"


def begin(source: str, point: str, *arguments: object) -> Program:
    """A program that has stopped at a point, or ended if that is "", in an interpreter of its own."""
    program = Program(STOPS + source, point, *arguments, fresh=True)
    wanted = psutil.STATUS_STOPPED if point else psutil.STATUS_ZOMBIE
    wait_for(lambda: psutil.Process(program.pid).status() == wanted, f"it is at {point or 'its end'}")
    return program


def go_on(program: Program, point: str, number: int = signal.SIGCONT) -> str:
    """Let a program end; what it tells."""
    if point:
        os.kill(program.pid, number)
    code, out, err = program.finish()
    assert code == (0 if number == signal.SIGCONT else -number), out + err
    return out + err


def run_is_over(logdir: Path) -> str:
    """Wait for the mirror; the staging directory."""
    run_dir = storage.find(str(logdir)).run_dir
    wait_for(lambda: not processes.left_behind(run_dir, "mirror"), "the end of the mirror")
    return os.path.dirname(os.path.dirname(run_dir))


def check_nothing_is_left(logdir: Path) -> None:
    """A last `clean` leaves nothing of a run that is whole in its logdir."""
    staging = run_is_over(logdir)
    out = run("clean", "--older-than", "0").output
    assert "Keeping" not in out, out
    assert os.listdir(staging) == []


def test_a_start_that_is_stopped_outlives_a_clean(logdir):
    """Between its looks and its files: the constructor succeeds, and what it logs is in the logdir."""
    go_on(begin(START, "", logdir, 0), "")
    for number, point in enumerate(("staged.note.open", "members.file.rename", "constructed", "logged"), 1):
        run_is_over(logdir)
        program = begin(START, point, logdir, number)
        out = run("clean", "--older-than", "0").output
        assert ("Removing" in out) == (point in ("staged.note.open", "members.file.rename")), (point, out)
        told = go_on(program, point)
        assert set(steps(logdir, "loss")) == set(range(number + 1)), (point, told)
    check_nothing_is_left(logdir)


@pytest.mark.parametrize("point", ["staged.remove.rename", "staged.gone.rename"])
def test_a_clean_that_is_stopped_loses_nothing_of_a_start(logdir, point):
    """The start is at work when it goes on; or has been killed, and so is `clean`."""
    known = 0
    for last, number in ((signal.SIGCONT, signal.SIGCONT), (signal.SIGKILL, signal.SIGKILL)):
        go_on(begin(START, "", logdir, known), "")
        run_is_over(logdir)
        clean = begin(CLEAN, point)
        program = begin(START, "logged", logdir, known + 1)
        if last == signal.SIGKILL:
            go_on(program, "logged", last)
        told = go_on(clean, point, number)
        if last == signal.SIGCONT:
            go_on(program, "logged")
        assert run("sync", logdir).exit_code in (0, 1)
        assert set(steps(logdir, "loss")) == set(range(known + 2)), told
        known += 2
    check_nothing_is_left(logdir)
