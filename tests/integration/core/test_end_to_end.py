"""The whole path with real processes: writer, uploader, push, huggingface_hub, local Hub."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import tensorboardX
from programs import DEADLINE, wait_for
from runs import (
    LOG_AND_EXIT,
    LOG_FOR_EVER,
    all_acknowledged,
    check_oracle,
    event_paths,
    living_uploader,
    no_uploader,
    run,
    sync,
    uploader_pid,
)
from waits import timing

from hf_mpwriter import testing
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.spool.layout import Spool


def test_a_context_exit_ends_with_the_data_on_the_hub(hub, run_dir, start, unhurried):
    """After the with block all is on the Hub, the tagged card in the same commit; the uploader leaves by itself."""
    start(LOG_AND_EXIT, run_dir, 500).succeed()
    report = check_oracle(run_dir, hub)
    assert [file.hub_events for file in report.files.values()] == [500]
    newest = hub.store.commits("model", "me/run", "main")[0]
    assert sorted(path for path in newest.tree if not path.startswith(".")) == ["README.md", *event_paths(run_dir)]
    assert b"hf-summary-writer" in hub.store.read_blob("model", "me/run", "README.md", "main")
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert not os.listdir(Spool(str(run_dir)).members), "the member file of the dead worker is removed"


FOUR_RANKS = (
    LOG_AND_EXIT
    + """
    import glob, time
    while len(glob.glob(sys.argv[1] + "/**/*tfevents*", recursive=True)) < 4:
        time.sleep(0.05)
