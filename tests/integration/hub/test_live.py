"""The live lane: what is logged is in a bucket within seconds, beside the commits."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
from hub_clients import requests_of
from huggingface_hub import HfApi
from programs import wait_for
from runs import LOG_FOR_EVER, acknowledged, check_oracle, finished, in_bucket, no_uploader, run, uploader_pid

from hf_mpwriter.base.words import size_text
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.spool.layout import Spool

BUCKET = "me/run-live"
LOGS = LOG_FOR_EVER.replace("commit_every=0.01", "commit_every=60, live=True").replace("0.002", "0.01")
PRIVATE = LOGS.replace("live=True", "live=True, repo_private=True")


def on_disk(run_dir):
    """The same of the event files of a run, by the paths that they have in the repository."""
    found = (path for path in run_dir.rglob("*tfevents*") if path.is_file())
    return {f"tensorboard/{run_dir.name}/{path.relative_to(run_dir)}": path.stat().st_size for path in found}


def told(run_dir):
    """What the uploader has told of the bucket."""
    notices = HubSink(Spool(str(run_dir))).status().notices
    return [notice.line for notice in notices if notice.line.startswith("not live")]


def end(worker, run_dir):
    """Kill the worker, and wait until the uploader has left."""
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: finished(run_dir), "the end")


def test_what_is_logged_grows_in_the_bucket_between_two_commits(hub, run_dir, tmp_path, start):
    """One commit an hour; the bucket follows the file within seconds, and equals it at the end. So does `status`."""
    worker = start(LOGS, run_dir, tmp_path / "journals")
    wait_for(lambda: in_bucket(hub), "a first round")
    first = in_bucket(hub)
    wait_for(lambda: all(in_bucket(hub)[path] > size for path, size in first.items()), "a second round")
    assert f"in {BUCKET}, " in run("status", run_dir).output
    end(worker, run_dir)
    check_oracle(run_dir, hub, tmp_path / "journals")
    assert in_bucket(hub) == on_disk(run_dir)
    size = size_text(sum(in_bucket(hub).values()))
    assert re.search(rf"safe +{size}, everything, in {BUCKET}, .*; {size} in the bucket", run("status", run_dir).output)


def test_a_successor_goes_on_where_the_bucket_is(hub, run_dir, tmp_path, start):
    """A killed uploader leaves nothing that holds its successor up, which knows the bucket from its listing alone."""
    worker = start(LOGS, run_dir, tmp_path / "journals")
    wait_for(lambda: in_bucket(hub), "a first round")
    os.kill(killed := uploader_pid(run_dir), signal.SIGKILL)
    before = in_bucket(hub)
    wait_for(lambda: uploader_pid(run_dir) not in (0, killed), "a successor")
    wait_for(lambda: all(in_bucket(hub)[path] > size for path, size in before.items()), "its round")
    end(worker, run_dir)
    assert in_bucket(hub) == on_disk(run_dir)


def test_an_uploader_that_is_ended_while_no_commit_is_allowed_brings_all_to_the_bucket_first(
    hub, run_dir, tmp_path, start
):
    """The Hub has asked for an hour: the bucket is where the records are, if this machine goes now."""
    worker = start(LOGS, run_dir, tmp_path / "journals")
    wait_for(lambda: in_bucket(hub), "a first round")
    hub.fault("/commit/ 429 header=Retry-After:3600 times=0")
    sync = subprocess.Popen([sys.executable, "-m", "hf_mpwriter", "sync", run_dir, "--timeout", "1"])
    wait_for(lambda: HubSink(Spool(str(run_dir))).status().blocked_for, "the Hub has asked for a wait")
    sync.wait()
    os.kill(worker.pid, signal.SIGKILL)
    os.kill(uploader_pid(run_dir), signal.SIGTERM)
    wait_for(lambda: no_uploader(run_dir), "it has left")
    assert in_bucket(hub) == on_disk(run_dir)


def test_an_end_says_what_is_safe_and_when_it_is_on_the_hub(hub, run_dir, tmp_path):
    """The commit has to wait for an hour: the process, and `run`, tell it in the same words."""
    go, options = tmp_path / "go", ["--grace", "15", "--"]
    program = [sys.executable, "-c", LOGS.replace("while True", "import os\nwhile not os.path.exists(sys.argv[3])")]
    command = [sys.executable, "-m", "hf_mpwriter", "run", *options, *program, run_dir, tmp_path / "journals", go]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as training:
        wait_for(lambda: in_bucket(hub), "a first round")
        hub.fault("/commit/ 429 header=Retry-After:3600 times=0")
        assert run("sync", run_dir, "--timeout", "1").exit_code
        go.touch()
        told = training.communicate()[1].splitlines()
    safe = rf"safe in {BUCKET}, on the Hub at \d\d:\d\d"
    (end, report) = [line for line in told if "not on the Hub yet" in line]
    assert re.search(rf"What is on disk is {safe}; then: hf-mpwriter sync ", end), told
    assert re.search(rf"They are {safe}\. An uploader goes on", report), told
    assert in_bucket(hub) == on_disk(run_dir)
    os.kill(uploader_pid(run_dir), signal.SIGTERM)


def test_a_public_bucket_gets_nothing_of_a_private_repository(hub, run_dir, tmp_path, start):
    """It is told in one line with what helps, and the upload goes on."""
    HfApi(endpoint=hub.endpoint).create_bucket(BUCKET, private=False)
    worker = start(PRIVATE, run_dir, tmp_path / "journals")
    (line,) = wait_for(lambda: told(run_dir), "it is told")
    assert line.startswith(f"not live: the bucket {BUCKET} is public, and me/run is private. Make it private")
    end(worker, run_dir)
    check_oracle(run_dir, hub, tmp_path / "journals")
    assert (in_bucket(hub), told(run_dir)) == ({}, [line])


def test_a_bucket_with_another_run_in_the_same_folder_gets_nothing(hub, run_dir, tmp_path, start):
    """It is told once, and what is there stays as it is; the upload goes on."""
    api, theirs = HfApi(endpoint=hub.endpoint), f"tensorboard/{run_dir.name}/events.out.tfevents.1.elsewhere.7.0"
    api.create_bucket(BUCKET)
    api.batch_bucket_files(BUCKET, add=[(b"theirs", theirs)])
    worker = start(LOGS, run_dir, tmp_path / "journals")
    (line,) = wait_for(lambda: told(run_dir), "it is told")
    assert f"the bucket {BUCKET} has event files of another run in tensorboard/{run_dir.name}" in line
    end(worker, run_dir)
    check_oracle(run_dir, hub, tmp_path / "journals")
    assert (in_bucket(hub), told(run_dir)) == ({theirs: 6}, [line])


def test_the_bucket_of_a_private_repository_is_made_private(hub, run_dir, tmp_path, start):
    """Nobody else reads what only the owner of the repository may."""
    worker = start(PRIVATE, run_dir, tmp_path / "journals")
    wait_for(lambda: in_bucket(hub), "a first round")
    assert HfApi(endpoint=hub.endpoint).bucket_info(BUCKET).private
    end(worker, run_dir)


@pytest.mark.parametrize("answer", ["404", "403", "501"])
def test_an_account_without_buckets_is_told_so_and_uploads_as_ever(hub, run_dir, tmp_path, start, answer):
    """One line, whatever the refusal; commits come, and the uploader leaves."""
    hub.fault(f"/api/buckets/ {answer} times=0")
    worker = start(LOGS, run_dir, tmp_path / "journals")
    (line,) = wait_for(lambda: told(run_dir), "it is told")
    wait_for(lambda: acknowledged(run_dir), "a commit")
    end(worker, run_dir)
    check_oracle(run_dir, hub, tmp_path / "journals")
    assert told(run_dir) == [line]


def test_where_the_account_may_ask_too_seldom_it_is_off_and_says_so_once(tmp_path, run_dir, start, monkeypatch):
    """Commits go first: they come, and the bucket gets no request."""
    with LocalHub(tmp_path / "hub", requests=25) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        worker = start(LOGS, run_dir, tmp_path / "journals")
        wait_for(lambda: acknowledged(run_dir), "a commit")
        (line,) = wait_for(lambda: told(run_dir), "it is told")
        assert line.startswith("not live: 25 requests of the account in 5 min are too few")
        end(worker, run_dir)
        assert told(run_dir) == [line]
        assert not [one for one in requests_of(hub) if "/buckets/" in one["path"]]
