"""A staged run is found wherever it is on this machine: TMPDIR is another one in each job."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
from pathlib import Path

import psutil
import pytest
import url_places
from programs import Program, wait_for
from repository import HELPERS
from runs import LOG_FOR_EVER, check_oracle, run
from staged import machine, steps

from hf_mpwriter import testing
from hf_mpwriter.base.storage import Layout
from hf_mpwriter.spool import storage
from hf_mpwriter.testing import processes

GO_ON = """
import sys
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=100) as writer:
    print(writer.last_step())
    writer.add_scalar("more", 1.0, int(sys.argv[2]))
    print(writer.push(100))
"""

STOPS_BEFORE_IT_IS_SEEN = """
import os, signal
from hf_mpwriter.system import failpoints
def reach(name):
    if name == "spool.format.open":
        failpoints.reach = id
        os.kill(os.getpid(), signal.SIGSTOP)
failpoints.reach = reach
"""

IN_THE_LOGDIR = """
import os, sys
from hf_mpwriter import HFSummaryWriter, SummaryWriter
from hf_mpwriter.base import state
from hf_mpwriter.spool import storage
from hf_mpwriter.spool.workers.losses import Loss
from hf_mpwriter.system import disk
url, what = sys.argv[1:]
with HFSummaryWriter("me/run", logdir=url) if what == "hub" else SummaryWriter(url) as writer:
    writer.add_scalar("more", 1.0, 1)
    run = storage.spool_of(storage.find(url)).run
    if what == "attachment":
        disk.replace(run / "notes.txt", b"notes", "test")
    if what == "loss":
        loss = Loss("main.host-01234567.1.1-1", "main", "host", 1, 5, True, 1.0, "full")
        disk.make_dirs((run / loss.path).parent)
        disk.replace(run / loss.path, state.dump(loss), "test")
