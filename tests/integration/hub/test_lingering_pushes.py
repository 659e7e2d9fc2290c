"""A push that went well waits for the next job: it does each job that it has taken, and takes none that it may not."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal

import pytest
from programs import wait_for
from pushing import NAME, Run, is_as
from support import event_file

from hf_mpwriter.base.verdicts import Done, Refused, Unknown
from hf_mpwriter.push.handle import PushHandle
from hf_mpwriter.system import launch

pytest_plugins = ("pushing",)
LIMIT = 300.0  # seconds
NO_CLIENT = "sys.modules['huggingface_hub']=None;main()"  # an import of it fails


@pytest.fixture
def start(monkeypatch):
    """Start pushes; end them after the test."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with contextlib.ExitStack() as stack:

        def begin(run: Run, linger: int = 3600, **changes: object) -> PushHandle:
            run.spool.create()
            push = PushHandle(run.job(changes), LIMIT, [run.spool], linger)
            stack.callback(push.let_go)
            return push

        yield begin


def verdict(push: PushHandle):
    """What the push says in the end."""
    (found,) = wait_for(lambda: push.listen()[1], "the verdict")
    return found


@pytest.mark.parametrize("xet", [False, True])
def test_one_process_sends_what_comes_in_several_jobs(hub, run, start, xet):
    """Each verdict is that of its own job, and the Hub ends with all of the file."""
    run.length = event_file(run.root / NAME, 5)
    push = start(run, xet=xet)
    first = verdict(push)
    assert is_as(first, Done, own=True)
    for steps in (10, 15):
        run.length = event_file(run.root / NAME, steps)
        known = {NAME: first.files[NAME]}
        assert push.take(run.job({"xet": xet, "known": known, "own_head": first.commit}), LIMIT, [run.spool])
        pid = push.pid
        second = verdict(push)
        assert is_as(second, Done, own=True)
        assert second.commit != first.commit
        assert (push.pid, push.has_ended()) == (pid, False)
        first = second
    assert run.on_hub(hub) == (run.root / NAME).read_bytes()
    assert first.files[NAME].length == run.length


def test_a_push_that_was_prepared_has_no_verdict_but_that_of_its_job(hub, run, start):
    """It imports its client before there is a job; nothing of that is taken for the outcome."""
    push = start(run, prepares=True, files=())
    assert push.take(run.job({}), LIMIT, [run.spool])
    assert is_as(verdict(push), Done, own=True)
    assert run.on_hub(hub) == (run.root / NAME).read_bytes()


def test_a_push_that_could_not_be_prepared_tells_why_when_its_job_has_come(run, start, monkeypatch):
    """The environment may break the client; the job is taken and refused, not lost."""
    monkeypatch.setitem(launch.BOOTS, "push", launch.BOOTS["push"].replace("main()", NO_CLIENT))
    push = start(run, prepares=True, files=())
    assert push.take(run.job({}), LIMIT, [run.spool])
    assert is_as(verdict(push), Refused)
    idle = start(run, linger=1, prepares=True, files=())
    wait_for(idle.has_ended, "its end")
    assert is_as(verdict(idle), Unknown)


def test_a_job_for_another_client_is_not_taken(run, start):
    """The client reads HF_HUB_DISABLE_XET and HF_ENDPOINT when it is imported."""
    push = start(run)
    assert is_as(verdict(push), Done)
    assert not push.take(run.job({"xet": True}), LIMIT, [run.spool])
    elsewhere = dataclasses.replace(run.destination, endpoint="http://127.0.0.1:9")
    assert not push.take(run.job({"destination": elsewhere}), LIMIT, [run.spool])


def test_large_files_are_not_given_to_a_push_that_reads_many_at_once(run, start):
    """hf_xet keeps the settings that it had for its first content; one that was only prepared has none yet."""
    job = run.job({"xet": True})
    large = {"xet": True, "files": tuple(dataclasses.replace(file, length=2 << 20) for file in job.files)}
    push = start(run, xet=True)
    assert is_as(verdict(push), Done)
    assert not push.take(run.job(large), LIMIT, [run.spool])
    assert start(run, xet=True, prepares=True, files=()).take(run.job(large), LIMIT, [run.spool])


def test_a_push_that_failed_takes_nothing_more(hub, run, start):
    """The next one begins with a fresh interpreter, as it was before."""
    hub.fault("POST /commit/ 503 times=0")
    push = start(run)
    assert not is_as(verdict(push), Done)
    assert push.has_ended()
    assert not push.take(run.job({}), LIMIT, [run.spool])


def test_a_push_takes_nothing_once_it_has_waited_long_enough_or_was_killed(run, start):
    """It ends by itself; no job is lost in it."""
    push = start(run, linger=1)
    assert is_as(verdict(push), Done)
    wait_for(push.has_ended, "its end")
    assert not push.take(run.job({}), LIMIT, [run.spool])
    other = start(run)
    assert is_as(verdict(other), Done)
    os.kill(other.pid, signal.SIGKILL)
    wait_for(other.has_ended, "its end")
    assert not other.take(run.job({}), LIMIT, [run.spool])


def test_the_outcome_of_a_later_job_is_unknown_if_the_process_is_killed(hub, run, start):
    """As of the first one: the verdict of the job before is not taken for its own."""
    push = start(run)
    assert is_as(verdict(push), Done)
    run.log()
    hub.fault("GET /api/models/me/run hang times=0")
    assert push.take(run.job({}), LIMIT, [run.spool])
    wait_for(lambda: any(standing.hits for standing in hub.faults()), "a request")
    assert push.listen()[1] == []
    push.kill()
    assert verdict(push) == Unknown("the push ended by signal 9")


def test_a_later_job_that_hangs_ends_by_a_timer_of_its_own(hub, run, start, monkeypatch):
    """The time of a job counts from its own begin, and not while the process waits for it."""
    bounds = "from hf_mpwriter.push import job;job.DEADLINE_BASE,job.DEADLINE_RATE=1.0,1.0;main()"
    monkeypatch.setitem(launch.BOOTS, "push", launch.BOOTS["push"].replace("main()", bounds))
    push = start(run)  # it has as many seconds as the file has bytes
    assert is_as(verdict(push), Done)
    hub.fault("GET /api/models/me/run hang times=0")
    assert push.take(run.job({"files": ()}), LIMIT, [run.spool])
    assert is_as(verdict(push), Unknown, xet="failing")


def test_a_lingering_push_ends_with_its_uploader(run, start):
    """The other end of its socket is closed, whether or not the kernel tells it that its parent has gone."""
    push = start(run)
    assert is_as(verdict(push), Done)
    push._more.close()
    wait_for(push.has_ended, "its end")


def test_a_push_that_was_just_killed_takes_nothing(run, start):
    """It may have said that it went well before; while it dies, a job on its way would be lost."""
    push = start(run)
    wait_for(lambda: push.wait(0.1) or push.listen()[1], "the verdict")
    os.kill(push.pid, signal.SIGSTOP)
    push.kill()
    assert not push.take(run.job({}), LIMIT, [run.spool])
    assert is_as(verdict(push), Done)
