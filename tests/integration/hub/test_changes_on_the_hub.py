"""The uploader against a Hub that others change too: deleted, rewritten, moved on; and its own leaving."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hanging import dead, why_not
from programs import wait_for
from runs import (
    LOG_AND_EXIT,
    LOG_FOR_EVER,
    acknowledged,
    check_oracle,
    finished,
    living_uploader,
    no_uploader,
    run,
    uploader_pid,
)

from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.spool.layout import Spool


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
    view = HubSink(Spool(str(run_dir)))
    before = view.status()
    wait_for(lambda: view.status().beat > before.beat + 1, "the uploader goes on ticking")
    assert view.status().commits == before.commits
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
    assert worker.process.stdout.readline() == "logged\n"
    if not readable:
        log = next(run_dir.glob(".hf_mpwriter/hosts/*/uploader.log"))
        wait_for(lambda: "cannot scan the event files" in log.read_text(), "the uploader meets it")
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    check_oracle(run_dir, hub, tmp_path / "journals")
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
    (run_dir / "secret").mkdir(parents=True)
    options = "repo_private=True, repo_ignore_patterns='secret/*', logdir="
    start(LOG_AND_EXIT.replace("logdir=", options), run_dir, 20).succeed()
    start("import sys, tensorboardX\ntensorboardX.SummaryWriter(sys.argv[1]).close()", run_dir / "secret").succeed()
    wait_for(lambda: finished(run_dir), "the run is over")
    api.delete_repo("me/run")
    assert run("sync", "--create", run_dir).exit_code == 0
    assert api.model_info("me/run").private
    assert not [path for path in api.list_repo_files("me/run") if "secret" in path]


def test_a_repository_without_a_namespace_keeps_the_name_that_the_first_push_returned(hub, run_dir, tmp_path, start):
    """The short name may lead to another repository later: no later request has it, in no later start."""
    worker = start(LOG_FOR_EVER.replace('"me/run"', '"run"'), run_dir, tmp_path / "journals")
    wait_for(lambda: acknowledged(run_dir), "the first commit")
    known, first, before = len(short_names(hub)), living_uploader(run_dir), acknowledged(run_dir)
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


def names_there(hub) -> set[str]:
    """The names of the files of a run on the Hub."""
    paths = hub.store.tree("model", "me/run", "main")
    return {os.path.basename(path) for path in paths if path.startswith("tensorboard/")}


ALL_FILES = LOG_AND_EXIT.replace("logdir=", "repo_allow_patterns=None, logdir=")


@pytest.mark.parametrize("is_purged", [False, True], ids=["history", "squashed"])
def test_what_a_user_has_deleted_stays_deleted_until_it_is_asked_for(hub, run_dir, start, api, is_purged):
    """An event file and an attachment, though the next start adds to the run; told once, `sync --again` sends them."""
    run_dir.mkdir(parents=True)
    (run_dir / "weights.bin").write_text("secret")
    start(ALL_FILES, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the first start is over")
    first, deleted = names_there(hub), ("weights.bin", *(path.name for path in run_dir.glob("*tfevents*")))
    assert first == set(deleted)
    for name in deleted:
        api.delete_file(f"tensorboard/{run_dir.name}/{name}", "me/run")
    if is_purged:
        api.super_squash_history("me/run")
    _, _, told = start(ALL_FILES, run_dir, 20).finish()
    wait_for(lambda: finished(run_dir), "the second start is over")
    assert told.count("2 files, such as events") == told.count("were deleted at") == 1, told
    second = names_there(hub)
    assert (len(second), second & first) == (1, set())
    plain, shown = run("sync", run_dir), run("status", run_dir)
    assert plain.exit_code == shown.exit_code == 0, plain.output + shown.output
    assert "but 2 files that others have deleted there" in plain.output
    assert "deleted on the Hub: weights.bin. To send it again: hf-mpwriter sync" in shown.output
    assert "deleted at" not in shown.output, "a later uploader has it from the ledger"
    assert names_there(hub) == second
    assert run("sync", run_dir, "--again").exit_code == 0
    assert names_there(hub) > first
    assert "deleted on the Hub" not in run("status", run_dir).output


PUSH_WHEN_TOLD = """
import os, sys
os.environ["HF_MPWRITER_TIMING"] += " asked_within=0"
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=60)
for step in range(20):
    writer.add_scalar("loss", 0.5, step)