"""


@pytest.fixture
def url(tmp_path, monkeypatch) -> str:
    """The URL of a logdir in `tmp_path/there/exp1`."""
    url_places.install(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{os.environ['PYTHONPATH']}")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return url_places.url(tmp_path / "there" / "exp1")


def tmpdir(tmp_path: Path, name: str, variable: str = "TMPDIR") -> dict[str, str]:
    """The environment of a job with a directory of its own."""
    (tmp_path / name).mkdir(exist_ok=True)
    return {variable: str(tmp_path / name)}


def killed(start, logdir: str, journals: Path, env: dict[str, str]) -> int:
    """The last step that an attempt has logged; every process of it was killed before its last segment was brought."""
    return end(start(LOG_FOR_EVER, logdir, journals, env=env), journals, env)


def end(program: Program, journals: Path, env: dict[str, str]) -> int:
    """Kill a program that logs for ever, with all processes of its environment; the last step that it has logged.

    It is stopped meanwhile: to no mirror and no uploader is it dead, and none begins.
    """
    wait_for(lambda: journals.exists() and len([*testing.read_journals(str(journals))]) > 50, "records have returned")
    os.kill(program.pid, signal.SIGSTOP)

    def are_gone() -> bool:
        left = [one for one in psutil.process_iter() if one.pid != program.pid and _is_of(one, env)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return not left

    wait_for(are_gone, "its other processes are gone")
    os.kill(program.pid, signal.SIGKILL)
    program.finish()
    return max(record.step for record in testing.read_journals(str(journals)))


def went_on(out: str, last: int) -> int:
    """The last step that the next attempt has found; the killed one may have logged one more than it has noted."""
    found, is_pushed = out.split()
    assert int(found) in (last, last + 1)
    assert is_pushed == "True"
    return int(found)


def _is_of(process: psutil.Process, env: dict[str, str]) -> bool:
    try:
        return process.environ().items() >= env.items()
    except psutil.Error:
        return False


@pytest.mark.parametrize(
    ("first", "second"),
    [("TMPDIR", "TMPDIR"), ("SLURM_TMPDIR", "HF_MPWRITER_STAGING"), ("HF_MPWRITER_STAGING", "TMPDIR")],
)
def test_a_killed_run_goes_on_where_it_stands(hub, url, tmp_path, start, first, second):
    """What no process could bring before the kill is known, on the Hub and in the logdir, in one run directory."""
    env = tmpdir(tmp_path, "b", second)
    last = killed(start, url, tmp_path / "journals", tmpdir(tmp_path, "a", first))
    found = went_on(start(GO_ON, url, 7, env=env).succeed(), last)
    kept = storage.find(url, os.environ | env)
    assert kept.run_dir.startswith(f"{tmp_path}/a/")
    assert list((tmp_path / "b").iterdir()) == []
    check_oracle(kept.run_dir, hub, tmp_path / "journals")
    assert sorted(steps(tmp_path / "there" / "exp1", "loss")) == list(range(found + 1))


def test_a_logdir_on_a_local_disk_that_was_staged_stays_so(hub, tmp_path, start, monkeypatch):
    """It was staged by a variable that is not set any more; `never` leaves it, and names it."""
    logdir = tmp_path / "runs" / "exp1"
    last = killed(start, str(logdir), tmp_path / "journals", tmpdir(tmp_path, "a", "HF_MPWRITER_STAGING"))
    monkeypatch.setenv("HF_MPWRITER_STAGING", "never")
    kept = storage.find(str(logdir))
    assert kept.layout is Layout.DIRECT
    assert f"What an earlier start has left of this run is in {tmp_path}/a/" in kept.refused
    monkeypatch.delenv("HF_MPWRITER_STAGING")
    found = went_on(start(GO_ON, logdir, 7).succeed(), last)
    assert sorted(steps(logdir, "loss")) == list(range(found + 1))
    check_oracle(storage.find(str(logdir)).run_dir, hub, tmp_path / "journals")


def test_every_command_finds_it_from_any_shell(hub, url, tmp_path, start, monkeypatch):
    """With another TMPDIR, and without the variable that the training has had."""
    last = killed(start, url, tmp_path / "journals", tmpdir(tmp_path, "a"))
    for name, value in tmpdir(tmp_path, "shell").items():
        monkeypatch.setenv(name, value)
    run_dir = storage.find(url).run_dir
    assert run_dir.startswith(f"{tmp_path}/a/")
    assert f"event files in {run_dir}" in run("doctor", url).output
    assert run("status", url).exit_code == 4
    assert run("verify", url).exit_code == 1
    assert f"Keeping {run_dir}" in run("clean", "--older-than", "0").output
    assert run("sync", url).exit_code == 0
    assert run("verify", url).exit_code == 0
    assert run("status", url).exit_code == 0
    assert run("stop", url).exit_code == 0
    assert sorted(steps(tmp_path / "there" / "exp1", "loss"))[: last + 1] == list(range(last + 1))
    wait_for(lambda: not processes.left_behind(run_dir, "mirror"), "the end of the mirror")
    assert f"Removing {run_dir}" in run("clean", "--older-than", "0").output
    assert list((tmp_path / "shell").iterdir()) == []


def test_a_place_that_is_gone_is_told_by_name_once_unless_all_of_it_was_brought(hub, url, tmp_path, start):
    """A job's directory goes with the job: what was whole is not missed."""
    env = tmpdir(tmp_path, "a")
    killed(start, url, tmp_path / "journals", env)
    run_dir = storage.find(url, os.environ | env).run_dir
    shutil.rmtree(tmp_path / "a")
    assert run("doctor", url).output.count(f"was in {run_dir}, which is gone") == 1
    told = []
    for name in ("b", "c", "d"):
        env = tmpdir(tmp_path, name)
        code, out, err = start(GO_ON, url, 7, env=env).finish()
        assert (code, out.split()[-1]) == (0, "True"), err
        told.append(err.count(f"was in {run_dir}, which is gone"))
        assert "has left of this run was in" not in err.replace(run_dir, "") or told[-1]
        here = storage.find(url, os.environ | env).run_dir
        assert here.startswith(f"{tmp_path}/{name}/")
        wait_for(lambda here=here: not processes.left_behind(here, "mirror"), "the end of the mirror")
        shutil.rmtree(tmp_path / name)
    assert told == [1, 0, 0]


