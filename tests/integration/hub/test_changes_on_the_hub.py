"""The uploader against a Hub that others change too: deleted, rewritten, moved on; and its own leaving."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import pytest
from hanging import dead, why_not
from programs import DEADLINE, wait_for
from runs import (
    LOG_AND_EXIT,
    LOG_AT_ONCE,
    LOG_FOR_EVER,
    acknowledged,
    check_oracle,
    event_paths,
    finished,
    living_uploader,
    no_uploader,
    sync,
    uploader_pid,
)

from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress


def test_what_others_deleted_on_the_hub_is_sent_again(hub, run_dir, start, api):
    """The folder is deleted between two starts: the next push notices that the head moved and sends all again."""
    start(LOG_AND_EXIT, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the first run is over")
    api.delete_folder("tensorboard", "me/run")
    assert not [path for path in api.list_repo_files("me/run") if "tfevents" in path]
    start(LOG_AND_EXIT, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the second run is over")
    assert sorted(path for path in api.list_repo_files("me/run") if "tfevents" in path) == event_paths(run_dir)


def test_a_repository_that_was_deleted_is_created_again_only_on_request(hub, run_dir, start, api):
    """It may have been deleted for what is in it: one message names what helps, and `sync --create` does it."""
    start(LOG_AND_EXIT, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the first run is over")
    api.delete_repo("me/run")
    code, _, errors = start(LOG_AND_EXIT, run_dir, 20).finish()
    assert (code, errors.count("sync --create")) == (0, 1), errors
    done = sync(run_dir)
    assert done.returncode == 1
    assert "is gone" in done.stderr
    assert not api.repo_exists("me/run")
    done = sync(run_dir, "--create")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: finished(run_dir), "the second run is over")
    assert len(check_oracle(run_dir, hub).files) == 2
    start(LOG_AND_EXIT, run_dir, 20).succeed()


def test_a_repository_that_is_deleted_under_a_live_run_stays_deleted(hub, run_dir, tmp_path, start, api):
    """Training goes on and everything is kept; the status names what helps."""
    start(LOG_FOR_EVER, run_dir, tmp_path / "journals")
    wait_for(lambda: acknowledged(run_dir), "a commit")
    api.delete_repo("me/run")
    wait_for(lambda: "sync --create" in Progress(Spool(str(run_dir))).uploader().hint, "the destination is refused")
    assert not api.repo_exists("me/run")
    assert sync(run_dir, "--create", "--timeout", "150").returncode in (0, 1)  # it is logged all the time
    wait_for(lambda: len(hub.store.commits("model", "me/run")) > 2, "commits in the new one")


def test_a_branch_that_was_deleted_is_not_created_again(hub, run_dir, start, api):
    """Nor is it taken for empty."""
    source = LOG_AND_EXIT.replace('"me/run",', '"me/run", repo_revision="exp/1",')
    start(source, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the first run is over")
    api.delete_branch("me/run", branch="exp/1")
    code, _, errors = start(source, run_dir, 20).finish()
    assert (code, errors.count("exp/1) at")) == (0, 1), errors
    assert [branch.name for branch in api.list_repo_refs("me/run").branches] == ["main"]


@pytest.mark.parametrize("exists", [True, False])
def test_what_is_to_be_private_is_not_sent_to_a_public_repository(hub, run_dir, start, api, exists):
    """One clear line, and nothing leaves; where the repository does not exist it is created private."""
    if exists:
        api.create_repo("me/run", private=False)
    source = LOG_AND_EXIT.replace('"me/run",', '"me/run", repo_private=True,')
    code, _, errors = start(source, run_dir, 20).finish()
    assert (code, errors.count("is PUBLIC, and repo_private=True")) == (0, int(exists)), errors
    there = [path for path in api.list_repo_files("me/run") if "tfevents" in path]
    assert there == ([] if exists else event_paths(run_dir))


def test_a_clock_that_is_two_hours_ahead_on_another_host_does_not_hold_back_sync(hub, run_dir, start):
    """Its uploader sent the beginning and is gone; this host sent the rest."""
    start(LOG_AND_EXIT, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the first run is over")
    spool = Spool(str(run_dir))
    other = ledger.load(spool, spool.destination())
    other.files = {
        path: dataclasses.replace(held, length=held.length // 2, sha256="0" * 64, time=held.time + 7200)
        for path, held in other.files.items()
    }
    other.checks = {"another-00000000": int(time.time() * 1000) + 7_200_000}
    os.mkdir(spool.host("another-00000000").root)
    other.save(spool.host("another-00000000").ledger)
    for _ in range(2):
        done = sync(run_dir)
        assert done.returncode == 0, done.stderr
    check_oracle(run_dir, hub)


def test_a_ledger_of_a_day_ahead_revives_nothing_that_was_deleted(hub, run_dir, start, api):
    """Another host had sent it all, then others deleted it, and this host noticed: it is sent again."""
    start(LOG_AND_EXIT, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the first run is over")
    spool = Spool(str(run_dir))
    other = ledger.load(spool, spool.destination())
    other.files = {path: dataclasses.replace(held, time=held.time + 86400) for path, held in other.files.items()}
    os.mkdir(spool.host("another-00000000").root)
    other.save(spool.host("another-00000000").ledger)
    api.delete_folder("tensorboard", "me/run")
    assert sync(run_dir).returncode == 0
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert sorted(path for path in api.list_repo_files("me/run") if "tfevents" in path) == event_paths(run_dir)
    merged = ledger.load(spool, spool.destination())
    assert {held.generation for held in merged.files.values()} == {1}


def test_a_copy_that_another_user_rewrote_is_not_overwritten(hub, run_dir, tmp_path, start, api):
    """The Hub's copy is no prefix of the local file any more: the path is quarantined, never overwritten."""
    worker = start(LOG_FOR_EVER, run_dir, tmp_path / "journals")
    wait_for(lambda: acknowledged(run_dir), "a commit")
    (path,) = event_paths(run_dir)
    api.upload_file(path_or_fileobj=b"mine", path_in_repo=path, repo_id="me/run")

    def quarantined():
        return Progress(Spool(str(run_dir))).ledger().quarantined

    wait_for(quarantined, "the path is quarantined")
    why = [entry.reason for entry in quarantined().values()]
    assert why == ["the Hub's copy (4 bytes) is not the beginning of the local file"]
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert hub.store.read_blob("model", "me/run", path, "main") == b"mine"