for wait in sys.stdin:
    pushed, status = writer.push(wait=float(wait)), writer.status()
    print(pushed, status.on_hub == status.logged, status.on_hub, bool(status.error), flush=True)
writer.close(wait=False)
"""


@contextlib.contextmanager
def pushing(run_dir):
    """A training that has logged all it will, and a function that has it push: what push and status say."""
    command = [sys.executable, "-c", PUSH_WHEN_TOLD, str(run_dir)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def push(wait: float = 100.0) -> list[str]:
        print(wait, file=process.stdin, flush=True)
        return process.stdout.readline().split()

    with process:
        try:
            yield push
        finally:
            process.stdin.close()


def commits_there(api) -> int:
    """How many commits the branch has."""
    return len(api.list_repo_commits("me/run"))


def test_a_push_without_new_data_asks_the_hub(hub, run_dir, api):
    """Nothing is committed for that; files that others have deleted there are not counted as there, nor as missing.

    A repository that is gone is a failure; one that was made anew gets everything.
    """
    with pushing(run_dir) as push:
        pushed, is_all, length, _ = push()
        assert (pushed, is_all) == ("True", "True")
        commits, asked = commits_there(api), requests_for_the_head(hub)
        assert push() == ["True", "True", length, "False"]
        assert requests_for_the_head(hub) > asked
        assert commits_there(api) == commits
        api.delete_folder(f"tensorboard/{run_dir.name}", "me/run")
        assert push() == ["True", "False", "0", "False"]
        assert "deleted on the Hub: events" in run("status", run_dir).output
        assert names_there(hub) == set()
        api.delete_repo("me/run")
        assert push()[::3] == ["False", "True"]


def test_a_push_that_does_not_wait_is_true_once_the_hub_was_asked_after_an_earlier_one(hub, run_dir):
    """Its own request is answered later than it returns, also where no answer counts as one of a moment ago."""
    with pushing(run_dir) as push:
        assert push()[0] == "True"
        asked = requests_for_the_head(hub)
        assert push(wait=0)[0] == "False"
        wait_for(lambda: push(wait=0)[0] == "True", "the Hub was asked")
        assert requests_for_the_head(hub) > asked


def test_a_push_without_new_data_waits_for_a_hub_that_fails(hub, run_dir):
    """It is asked again after a while."""
    with pushing(run_dir) as push:
        before = push()
        hub.fault("GET /revision/ 503 times=3")
        assert push()[:3] == before[:3]
        assert hub.faults()[0].hits == 3


def test_a_push_without_new_data_fills_a_repository_that_was_made_anew(hub, run_dir, api):
    """It was deleted, and made by somebody else, since the last push."""
    with pushing(run_dir) as push:
        before = push()
        api.delete_repo("me/run")
        api.create_repo("me/run")
        assert push() == before
        assert len(names_there(hub)) == 1


def requests_for_the_head(hub) -> int:
    """Requests that asked for the head of the branch."""
    lines = map(json.loads, Path(hub.root, "requests.jsonl").read_text().splitlines())
    return sum(line["path"].startswith("/api/models/me/run/revision/main") for line in lines)


def test_a_repository_that_was_made_anew_gets_everything(hub, run_dir, start, api):
    """By whoever, with the same name: what is not there was not deleted from it."""
    start(LOG_AND_EXIT, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the first start is over")
    api.delete_repo("me/run")
    api.create_repo("me/run")
    start(LOG_AND_EXIT, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the second start is over")
    assert names_there(hub) == {path.name for path in run_dir.glob("*tfevents*")}
    assert len(names_there(hub)) == 2
