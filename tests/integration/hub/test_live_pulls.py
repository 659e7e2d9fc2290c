"""A pull continues the repository by what the live bucket has: what was logged up to seconds before a loss."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from huggingface_hub import HfApi
from programs import wait_for
from runs import LOG_AND_EXIT, LOG_FOR_EVER, check_oracle, finished, in_bucket, living_uploader, run
from support import event_file

from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.pulled import pulled_files

BUCKET = "me/run-live"
FOLDER = "tensorboard/exp1"
NAME = "events.out.tfevents.1000000000.there.1.0123abcd"
LOGS = LOG_FOR_EVER.replace("commit_every=0.01", "commit_every=60, live=True").replace("0.002", "0.01")


@pytest.fixture
def stored(hub, api, tmp_path):
    """Store event files in a repository and its bucket; return their contents."""
    api.create_repo("me/run")
    bucket = HfApi(endpoint=hub.endpoint)
    bucket.create_bucket(BUCKET)

    def store(name: str, there: int, live: int, tag: str = "loss") -> tuple[bytes, bytes]:
        contents = []
        for count, kind in ((there, "loss"), (live, tag)):
            event_file(tmp_path / "stored", count, kind)
            contents.append((tmp_path / "stored").read_bytes())
        api.upload_file(path_or_fileobj=contents[0], path_in_repo=f"{FOLDER}/{name}", repo_id="me/run")
        bucket.batch_bucket_files(BUCKET, add=[(contents[1], f"{FOLDER}/{name}")])
        return contents[0], contents[1]

    return store


def here(run_dir):
    """Bytes of the event files here."""
    return {str(path.relative_to(run_dir)): path.stat().st_size for path in run_dir.rglob("events.out*")}


def live(hub):
    """The same of the bucket."""
    return {path.removeprefix(f"{FOLDER}/"): size for path, size in in_bucket(hub).items()}


def test_a_machine_that_is_lost_loses_no_more_than_the_bucket_lacks(hub, run_dir, tmp_path, start):
    """Its processes are killed, its disk is gone. The run goes on elsewhere, and the repository has all at its end."""
    worker = start(LOGS, run_dir, tmp_path / "journals")
    committed = wait_for(lambda: live(hub), "a first round")
    wait_for(lambda: all(size > committed[path] for path, size in live(hub).items()), "a second one")
    os.kill(uploader := living_uploader(run_dir), signal.SIGKILL)
    os.kill(worker.pid, signal.SIGKILL)
    worker.finish()
    wait_for(lambda: not os.path.exists(f"/proc/{uploader}/exe"), "its uploader has ended")
    shutil.rmtree(run_dir)
    elsewhere = tmp_path / "elsewhere" / run_dir.name
    result = run("pull", elsewhere, "--repo-id", "me/run")
    assert result.exit_code == 0, result.output
    assert f"more came from the bucket {BUCKET}." in result.output
    assert here(elsewhere) == live(hub)
    assert pulled_files(Spool(str(elsewhere))) == here(elsewhere)
    assert f"next: hf-mpwriter sync {elsewhere}" in run("status", elsewhere).output
    assert start(LOG_AND_EXIT, elsewhere, 5).finish()[0] == 0
    check_oracle(elsewhere, hub)
    assert run("verify", elsewhere).exit_code == 0
    assert run("pull", elsewhere).output.count("came from the bucket") == 0


def test_only_what_continues_the_repository_comes(hub, run_dir, stored):
    """A longer file that differs is named, and stays in the bucket; a shorter one counts for nothing."""
    (_, longer), (kept, _), (whole, _) = (
        stored(NAME, 3, 9),
        stored(f"rank_00001/{NAME}", 3, 9, "another"),
        stored(f"rank_00002/{NAME}", 9, 3),
    )
    result = run("pull", run_dir, "--repo-id", "me/run")
    assert result.exit_code == 0, result.output
    assert f"rank_00001/{NAME}: the bucket {BUCKET} has another file of this name" in result.output
    files = {path: (run_dir / path).read_bytes() for path in here(run_dir)}
    assert files == {NAME: longer, f"rank_00001/{NAME}": kept, f"rank_00002/{NAME}": whole}


def test_what_here_is_not_of_the_run_is_left_alone(hub, run_dir, stored):
    """A link, a directory and another content are named."""
    for place in ("", "rank_00001/", "rank_00002/"):
        stored(f"{place}{NAME}", 3, 9)
    assert run("pull", run_dir, "--repo-id", "me/run", "--worker", "main").exit_code == 0
    places = [run_dir / f"rank_0000{rank}" / NAME for rank in (1, 2)]
    for place in places:
        place.parent.mkdir()
    places[0].symlink_to(run_dir / NAME)
    places[1].mkdir()
    before = (run_dir / NAME).read_bytes()
    assert run("pull", run_dir).exit_code == 1
    assert (places[0].is_symlink(), places[1].is_dir()) == (True, True)
    assert (run_dir / NAME).read_bytes() == before


@pytest.mark.parametrize("status", [404, 501, 400])
def test_a_pull_without_a_bucket_is_as_ever(hub, run_dir, stored, status):
    """One that is not there, or a Hub without any, is not worth a line; one that does not answer is."""
    stored(NAME, 3, 9)
    hub.fault(f"GET /api/buckets {status} times=30")
    result = run("pull", run_dir, "--repo-id", "me/run")
    assert result.exit_code == 0, result.output
    assert ("refuses" in result.output) == (status == 400)
    assert "came from the bucket" not in result.output


def test_clean_deletes_from_the_bucket_what_the_repository_has(hub, run_dir, stored):
    """What it has less of, or not at all, stays, and so does what a dry run names."""
    stored(NAME, 9, 3)
    stored(f"rank_00001/{NAME}", 3, 9)
    before = live(hub)
    shown = run("clean", "--live", "me/run", "--dry-run")
    assert (shown.exit_code, live(hub)) == (0, before), shown.output
    done = run("clean", "--live", "me/run")
    assert done.output.replace("Deleted", "Would delete") == shown.output
    assert "Deleted 1 file (" in done.output
    assert "Kept 1 file: 1 of which me/run has less." in done.output
    assert live(hub).keys() == {f"rank_00001/{NAME}"}
    assert run("clean", "--live", "me/run").output.startswith("Deleted nothing of me/run-live")
    assert "Nothing was deleted: " in run("clean", "--live", "me/other").output


def test_clean_leaves_the_bucket_of_a_run_that_is_logged_alone(hub, run_dir, tmp_path, start):
    """Its next round goes on from there. After its end nothing keeps the files."""
    some = LOGS.replace("while True", "while step < 50") + "\ntime.sleep(1000)"
    worker = start(some, run_dir, tmp_path / "journals")
    wait_for(lambda: live(hub), "a first round")
    assert run("sync", run_dir).exit_code == 0
    wait_for(lambda: "1 of runs that are logged here" in run("clean", "--live", "me/run").output, "both have all")
    assert live(hub)
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: finished(run_dir), "the end")
    assert run("clean", "--live", "me/run").exit_code == 0
    assert live(hub) == {}
