"""System metrics with real processes: one sampler per host, from its start by a worker to its own end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
from programs import wait_for
from runs import check_oracle, finished, no_uploader, others_may_read, run
from support import events
from waits import timing

from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.testing import processes

LOG_UNTIL_TOLD = """
import os, sys, time
from hf_mpwriter import SummaryWriter
repo, run_dir, stop, *on = sys.argv[1:]
with SummaryWriter(run_dir, repo_id=repo or None, system_metrics=bool(on) or None) as writer:
    step = 0
    while not os.path.exists(stop):
        writer.add_scalar("loss", 1 / (step + 1), step)
        step += 1
        time.sleep(0.05)
    writer.add_scalar("loss", 0.0, step)
"""
ON = {"HF_MPWRITER_SYSTEM_METRICS": "1"}


def sampler(run_dir) -> int:
    """Pid of the living sampler, 0 if there is none, or others that have yet to find the lock taken."""
    found = processes.left_behind(str(run_dir), "sampler")
    return found[0] if len(found) == 1 else 0


def has_ended(run_dir) -> bool:
    """Whether no sampler lives, nor one that begins."""
    return not processes.left_behind(str(run_dir), "sampler")


def files(run_dir) -> list[Path]:
    """The event files of the sampler of this host, in the order of their names."""
    return sorted(Path(run_dir).glob("_system/*/*tfevents*"))


def steps(run_dir) -> list[int]:
    """The steps that were sampled, in the order of the files and of the records in each."""
    return [event.step for path in files(run_dir) for event in events(path) if event.HasField("summary")]


def test_two_workers_have_one_sampler_and_what_it_logs_is_on_the_hub_after_the_last_close(
    hub, run_dir, tmp_path, start
):
    """Without a token, under a title of its own; another one follows where it was killed, and its steps go on."""
    stop = [tmp_path / "stop0", tmp_path / "stop1"]
    # a step is a second: where the second sampler samples as late as for users, it samples in another one
    env = {"HF_TOKEN": "hf_secret", "HF_MPWRITER_TIMING": timing(first_sample_after=USUAL.first_sample_after)}
    ranks = [
        start(LOG_UNTIL_TOLD, "me/run", run_dir, stop[rank], "on", env=env | {"RANK": str(rank)}) for rank in range(2)
    ]
    first = wait_for(lambda: len(steps(run_dir)) > 1 and sampler(run_dir), "samples")
    process = psutil.Process(first)
    assert "hf_secret" not in process.environ().values()
    assert process.cmdline()[-1] == "hf-mpwriter sampler runs/exp1"
    assert process.nice() > psutil.Process().nice()
    before = steps(run_dir)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(files(run_dir)) == 2 and sampler(run_dir) not in (0, first), "another one is at work")
    stop[1].touch()
    ranks[1].succeed()
    assert not has_ended(run_dir), "a worker is left"
    count = len(steps(run_dir))
    wait_for(lambda: len(steps(run_dir)) > count, "it goes on")
    stop[0].touch()
    ranks[0].succeed()
    found = {path: file for path, file in check_oracle(run_dir, hub).files.items() if path.startswith("_system/")}
    assert len(found) == 2
    assert all(file.hub_bytes == file.local_bytes for file in found.values()), "whole, as soon as training is over"
    after = steps(run_dir)
    assert after[: len(before)] == before
    assert after == sorted(set(after)), "they only grow, and none is there twice"
    wait_for(lambda: no_uploader(run_dir), "the uploader does not wait for the sampler")
    wait_for(lambda: finished(run_dir) and has_ended(run_dir), "it ends by itself, and leaves nothing to do")


def test_a_local_run_is_sampled_too_and_tensorboard_shows_it_as_a_run(run_dir, tmp_path, start):
    """By the environment alone. `stop` ends it. A later start goes on behind, in the same curve."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    seen = []
    for attempt in range(2):
        stop = tmp_path / f"stop{attempt}"
        worker = start(LOG_UNTIL_TOLD, "", run_dir, stop, env=ON)
        wait_for(lambda: len(steps(run_dir)) > len(seen) + 1, "samples")  # noqa: B023 - within the loop
        if not attempt:
            pid = wait_for(lambda: sampler(run_dir), "the sampler alone, without first halves of others")
            assert f"sampler {pid} is ended\n" in run("stop", run_dir).output
            assert pid not in processes.left_behind(str(run_dir))
            assert "left the sampler lock" in run("logs", run_dir).output
        stop.touch()
        worker.succeed()
        wait_for(lambda: has_ended(run_dir), "it ends by itself")
        seen = steps(run_dir)
        assert os.listdir(Spool(str(run_dir)).members) == [], "nothing is left to do"
    assert len(files(run_dir)) >= 2
    assert others_may_read(run_dir, "_system")
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(run_dir)).Reload()
    (name,) = set(multiplexer.Runs()) - {"."}
    assert name == str(files(run_dir)[0].parent.relative_to(run_dir))
    shown = [point.step for point in multiplexer.Scalars(name, "cpu/percent")]
    assert shown == seen == sorted(set(seen))


def test_nothing_is_sampled_unasked(run_dir, tmp_path, start):
    """No process, no file: the metrics are opt-in."""
    worker = start(LOG_UNTIL_TOLD, "", run_dir, tmp_path / "stop")
    wait_for(lambda: list(Path(run_dir).glob("*tfevents*")), "the worker has kept house")
    (tmp_path / "stop").touch()
    worker.succeed()
    assert processes.left_behind(str(run_dir)) == []
    assert not list(Path(run_dir).glob(".hf_mpwriter/hosts/*")) + files(run_dir)
