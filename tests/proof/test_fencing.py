"""Fencing: whatever becomes of a push and of its request, no commit of ours shrinks a file or sends it twice.

Late requests are real: the local Hub holds a commit whose client is then killed, and applies it later.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from programs import wait_for
from runs import (
    LOG_AND_EXIT,
    LOG_AT_ONCE,
    LOG_FOR_EVER,
    acknowledged,
    all_acknowledged,
    check_oracle,
    event_paths,
    finished,
    hub_view,
    living_uploader,
    no_uploader,
    sync,
    uploader_pid,
)
from waits import timing

from hf_mpwriter import testing
from hf_mpwriter.base import state
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.events import framing
from hf_mpwriter.spool import outbox
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.uploader import pacing

SETTLE = 10.0  # seconds, in place of two minutes
WAITS = {"HF_MPWRITER_TIMING": timing(heartbeat_every=0.5, moved_retry=0.6)}
QUICK = f"""
from hf_mpwriter.push import process
from hf_mpwriter.system import launch
from hf_mpwriter.uploader import in_flight
in_flight.SETTLE_TIME = {SETTLE}
ONCE = "exec(" + repr('''
from hf_mpwriter.push import process
set_environment = process._set_environment
def set_and_change(*arguments):
    set_environment(*arguments)  # the client reads it when it is imported
    from hf_mpwriter.push import commit
    commit.MOVED_TRIES = 1
process._set_environment = set_and_change
''') + ");main()"
launch.BOOTS["push"] = launch.BOOTS["push"].replace("main()", ONCE)
"""
HASTE = f"exec({QUICK!r});main()"
IMPATIENT = f"""
from hf_mpwriter.system import launch
launch.BOOTS["uploader"] = launch.BOOTS["uploader"].replace("main()", {HASTE!r})
"""


def held(hub) -> int:
    """How many requests the Hub holds."""
    return sum(standing.held for standing in hub.faults())


def hits(hub) -> int:
    """How many requests a fault has struck."""
    return sum(standing.hits for standing in hub.faults())


def answers(hub, status: int) -> int:
    """How many commits the Hub has answered with this status."""
    lines = Path(hub.root, "requests.jsonl").read_text().splitlines()
    return sum(1 for line in map(json.loads, lines) if "/commit/" in line["path"] and line["status"] == status)


def push_pid(run_dir) -> int:
    """Pid of the push that runs."""
    return HubSink(Spool(str(run_dir))).status().push


def kill(worker) -> None:
    """Kill the worker, as a scheduler does."""
    os.kill(worker.pid, signal.SIGKILL)


def growing(run_dir) -> int:
    """Bytes of all event files."""
    return sum(path.stat().st_size for path in Path(run_dir).rglob("*tfevents*"))


@pytest.mark.parametrize("victim", ["push", "uploader, spool"])
def test_a_late_request_of_a_killed_push_is_refused_once_the_branch_has_moved(hub, run_dir, tmp_path, start, victim):
    """Its successor sends more at once, even if it does not know of it (its part of the spool is gone)."""
    journals = tmp_path / "journals"
    worker = start(LOG_FOR_EVER, run_dir, journals)
    wait_for(lambda: acknowledged(run_dir), "a commit")
    hub.fault("POST /commit/ hang")
    wait_for(lambda: held(hub), "a commit is held")
    first = living_uploader(run_dir)
    if victim == "push":
        os.kill(wait_for(lambda: push_pid(run_dir), "a push"), signal.SIGKILL)
    else:
        os.kill(worker.pid, signal.SIGSTOP)  # it starts no other one meanwhile
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: no_uploader(run_dir), "it has ended")
        shutil.rmtree(next(Path(run_dir).glob(".hf_mpwriter/hosts/*")), ignore_errors=True)
        os.kill(worker.pid, signal.SIGCONT)
    before = acknowledged(run_dir)
    wait_for(lambda: acknowledged(run_dir) > before, "the successor sends more")
    assert held(hub) == 1, "the request is still under way"
    refused = answers(hub, 412)
    hub.clear_faults()
    wait_for(lambda: answers(hub, 412) > refused, "the late request is refused")
    kill(worker)
    wait_for(lambda: finished(run_dir), "the end")
    check_oracle(run_dir, hub, journals)


def test_a_late_request_without_a_parent_finds_nothing_longer(hub, run_dir, tmp_path, start):
    """A busy branch has forced a push to go without a parent; its uploader dies: nothing longer is sent for a while."""
    journals = tmp_path / "journals"
    worker = start(IMPATIENT + LOG_FOR_EVER, run_dir, journals, env=WAITS)
    wait_for(lambda: acknowledged(run_dir), "a commit")
    hub.fault(f"POST /commit/ 412 times={pacing.MOVED_LIMIT}")
    hub.fault("POST /commit/ hang")
    wait_for(lambda: held(hub), "a commit is held")
    assert _unfenced(run_dir), "it has no parent"
    before, first = acknowledged(run_dir), living_uploader(run_dir)
    killed = time.time()
    os.kill(first, signal.SIGKILL)
    lengths = {file.path: file.length for file in _unfenced(run_dir)}
    wait_for(lambda: uploader_pid(run_dir) not in (0, first), "a successor")
    view, applied = HubSink(Spool(str(run_dir))), answers(hub, 200)
    wait_for(lambda: view.status().beat > killed + SETTLE / 2, "time to send more")
    assert growing(run_dir) > sum(lengths.values())
    there = hub_view(hub).tree("main")
    longer = [path for path, length in lengths.items() if there[path].size > length]
    assert not longer or time.time() > killed + SETTLE, "the same once more, and no more"
    hub.clear_faults()
    wait_for(lambda: answers(hub, 200) > applied, "the late request is applied")
    wait_for(lambda: acknowledged(run_dir) > before, "it goes on")
    kill(worker)
    wait_for(lambda: finished(run_dir), "the end")
    check_oracle(run_dir, hub, journals)


def _unfenced(run_dir) -> tuple[LocalFile, ...]:
    """The files of a push that does not name its parent, () if there is none."""
    spool = Spool(str(run_dir))
    for host in map(spool.host, spool.host_ids()):
        found = outbox.interrupted(host)
        if found is not None and not found.fenced:
            return state.load(outbox.Batch, Path(host.outbox, f"{found.batch:08d}.json").read_bytes()).files
    return ()


@pytest.mark.parametrize("fault", ["503 when=after", "close when=after"])
def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, run_dir, start, fault):
    """The Hub has it, the client does not know: it reads back, and every file is committed once."""
    hub.fault(f"POST /commit/ {fault}")
    start(LOG_AT_ONCE, run_dir, 100).succeed()
    wait_for(lambda: finished(run_dir), "the end")
    assert hits(hub) == 1
    assert [file.commits for file in check_oracle(run_dir, hub).files.values()] == [1]


def delete_folder(api) -> None:
    """Delete the folder of the run."""
    api.delete_folder("tensorboard", "me/run")


def squash(api) -> None:
    """Squash all commits into one."""
    api.super_squash_history("me/run")


def delete_branch(api) -> None:
    """Delete the branch, which no other user creates again."""
    api.delete_branch("me/run", branch="exp")


@pytest.mark.parametrize("change", [delete_folder, squash, delete_branch])
def test_what_others_do_to_the_destination_during_the_run_costs_nothing(hub, run_dir, tmp_path, start, api, change):
    """What they rewrote goes on, and so does what they deleted, on request; a branch is made anew on request."""
    branch = "exp" if change is delete_branch else "main"
    source = LOG_FOR_EVER.replace('"me/run",', f'"me/run", repo_revision="{branch}",')
    worker = start(source, run_dir, tmp_path / "journals")
    wait_for(lambda: acknowledged(run_dir), "a commit")
    pid = living_uploader(run_dir)
    change(api)
    is_gone = change is delete_branch
    if is_gone:
        wait_for(lambda: "--create" in HubSink(Spool(str(run_dir))).status().hint, "the destination is refused")
        assert sync(run_dir, "--create", "--timeout", "150").exit_code in (0, 1)  # it is logged all the time
    if change is delete_folder:
        wait_for(lambda: any("deleted at" in line for line in notices(run_dir)), "it is told")
        assert event_paths_on_hub(hub, branch) == []
        assert sync(run_dir, "--again", "--timeout", "150").exit_code in (0, 1)
    changed = growing(run_dir)
    wait_for(lambda: acknowledged(run_dir) > changed, "it goes on")
    assert is_gone or uploader_pid(run_dir) == pid
    kill(worker)
    wait_for(lambda: finished(run_dir), "the end")
    report = testing.check(
        str(run_dir), hub_view(hub, branch=branch), testing.read_journals(str(tmp_path / "journals"))
    )
    gone = [problem for problem in report.problems if problem.endswith("vanished from the Hub")]
    assert report.problems == (gone if change is delete_folder else []), "the history tells what they did"
    assert event_paths_on_hub(hub, branch) == event_paths(run_dir)


def event_paths_on_hub(hub, branch: str) -> list[str]:
    """The event files on a branch."""
    return sorted(path for path in hub.store.tree("model", "me/run", branch) if "tfevents" in path)


def notices(run_dir) -> list[str]:
    """What the uploader has told."""
    return [notice.text for notice in HubSink(Spool(str(run_dir))).status().notices]


@pytest.mark.parametrize("remembers", [True, False], ids=["ledger", "no ledger"])
def test_a_local_file_that_a_backup_made_shorter_does_not_shrink_the_hubs(hub, run_dir, start, remembers):
    """A restore brings back a prefix of it, with its ledger or without: the Hub keeps all, the new file is sent."""
    start(LOG_AND_EXIT, run_dir, 50).succeed()
    wait_for(lambda: finished(run_dir), "the first run is over")
    (path,) = Path(run_dir).glob("*tfevents*")
    whole = Path(path).read_bytes()
    with open(path, "rb") as file:
        cut = framing.whole_length(file.fileno(), end=len(whole) // 2)
    os.truncate(path, cut)
    if not remembers:
        next(Path(run_dir).glob(".hf_mpwriter/hosts/*/ledger.json")).unlink()
    start(LOG_AND_EXIT, run_dir, 70).succeed()
    wait_for(lambda: no_uploader(run_dir), "the second run is over")
    old = f"tensorboard/exp1/{path.name}"
    assert hub.store.read_blob("model", "me/run", old) == whole
    path.write_bytes(whole)
    check_oracle(run_dir, hub)
    assert all_acknowledged(run_dir)
