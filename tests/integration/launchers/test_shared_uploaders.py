"""Two `hf-mpwriter run` with one repository have one uploader; each waits for its own run, and ends no other's."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import psutil
import pytest
from programs import wait_for
from runs import all_acknowledged, check_oracle, living_uploader, no_uploader, uploader_pid
from supervised import Supervised

from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system.process import host_id

LOG = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
writer, step = HFSummaryWriter("me/run", logdir=sys.argv[1]), 0
while not os.path.exists(sys.argv[2]):
    writer.add_scalar("loss", 1.0 / (step + 1), step)
    step += 1
    time.sleep(0.01)
"""  # run directory, path of the file that ends it


def kill_session(one: Supervised) -> None:
    """SIGKILL to all processes of a session, as a scheduler or a lost terminal does; uploaders have their own."""
    session = os.getsid(one.supervisor.pid)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == session:
                process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("first", ["the one that started it", "the other one", "by SIGKILL"])
def test_of_two_supervisors_with_one_uploader_either_may_end_first(hub, run_dir, run_below, first):
    """The uploader goes on for the other run, with its process; what each has logged is on the Hub at its end."""
    beside = run_dir.parent / "exp2"
    starter = run_below(sys.executable, "-c", LOG, run_dir, run_dir.parent / "end1")
    pid = living_uploader(run_dir)
    other = run_below(sys.executable, "-c", LOG, beside, run_dir.parent / "end2")
    wait_for(lambda: uploader_pid(beside) == pid, "the second run has the uploader of the first")
    ends, goes_on = [(starter, run_dir, "end1"), (other, beside, "end2")][:: -1 if first == "the other one" else 1]
    if first == "by SIGKILL":
        kill_session(starter)
        wait_for(lambda: no_uploader(run_dir), "the uploader lets go of what was killed")
    else:
        end(*ends)
    assert all_acknowledged(ends[1])
    wait_for(lambda: serves(goes_on[1]) == 1, "it serves the other run alone")
    assert uploader_pid(goes_on[1]) == pid
    assert not goes_on[0].is_over()
    end(*goes_on)
    wait_for(lambda: no_uploader(goes_on[1]), "nothing is left to do")
    for path in (run_dir, beside):
        check_oracle(path, hub, folder=f"tensorboard/{path.name}")


def end(one: Supervised, run_dir, name: str) -> None:
    """Have a program end; its supervisor says that all is there, of this run alone."""
    (run_dir.parent / name).touch()
    code, _, errors = one.finish()
    assert code == 0, errors
    told = [line for line in errors.splitlines() if line.startswith("hf-mpwriter run: all ")]
    assert len(told) == 1, errors
    assert f" of {run_dir} are on the Hub: " in told[0]
    assert all_acknowledged(run_dir)


def serves(run_dir) -> int:
    """How many runs the uploader of a run serves, as it says."""
    return UploaderStatus.read(Spool(str(run_dir)).host(host_id())).serves
