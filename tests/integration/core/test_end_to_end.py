"""The whole path with real processes: writer, uploader, push, huggingface_hub, local Hub."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import DEADLINE, wait_for
from runs import (
    LOG_AND_EXIT,
    LOG_FOR_EVER,
    all_acknowledged,
    check_oracle,
    event_paths,
    living_uploader,
    no_uploader,
    sync,
    uploader_pid,
)

from hf_mpwriter import testing
from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress


def test_a_context_exit_ends_with_the_data_on_the_hub(hub, run_dir, start, unhurried):
    """Promise 9: after the with block everything is on the Hub, and the uploader leaves by itself."""
    start(LOG_AND_EXIT, run_dir, 500).succeed()
    report = check_oracle(run_dir, hub)
    assert [file.hub_events for file in report.files.values()] == [500]
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert not os.listdir(Spool(str(run_dir)).members), "the member file of the dead worker is removed"


def test_the_model_card_carries_the_tag_in_the_commit_of_the_data(hub, run_dir, start):
    """The tag comes with the first events, in one commit."""
    start(LOG_AND_EXIT, run_dir, 3).succeed()
    newest = hub.store.commits("model", "me/run", "main")[0]
    assert sorted(path for path in newest.tree if not path.startswith(".")) == ["README.md", *event_paths(run_dir)]
    assert b"hf-summary-writer" in hub.store.read_blob("model", "me/run", "README.md", "main")


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


def test_the_last_events_of_a_killed_worker_arrive(hub, run_dir, tmp_path, start):
    """SIGKILL of the only worker: every record whose call returned is on the Hub, without a new start."""
    journals = tmp_path / "journals"
    worker = start(LOG_FOR_EVER, run_dir, journals)
    wait_for(lambda: list(Path(journals).glob("*")) and uploader_pid(run_dir), "worker and uploader are at work")
    wait_for(lambda: sum(1 for _ in testing.read_journals(str(journals))) > 300, "300 events")
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: no_uploader(run_dir), "the uploader has finished and left")
    report = check_oracle(run_dir, hub, journals)
    assert report.returned > 300


def test_a_killed_uploader_is_replaced(hub, run_dir, tmp_path, start):
    """A worker that logs starts a new uploader the next time that it keeps house."""
    worker = start(LOG_FOR_EVER, run_dir, tmp_path / "journals")
    first = wait_for(lambda: uploader_pid(run_dir), "an uploader")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: uploader_pid(run_dir) not in (0, first), "a new uploader")
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: no_uploader(run_dir), "the uploader has finished and left")
    check_oracle(run_dir, hub, tmp_path / "journals")


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
end = time.monotonic() + 60
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
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith("on the Hub: ")
        check_oracle(run_dir, server)
        again = sync(run_dir)
        assert again.returncode == 0
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


def test_files_of_another_writer_in_the_run_directory_are_uploaded_too(hub, run_dir, start):
    """A plain tensorboardX writer beside ours: its file goes to the Hub, cut at whole records."""
    run_dir.mkdir(parents=True)
    source = "import sys, tensorboardX\nwith tensorboardX.SummaryWriter(sys.argv[1]) as w: w.add_scalar('x', 1, 1)"
    start(source, run_dir).succeed()
    start(LOG_AND_EXIT, run_dir, 10).succeed()
    assert len(check_oracle(run_dir, hub).files) == 2


def test_a_branch_a_dataset_and_plain_lfs_work(hub, run_dir, start):
    """Another type, another branch, without Xet."""
    source = LOG_AND_EXIT.replace("logdir=", "repo_type='dataset', repo_revision='exp/1', path_in_repo='', logdir=")
    start(source, run_dir, 10, env={"HF_HUB_DISABLE_XET": "1"}).succeed()
    check_oracle(run_dir, hub, kind="dataset", branch="exp/1", folder="exp1")


def test_a_trigger_resolves_to_the_commit_that_holds_the_data(hub, run_dir, start):
    """`scheduler.trigger().result()` returns when what was logged is on the Hub, also in a forked child."""
    source = """