def test_another_committer_on_the_same_branch_does_no_harm(hub, run_dir, tmp_path, start, api):
    """Commits of others between ours: ours are made on the new head, theirs are kept."""
    worker = start(LOG_FOR_EVER, run_dir, tmp_path / "journals")
    for number in range(4):
        before = acknowledged(run_dir)
        wait_for(lambda before=before: acknowledged(run_dir) > before, "a commit of ours")
        api.upload_file(path_or_fileobj=b"%d" % number, path_in_repo=f"other/{number}.txt", repo_id="me/run")
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: finished(run_dir), "the end")
    check_oracle(run_dir, hub, tmp_path / "journals")
    assert [path for path in api.list_repo_files("me/run") if path.startswith("other/")] == [
        f"other/{number}.txt" for number in range(4)
    ]


def test_an_unreadable_ledger_is_moved_aside_and_read_back_from_the_hub(hub, run_dir, start):
    """Garbage in ledger.json: nothing is sent twice, the lengths come from the Hub."""
    start(LOG_AT_ONCE, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the first run is over")
    path = next(Path(run_dir).glob(".hf_mpwriter/hosts/*/ledger.json"))
    path.write_text("not json")
    start(LOG_AT_ONCE, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the second run is over")
    report = check_oracle(run_dir, hub)
    assert [file.commits for file in report.files.values()] == [1, 1]
    assert list(path.parent.glob("ledger.json.unreadable-*"))
    spool = Spool(str(run_dir))
    assert sorted(ledger.load(spool, spool.destination()).files) == sorted(report.files)


def test_a_removed_spool_is_made_anew(hub, run_dir, tmp_path, start):
    """The user deletes `.hf_mpwriter` while training runs: the uploader leaves, the worker joins again, all arrives."""
    worker = start(LOG_FOR_EVER, run_dir, tmp_path / "journals")
    first = wait_for(lambda: uploader_pid(run_dir), "an uploader")
    wait_for(lambda: acknowledged(run_dir), "a commit")
    os.rename(run_dir / ".hf_mpwriter", tmp_path / "removed")
    wait_for(lambda: uploader_pid(run_dir) not in (0, first), "a new uploader on a new spool")
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: finished(run_dir), "the end")
    check_oracle(run_dir, hub, tmp_path / "journals")


def test_the_death_of_one_worker_does_not_make_the_others_push_at_once(hub, run_dir, tmp_path, start):
    """commit_every holds for the living members: a closed worker costs a commit, not one per tick."""
    source = LOG_FOR_EVER.replace("commit_every=0.01", "commit_every=5")
    worker = start(source, run_dir, tmp_path / "journals", env={"RANK": "0"})
    wait_for(lambda: list(run_dir.glob("*tfevents*")), "it is at work")
    start(LOG_AND_EXIT, run_dir, 20, env={"RANK": "1"}).succeed()
    wait_for(lambda: len(os.listdir(Spool(str(run_dir)).members)) == 1, "the member file of the dead is removed")
    view = Progress(Spool(str(run_dir)))
    commits, beat = view.uploader().commits, view.uploader().beat
    wait_for(lambda: view.uploader().beat > beat + 1, "the uploader goes on ticking")
    assert view.uploader().commits == commits
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: finished(run_dir), "the end")
    check_oracle(run_dir, hub, tmp_path / "journals")