"""
)


def test_ranks_write_into_directories_of_their_own_and_one_uploader_serves_them(hub, run_dir, start):
    """Rank 0 writes into the run directory, others below it; one uploader commits for all."""
    ranks = [start(FOUR_RANKS, run_dir, 50, env={"RANK": str(rank), "WORLD_SIZE": "4"}) for rank in range(4)]
    for rank in ranks:
        rank.succeed()
    report = check_oracle(run_dir, hub)
    assert sorted({os.path.dirname(path) for path in report.files}) == ["", "rank_00001", "rank_00002", "rank_00003"]
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    log = next(Path(run_dir).glob(".hf_mpwriter/hosts/*/uploader.log")).read_text()
    taken = [line for line in log.splitlines() if "took the uploader lock" in line]
    lives = len({line.split("[")[1].split("]")[0] for line in taken})
    assert lives <= 2, f"at most one more after an early leave:\n{log}"


def test_kills_of_push_uploader_and_worker_lose_nothing(hub, run_dir, tmp_path, start):
    """A worker that logs starts a new uploader; the last one sends what a killed worker had logged, without a start."""
    journals = tmp_path / "journals"
    worker = start(LOG_FOR_EVER, run_dir, journals)
    view = HubSink(Spool(str(run_dir)))
    push = wait_for(lambda: view.status().push, "a push")
    with contextlib.suppress(ProcessLookupError):
        os.kill(push, signal.SIGKILL)
    wait_for(lambda: view.status().push != push, "the uploader notices")
    first = living_uploader(run_dir)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: uploader_pid(run_dir) not in (0, first), "a new uploader")
    wait_for(lambda: sum(1 for _ in testing.read_journals(str(journals))) > 300, "300 events")
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: no_uploader(run_dir), "the uploader has finished and left")
    assert check_oracle(run_dir, hub, journals).returned > 300


def test_training_ends_although_the_uploader_lives_on(hub, run_dir):
    """`subprocess.run(capture_output=True)` returns when training ends: the uploader holds no pipe of the user's."""
    source = """
import os, sys, time
import psutil
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=0.01, exit_timeout=0)
for step in range(1000):
    writer.add_scalar("loss", step, step)
    time.sleep(0.002)
end = time.monotonic() + 150
while (children := psutil.Process().children(recursive=True)) and time.monotonic() < end:
    writer.add_scalar("loss", step, step)  # the first half of an uploader that it has just started is collected
    time.sleep(0.02)
print(len(children), [child.status() for child in children])
import multiprocessing
forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
forked.start(); forked.join()
with open(sys.argv[2], "w") as file:  # another run keeps the uploader lock busy: the uploader must outlive us
    file.write("done")
"""
    watcher = subprocess.Popen(
        [sys.executable, "-c", LOG_FOR_EVER, str(run_dir), str(run_dir.parent / "journals")],
        env=os.environ | {"RANK": "1"},
    )
    try:
        wait_for(lambda: uploader_pid(run_dir), "an uploader")
        os.kill(living_uploader(run_dir), signal.SIGKILL)  # so that the program below may start one itself
        result = subprocess.run(
            [sys.executable, "-c", source, run_dir, run_dir.parent / "done"],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
        assert result.stdout.startswith("0 []"), "no child and no zombie"
        assert wait_for(lambda: uploader_pid(run_dir), "the uploader lives on")
    finally:
        watcher.kill()
        watcher.wait()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")


def test_a_hub_that_is_down_never_hurts_training_and_sync_finishes_later(tmp_path, run_dir, start, monkeypatch):
    """Training ends with exit code 0 and one message; `hf-mpwriter sync` uploads the rest and shows a progress bar."""
    from hf_mpwriter.localhub import LocalHub

    server = LocalHub(tmp_path / "hub").start()
    server.stop()
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    code, _, errors = start(LOG_AND_EXIT, run_dir, 200, env={"HF_MPWRITER_EXIT_TIMEOUT": "1.5"}).finish()
    assert code == 0
    assert errors.count("hf-mpwriter sync") == 1, errors
    with server:
        done = sync(run_dir)
        assert done.exit_code == 0, done.stderr
        assert done.stderr.startswith("on the Hub: ")
        check_oracle(run_dir, server)
        again = sync(run_dir)
        assert again.exit_code == 0
        assert check_oracle(run_dir, server).commits == 2, (
            "a second sync sends nothing: the initial commit and the data"
        )


def test_a_restart_sends_what_an_earlier_one_could_not(tmp_path, run_dir, start, monkeypatch):
    """Promise 6: the next start in the same run directory finds what was never acknowledged."""
    from hf_mpwriter.localhub import LocalHub

    server = LocalHub(tmp_path / "hub").start()
    server.stop()
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    start(LOG_AND_EXIT, run_dir, 100, env={"HF_MPWRITER_EXIT_TIMEOUT": "0"}).succeed()
    with server:
        start(LOG_AND_EXIT, run_dir, 100).succeed()
        wait_for(lambda: all_acknowledged(run_dir), "both files")
        assert len(check_oracle(run_dir, server).files) == 2


def test_a_branch_a_dataset_plain_lfs_and_files_of_another_writer_work(hub, run_dir, start):
    """Another type, another branch, without Xet; tensorboardX has logged there, too."""
    with tensorboardX.SummaryWriter(str(run_dir)) as other:
        other.add_scalar("x", 1, 1)
    source = LOG_AND_EXIT.replace("logdir=", "repo_type='dataset', repo_revision='exp/1', path_in_repo='', logdir=")
    start(source, run_dir, 10, env={"HF_HUB_DISABLE_XET": "1"}).succeed()
    assert len(check_oracle(run_dir, hub, kind="dataset", branch="exp/1", folder="exp1").files) == 2


def test_a_trigger_resolves_to_the_commit_that_holds_the_data(hub, run_dir, start):
    """`result()` returns when what was logged is on the Hub, also in a forked child; who only waits is told, too."""
    source = """
import asyncio, concurrent.futures, multiprocessing, sys, threading
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("run", logdir=sys.argv[1])
writer.add_scalar("loss", 1.0, 1)
future, called = writer.scheduler.trigger(), threading.Event()
future.add_done_callback(lambda _: called.set())
assert future.running() and not future.cancel()
assert called.wait(150) and concurrent.futures.wait([future]).done == {future}
writer.add_scalar("loss", 1.0, 2)
assert next(concurrent.futures.as_completed([writer.scheduler.trigger()], 150)).exception() is None
writer.add_scalar("loss", 1.0, 3)
async def pushed():
    return await asyncio.wait_for(asyncio.wrap_future(writer.scheduler.trigger()), 150)
assert len(asyncio.run(pushed())) == 40
assert len(writer.scheduler.last_future.result(0)) == 40
assert writer.repo_id == "local-user/run", writer.repo_id
def child():
    writer.add_scalar("loss", 2.0, 2)
    assert len(writer.scheduler.trigger().result(150)) == 40
process = multiprocessing.get_context("fork").Process(target=child, name="Reader-1")
process.start(); process.join()
assert process.exitcode == 0
writer.close(wait=True)
"""
    start(source, run_dir).succeed()
    assert sorted(map(os.path.dirname, check_oracle(run_dir, hub, repo="local-user/run").files)) == ["", "Reader-1"]


def test_a_push_waits_and_the_status_counts_what_is_where(hub, run_dir, start):
    """`writer.push(wait=...)` is true when all that was logged so far is on the Hub, sub-writers included."""
    source = """
import sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.system import locks
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
assert writer.status().logged == 0 and writer.push(), "nothing is missing yet"
held = locks.try_exclusive(writer._worker.spool.uploader_lock)  # no uploader yet
for step in range(100):
    writer.add_scalar("loss", 1.0, step)
    writer.add_scalars("group", {"a": 1.0, "b": 2.0}, step)
before = writer.status()
assert before.waiting == before.logged > 3 * 100 * 30 and before.on_hub == 0, before
assert before.destination.endswith("me/run/tree/main/tensorboard/exp1"), before
locks.release(held)
assert writer.push(wait=150)
after = writer.status()
assert (after.logged, after.on_hub, after.waiting, after.error) == (before.logged, before.logged, 0, ""), after
"""
    start(source, run_dir).succeed()
    assert len(check_oracle(run_dir, hub).files) == 3


def test_a_push_to_a_hub_that_is_down_is_false_and_the_status_has_the_reason(run_dir, start, monkeypatch):
    """No call raises or waits longer than its timeout; a local run has nothing to push."""
    source = """
import sys, time
from hf_mpwriter import HFSummaryWriter, SummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
writer.add_scalar("loss", 1.0, 1)
assert not writer.push()
deadline = time.monotonic() + 150
while not writer.status().error and time.monotonic() < deadline:
    assert not writer.push(wait=0.2)
status = writer.status()
assert status.error and status.waiting == status.logged > 0, status
with SummaryWriter(sys.argv[1] + "-local") as local:
    local.add_scalar("loss", 1.0, 1)
    assert not local.push(wait=30)
    assert local.status().logged > 0 and local.status().waiting == 0
"""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start(source, run_dir, env={"HF_MPWRITER_EXIT_TIMEOUT": "0"}).succeed()


SHORT = """
import sys
from hf_mpwriter import HFSummaryWriter
HFSummaryWriter("me/run", logdir=sys.argv[1]).add_scalar("loss", 1.0, 1)
"""


def test_a_run_that_is_shorter_than_the_first_housekeeping_is_told_that_it_is_public(hub, run_dir, start):
    """Created and PUBLIC, once each, also if the Hub takes its time between the two; and no writer was closed."""
    hub.fault("GET /api/models/me/run slow seconds=1")
    over_before = timing(housekeeping_every=1000.0)
    code, _, errors = start(SHORT, run_dir, env={"HF_MPWRITER_TIMING": over_before}).finish()
    assert (code, errors.count("created http"), errors.count("is PUBLIC")) == (0, 1, 1), errors
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert f"{hub.endpoint}/me/run/tree/main/tensorboard/exp1" in run("status", run_dir).output


def test_a_disabled_writer_is_local_only(hub, run_dir, start):
    """HF_MPWRITER_DISABLED=1: the event file is written, nothing is started or sent."""
    start(LOG_AND_EXIT, run_dir, 10, env={"HF_MPWRITER_DISABLED": "1"}).succeed()
    assert len(list(run_dir.glob("*tfevents*"))) == 1
    assert not os.path.exists(Spool(str(run_dir)).uploader_lock)
    assert list(hub.store.repos()) == []