import multiprocessing, sys
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("run", logdir=sys.argv[1])
writer.add_scalar("loss", 1.0, 1)
assert len(writer.scheduler.trigger().result(150)) == 40
assert writer.scheduler.last_future.done() and writer.scheduler.last_future.exception() is None
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


def test_a_disabled_writer_is_local_only(hub, run_dir, start):
    """HF_MPWRITER_DISABLED=1: the event file is written, nothing is started or sent."""
    start(LOG_AND_EXIT, run_dir, 10, env={"HF_MPWRITER_DISABLED": "1"}).succeed()
    assert len(list(run_dir.glob("*tfevents*"))) == 1
    assert not os.path.exists(Spool(str(run_dir)).uploader_lock)
    assert list(hub.store.repos()) == []


def test_the_ledger_is_not_ahead_of_the_hub_at_any_kill_of_a_push(hub, run_dir, tmp_path, start):
    """Pushes are killed at work: the Hub's copies stay prefixes, and in the end everything is on the Hub."""
    worker = start(LOG_FOR_EVER, run_dir, tmp_path / "journals")
    view = Progress(Spool(str(run_dir)))
    for _ in range(3):
        push = wait_for(lambda: view.uploader().push, "a push")
        try:
            os.kill(push, signal.SIGKILL)
        except ProcessLookupError:
            continue
        wait_for(lambda push=push: view.uploader().push != push, "the uploader notices")
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: no_uploader(run_dir), "the uploader has finished and left")
    check_oracle(run_dir, hub, tmp_path / "journals")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"repo_id": "a/b/c"}, "repo_id 'a/b/c' is not valid"),
        ({"repo_id": "me/run.git"}, "is not valid"),
        ({"repo_id": 7}, "must be a string"),
        ({"repo_type": "modle"}, "Use one of model, dataset, space"),
        ({"commit_every": 0}, "a number of minutes above 0"),
        ({"path_in_repo": "../up"}, "leads out of the repository"),
    ],
)
def test_bad_settings_are_refused_before_training_starts(run_dir, argument, message):
    """The constructor raises a clear error, without network and without a file on disk."""
    from hf_mpwriter import HFSummaryWriter

    with pytest.raises(SettingsError, match=message):
        HFSummaryWriter(**{"repo_id": "me/run", "logdir": str(run_dir)} | argument)
    assert not run_dir.exists()


def test_the_recorded_destination_is_kept(run_dir):
    """A second destination for one run directory is an error that names both."""
    Spool(str(run_dir)).create()
    Spool(str(run_dir)).record_destination(Destination("https://hub", "me/one"))
    from hf_mpwriter import HFSummaryWriter
    from hf_mpwriter.base.errors import DestinationError

    with pytest.raises(DestinationError, match="recorded for https://hub/me/one@main, not for"):
        HFSummaryWriter("me/two", logdir=str(run_dir))


def test_a_logdir_that_is_a_file_and_a_foreign_spool_are_refused(tmp_path):
    """The errors name what to do, before training starts."""
    from hf_mpwriter import SummaryWriter
    from hf_mpwriter.base.errors import LogdirError, SpoolFormatError

    (tmp_path / "file").write_text("x")
    with pytest.raises(LogdirError, match="is a file"):
        SummaryWriter(str(tmp_path / "file"))
    with pytest.raises(LogdirError, match="is a file"):
        SummaryWriter(str(tmp_path / "file" / "below"))
    Spool(str(tmp_path / "other")).create()
    (tmp_path / "other" / ".hf_mpwriter" / "FORMAT").write_text("hf-mpwriter 99\n")
    with pytest.raises(SpoolFormatError, match="'hf-mpwriter 99'"):
        SummaryWriter(str(tmp_path / "other"))


def test_the_ledger_of_another_destination_is_not_trusted(tmp_path):
    """A spool that was copied to a new destination starts from nothing."""
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    os.makedirs(spool.host("h").root)
    copied = ledger.Ledger(Destination("https://hub", "me/one"), "me/one", {"a": ledger.Held(5, "00", "c", 1.0)})
    copied.save(spool.host("h").ledger)
    assert ledger.load(spool, Destination("https://hub", "me/one")).length("a") == 5
    assert ledger.load(spool, Destination("https://hub", "me/two")).length("a") == 0