@pytest.mark.parametrize(
    "readable", [True, pytest.param(False, marks=pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"))]
)
def test_sigterm_makes_the_uploader_push_once_more_and_leave(hub, run_dir, tmp_path, start, readable):
    """The uploader gets SIGTERM: what was logged before is on the Hub when it has left.

    This holds even while it waits for a mount in the run directory whose server has died, which may pass.
    """
    with dead(run_dir / "remote") if not readable else contextlib.nullcontext():
        _check_sigterm(hub, run_dir, tmp_path, start, readable=readable)


def _check_sigterm(hub, run_dir, tmp_path, start, *, readable):
    source = LOG_FOR_EVER.replace("commit_every=0.01", "commit_every=60").replace("time.sleep(0.002)", "break")
    worker = start(source + "\nprint('logged', flush=True); time.sleep(1000)", run_dir, tmp_path / "journals")
    pid = wait_for(lambda: uploader_pid(run_dir), "an uploader")
    if not readable:
        log = next(run_dir.glob(".hf_mpwriter/hosts/*/uploader.log"))
        wait_for(lambda: "cannot scan the event files" in log.read_text(), "the uploader meets it")
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    check_oracle(run_dir, hub, tmp_path / "journals")
    worker.process.kill()


CHILD_ON_REQUEST = """
import multiprocessing, os, sys, time
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=60)
def log_on_request(step):
    while not os.path.exists(f"{sys.argv[2]}{step}"):
        time.sleep(0.02)
    writer.add_scalar("loss", 1.0, step)
    print("logged", flush=True)
log_on_request(1)
log_on_request(2)
def log():
    log_on_request(3)
    writer.close()
child = multiprocessing.get_context("fork").Process(target=log)
child.start()
child.join()
print("closed", flush=True)
time.sleep(1000)
"""


def test_an_uploader_that_has_to_leave_sends_the_data_of_workers_that_end_meanwhile(hub, run_dir, tmp_path, start):
    """A child logs and ends while the last push is under way: no other worker would ask for its events."""
    worker = start(CHILD_ON_REQUEST, run_dir, tmp_path / "step")

    def log(step):
        (tmp_path / f"step{step}").touch()
        assert worker.process.stdout.readline() == "logged\n"

    log(1)
    wait_for(lambda: acknowledged(run_dir), "the first commit")
    hub.fault("POST /commit/ hang")
    log(2)
    os.kill(living_uploader(run_dir), signal.SIGTERM)
    wait_for(lambda: hub.faults()[0].held, "the last push is under way")
    log(3)
    assert worker.process.stdout.readline() == "closed\n"
    hub.clear_faults()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert sorted(file.hub_events for file in check_oracle(run_dir, hub).files.values()) == [1, 2]
    worker.process.kill()


def test_the_history_is_squashed_only_when_asked(hub, run_dir, start):
    """squash_history=True: after our commits the branch has one commit, with everything in it."""
    source = LOG_AND_EXIT.replace("logdir=", "squash_history=True, logdir=")
    start(source, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the first run is over")
    start(source, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the second run is over")
    assert check_oracle(run_dir, hub).commits == 1


def test_settings_outlive_the_member_files(hub, run_dir, start, api):
    """Private, with ignored files: `sync --create` after the run makes a deleted repository with the same settings."""
    import subprocess
    import sys

    (run_dir / "secret").mkdir(parents=True)
    options = "repo_private=True, repo_ignore_patterns='secret/*', logdir="
    start(LOG_AND_EXIT.replace("logdir=", options), run_dir, 20).succeed()
    start("import sys, tensorboardX\ntensorboardX.SummaryWriter(sys.argv[1]).close()", run_dir / "secret").succeed()
    wait_for(lambda: finished(run_dir), "the run is over")
    api.delete_repo("me/run")
    subprocess.run(
        [sys.executable, "-m", "hf_mpwriter", "sync", "--create", str(run_dir)], check=True, timeout=DEADLINE
    )
    assert api.model_info("me/run").private
    assert not [path for path in api.list_repo_files("me/run") if "secret" in path]


def test_a_refused_path_does_not_hold_back_the_others(hub, run_dir, start, api):
    """One copy was rewritten on the Hub: the others' files go on, and the uploader leaves."""
    import subprocess
    import sys

    start(LOG_AND_EXIT, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the run is over")
    (path,) = event_paths(run_dir)
    api.upload_file(path_or_fileobj=b"mine", path_in_repo=path, repo_id="me/run")
    start(LOG_AND_EXIT, run_dir, 20, env={"RANK": "1"}).succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves although a path is refused")
    assert [p for p in api.list_repo_files("me/run") if "rank_00001" in p]
    spool = Spool(str(run_dir))
    refused = Progress(spool).refused({Path(path).name: 1})
    assert "is not the beginning of the local file" in next(iter(refused.values()))
    command = [sys.executable, "-m", "hf_mpwriter", "sync", str(run_dir), "--timeout", "5"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (result.returncode, result.stderr.count("Traceback")) == (1, 0), result.stderr
    assert "is not the beginning of the local file" in result.stderr, "what was there is not there any more"


def test_a_foreign_file_under_our_name_is_not_overwritten(hub, run_dir, tmp_path, start, api):
    """The uploader trusts its own head, but not for a path that it has never sent: that path is quarantined."""
    worker = start(LOG_FOR_EVER, run_dir, tmp_path / "journals")
    wait_for(lambda: acknowledged(run_dir), "a commit")
    name = "events.out.tfevents.1000000000.there.1.0123abcd"
    theirs = b"theirs " * 100
    api.upload_file(path_or_fileobj=theirs, path_in_repo=f"tensorboard/exp1/sub/{name}", repo_id="me/run")
    before = acknowledged(run_dir)
    wait_for(lambda: acknowledged(run_dir) > before, "a commit on the new head")
    (run_dir / "sub").mkdir()
    source = next(run_dir.glob("*tfevents*")).read_bytes()[:200]
    (run_dir / "sub" / name).write_bytes(source)
    wait_for(lambda: Progress(Spool(str(run_dir))).ledger().quarantined, "the path is quarantined")
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert hub.store.read_blob("model", "me/run", f"tensorboard/exp1/sub/{name}", "main") == theirs


def test_a_repository_without_a_namespace_keeps_the_name_that_the_first_push_returned(hub, run_dir, tmp_path, start):
    """The short name may lead to another repository later: no later request has it, in no later start."""
    worker = start(LOG_FOR_EVER.replace('"me/run"', '"run"'), run_dir, tmp_path / "journals")
    wait_for(lambda: acknowledged(run_dir), "the first commit")
    known, first, before = len(short_names(hub)), uploader_pid(run_dir), acknowledged(run_dir)
    wait_for(lambda: acknowledged(run_dir) > before, "one more")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: uploader_pid(run_dir) not in (0, first), "another uploader")
    before = acknowledged(run_dir)
    wait_for(lambda: acknowledged(run_dir) > before, "one more")
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: finished(run_dir), "the end")
    assert short_names(hub)[known:] == []
    check_oracle(run_dir, hub, tmp_path / "journals", repo="local-user/run")


def short_names(hub) -> list[str]:
    """Paths of the requests that name the repository without its namespace."""
    lines = map(json.loads, Path(hub.root, "requests.jsonl").read_text().splitlines())
    return [line["path"] for line in lines if line["path"].startswith(("/api/models/run", "/run"))]