def test_a_start_on_a_new_host_is_told_by_name_where_the_run_was_kept(url, tmp_path, start):
    """By the logdir, once; what the other host could not copy is there."""
    other = machine(tmp_path / "other") | {"HOST_NAME": "node7"}
    other["PYTHONPATH"] = f"{HELPERS / 'locks_per_host'}:{os.environ['PYTHONPATH']}"
    start(GO_ON, url, 7, env=other | {"HF_MPWRITER_DISABLED": "1"}).succeed()
    run_dir = storage.find(url, os.environ | other).run_dir
    told = []
    for _ in range(2):
        env = machine(tmp_path / "here") | {"HF_MPWRITER_DISABLED": "1"}
        code, _, err = start(GO_ON, url, 8, env=env).finish()
        assert code == 0, err
        told.append(len(re.findall(f"kept on another host, node7-[0-9a-f]+, in {run_dir}", err)))
    assert told == [1, 0]


def test_two_starts_that_have_not_seen_each_other_are_both_known(hub, url, tmp_path, start, monkeypatch):
    """Each has a directory of its own for temporary files; what was killed in one of them needs a person until then."""
    started = []
    for name in "ab":
        env = tmpdir(tmp_path, name)
        program = start(STOPS_BEFORE_IT_IS_SEEN + LOG_FOR_EVER, url, tmp_path / f"journals-{name}", env=env)
        wait_for(lambda pid=program.pid: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "it makes its spool")
        started.append((program, tmp_path / f"journals-{name}", env))
    for program, _, _ in started:
        os.kill(program.pid, signal.SIGCONT)
    for program, journals, env in started:
        end(program, journals, env)
    for name, value in tmpdir(tmp_path, "shell").items():
        monkeypatch.setenv(name, value)
    kept = storage.find(url)
    other = kept.run_dir.replace(*(("/a/", "/b/") if "/a/" in kept.run_dir else ("/b/", "/a/")))
    assert f"What an earlier start has left of this run is in {other}." in kept.refused
    told = f"sync {other}"
    done = run("status", url, "--json")
    assert (done.exit_code, json.loads(done.output)["apart"]) == (4, [other])
    for command in ("sync", "status", "verify"):
        done = run(command, url)
        assert (done.exit_code, told in done.output) == (4 if command == "status" else 1, True), done.output
    assert run("sync", other).exit_code == 0
    for command in ("sync", "status", "verify"):
        done = run(command, url)
        assert (done.exit_code, other in done.output) == (0, False), done.output


@pytest.mark.parametrize("what", ["nothing", "hub", "attachment", "loss"])
def test_a_place_is_missed_for_what_goes_to_no_logdir_or_waits_for_the_hub(hub, url, tmp_path, start, what):
    """Its event files are all in the logdir; what else was in it has gone with it."""
    env = tmpdir(tmp_path, "a")
    start(IN_THE_LOGDIR, url, what, env=env | ({"HF_HUB_OFFLINE": "1"} if what == "hub" else {})).succeed()
    run_dir = storage.find(url, os.environ | env).run_dir
    wait_for(lambda: not processes.left_behind(run_dir, "mirror"), "the end of the mirror")
    assert steps(tmp_path / "there" / "exp1", "more") == [1]
    shutil.rmtree(tmp_path / "a")
    code, _, err = start(GO_ON, url, 7, env=tmpdir(tmp_path, "b")).finish()
    assert code == 0, err
    assert err.count(f"was in {run_dir}, which is gone") == (what != "nothing")
