"""Mirrors, copies and workers that are killed: every record is in the logdir once, and nothing there is rewritten."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
from programs import wait_for
from staged import (
    LOG_SEGMENTS,
    copy_pid,
    digests,
    event_files,
    is_there,
    leftovers,
    mirror_pid,
    stage,
    steps,
)
from support import event_file

from hf_mpwriter import testing
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.delivery.sinks import LogdirSink
from hf_mpwriter.spool.staging import COPY_LOCK
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import host_id

LONG = 3 << 20  # bytes of an event file that a copy writes in several pieces


def long_event_file(run_dir, count: int) -> str:
    """Write an event file of ours that no process has open, in the place where a rank would."""
    name = f"rank_00001/events.out.tfevents.{1000000000 + count}.there.1.0123abcd"
    event_file(os.path.join(run_dir, name), 16, tag=f"{count}" * (LONG // 16))
    return name


def kill(pid: int) -> None:
    """SIGKILL, if it still lives; 0 is none, and would be this process and all of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL) if pid else None


class Watch:
    """Compares the logdir with what it held before."""

    def __init__(self, run_dir, logdir) -> None:
        self._run_dir, self._logdir = run_dir, logdir
        self._seen: dict[str, bytes] = {}

    def check(self) -> None:
        """What was whole in the logdir is as it was, and what is there begins what is here."""
        now = {name: path.read_bytes() for name, path in event_files(self._logdir).items()}
        for name, content in self._seen.items():
            assert now[name] == content, f"{name} was rewritten"
        for name, content in now.items():
            here = (self._run_dir / name).read_bytes()
            assert here.startswith(content)
            if len(content) == len(here):
                self._seen[name] = content


STEPS = (
    *("copy.item", "copy.write", "copy.rename"),
    *("mirror.mirrored.open", "mirror.mirrored.rename", "status.open", "status.rename"),
)


@pytest.mark.timeout(900)
def test_a_kill_at_any_step_is_made_good_by_the_next_mirror(tmp_path, monkeypatch):
    """One file more for each of them; what is there stays as it is, and in the end all is there, and nothing else."""
    run_dir, logdir = tmp_path / "here" / "exp1", tmp_path / "there" / "exp1"
    spool = stage(run_dir, logdir)
    host = spool.host(host_id())
    os.makedirs(host.root)
    watch = Watch(run_dir, logdir)

    def live() -> None:
        """One life of a mirror, until it ends or has seen a copy fail."""
        with contextlib.suppress(FileNotFoundError):
            host.daemon("mirror").status.unlink()
        assert Election(spool, "mirror", by_hand=True).ensure(LogdirSink(spool).start())
        wait_for(
            lambda: not locks.is_held(spool.lock_of("mirror")) or LogdirSink(spool).status().failures, "the strike"
        )

    for number, step in enumerate(STEPS):
        long_event_file(run_dir, number)
        monkeypatch.setenv("HF_MPWRITER_FAILPOINT", f"{step}=kill")
        live()
        if step.startswith("copy."):
            assert "signal 9" in LogdirSink(spool).status().reason, step
            assert not event_files(logdir), step
            kill(mirror_pid(spool))
        assert LogdirSink(spool).status().phase != "left", step
        for lock in (spool.lock_of("mirror"), host.root / COPY_LOCK):
            wait_for(lambda lock=lock: not locks.is_held(lock), "its end")
        watch.check()
    monkeypatch.delenv("HF_MPWRITER_FAILPOINT")
    live()
    watch.check()
    assert LogdirSink(spool).status().phase == "left"
    assert digests(logdir) == digests(run_dir)
    assert leftovers(logdir) == []


def test_copies_mirrors_and_workers_that_are_killed_lose_and_double_nothing(tmp_path, start):
    """A worker and its mirror die while they work; then all of them at once, a copy among them; then all goes on."""
    run_dir, logdir = tmp_path / "here" / "exp1", tmp_path / "there" / "exp1"
    journals = tmp_path / "journals"
    spool = stage(run_dir, logdir)
    host = spool.host(host_id())
    os.makedirs(host.root)
    check = Watch(run_dir, logdir).check
    first = long_event_file(run_dir, 0)
    worker = start(LOG_SEGMENTS, run_dir, journals, 0, 1 << 30)
    wait_for(lambda: first in LogdirSink(spool).mirrored().files, "the first file is brought")
    worker.process.kill()
    worker.process.communicate()
    kill(mirror_pid(spool))
    check()
    long_event_file(run_dir, 1)
    # all at once, a copy among them
    last = start(LOG_SEGMENTS, run_dir, journals, 1 << 20, 1 << 30)
    wait_for(lambda: copy_pid(spool), "a copy")
    last.process.kill()
    for pid in (copy_pid(spool), mirror_pid(spool)):
        kill(pid)
    last.process.communicate()
    check()
    # a restart
    before = event_files(run_dir).keys()
    start(LOG_SEGMENTS, run_dir, journals, 1 << 21, (1 << 21) + 8).succeed()
    wait_for(lambda: is_there(spool), "all is there")
    check()
    assert before < event_files(logdir).keys()
    assert leftovers(logdir) == []
    assert digests(logdir) == digests(run_dir)
    returned = {record.step for record in testing.read_journals(str(journals))}
    there = steps(logdir, "loss")
    assert returned <= set(there), "a returned record is missing"
    assert len(there) == len(set(there)), "a record is there twice"
    wait_for(lambda: not mirror_pid(spool), "the mirror leaves when all is there")
    assert LogdirSink(spool).status().phase == "left"
