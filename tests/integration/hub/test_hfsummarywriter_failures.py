"""Failures of huggingface_hub's HFSummaryWriter that ours avoids; docs/differences.md lists all, by their numbers."""

from __future__ import annotations

import os

import pytest
from hub_clients import log_end, requests_of
from programs import wait_for
from pushing import NAME, Pushes, is_as
from runs import LOG_AND_EXIT, check_oracle, sync
from support import event_file

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.verdicts import Done, Split
from hf_mpwriter.localhub import LocalHub

pytest_plugins = ("pushing",)

CONSTRUCT = """
import sys
if sys.argv[2] == "theirs":
    from huggingface_hub import HFSummaryWriter
else:
    from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
print("constructed", flush=True)
writer.add_scalar("loss", 1.0, 1)
import os
os._exit(0)
"""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub for this test alone, at HF_ENDPOINT."""
    with LocalHub(tmp_path / "hub") as started:
        monkeypatch.setenv("HF_ENDPOINT", started.endpoint)
        yield started


@pytest.mark.parametrize("trouble", ["503", "refused"])
def test_1_a_hub_that_does_not_answer_is_no_reason_not_to_train(server, run_dir, start, monkeypatch, trouble):
    """Theirs raises in its constructor."""
    if trouble == "refused":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        server.fault(f". {trouble} times=0")
    theirs, ours = start(CONSTRUCT, f"{run_dir}-theirs", "theirs"), start(CONSTRUCT, run_dir, "ours")
    assert "constructed" in ours.succeed()
    code, out, _ = theirs.finish()
    assert (code, out) == (1, "")


def test_1_a_hub_that_hangs_holds_up_no_constructor(server, run_dir, start):
    """Theirs waits for ever."""
    server.fault("POST /api/repos/create hang times=0")
    theirs = start(CONSTRUCT, f"{run_dir}-theirs", "theirs")
    wait_for(lambda: server.faults()[0].held, "theirs hangs")
    assert "constructed" in start(CONSTRUCT, run_dir, "ours").succeed()
    assert theirs.process.poll() is None
    theirs.process.kill()


def test_3_the_token_that_was_given_is_used_for_everything(tmp_path, run_dir, start, monkeypatch):
    """It is used for the model card too; theirs reads and writes the card without it."""
    with LocalHub(tmp_path / "hub", token="hf_given") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        start(LOG_AND_EXIT.replace("logdir=", "token='hf_given', repo_private=True, logdir="), run_dir, 20).succeed()
        check_oracle(run_dir, server)
        assert b"hf-summary-writer" in server.store.read_blob("model", "me/run", "README.md", "main")


PLAIN_EXIT = """
import sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.system.directory import Directory
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
for step in range(500):
    writer.add_scalar("loss", 1.0, step)
    writer.add_scalars("group", {"a": 1.0, "b": 2.0}, step)
"""


def test_9_10_a_plain_exit_brings_the_last_events_of_all_files(server, run_dir, start):
    """No `with` and no close: theirs cannot start a thread any more, and pushes before the last flush."""
    start(PLAIN_EXIT, run_dir).succeed()
    assert [file.hub_events for file in check_oracle(run_dir, server).files.values()] == [500, 500, 500]


def test_15_run_directories_of_one_name_do_not_overwrite_each_other(server, tmp_path, start):
    """/one/logs and /two/logs have a folder each on the Hub."""
    places = [tmp_path / "one" / "logs", tmp_path / "two" / "logs"]
    for program in [start(LOG_AND_EXIT, place, 50) for place in places]:
        program.succeed()
    there = server.store.tree("model", "me/run", "main")
    folders = {}
    for place in places:
        for path in place.glob("*tfevents*"):
            (name,) = (name for name in there if name.endswith(path.name))
            assert server.store.read_blob("model", "me/run", name, "main") == path.read_bytes()
            folders[place] = os.path.dirname(name)
    first, second = folders.values()
    assert first != second
    assert "tensorboard/logs" in folders.values()


def test_17_a_file_that_grows_is_not_sent_again_as_a_whole(run, hub):
    """Ours uses Xet; theirs passes file objects, which disable Xet for the whole commit."""
    made = Pushes(hub.endpoint, env={"HF_HUB_DISABLE_XET": "0"})
    try:
        run.length = event_file(run.root / NAME, 40_000, tag="first")
        assert is_as(made.verdict(run.job({"xet": True})), Done)
        more = run.root / "more"
        event_file(more, 2_000, tag="second")
        with open(run.root / NAME, "ab") as file:
            file.write(more.read_bytes())
        before, run.length = log_end(hub), os.path.getsize(run.root / NAME)
        assert is_as(made.verdict(run.job({"xet": True})), Done)
    finally:
        made.end()
    sent = sum(request["in"] for request in requests_of(hub, before))
    assert run.on_hub(hub) == (run.root / NAME).read_bytes()
    assert sent < run.length / 4


@pytest.mark.parametrize(("most", "kind"), [(4096, Done), (64, Split)])
def test_24_a_hundred_files_go_with_few_descriptors(run, hub, most, kind):
    """Theirs opens all changed files at once. Ours opens as many as the limit allows, or sends fewer files at once."""
    made = Pushes(hub.endpoint, f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, {most}))\n")
    files = []
    for number in range(100):
        name = f"{NAME}.{number}"
        files.append(LocalFile(name, event_file(run.root / name, 1, tag=name), growing=number % 2 == 0))
    try:
        assert is_as(made.verdict(run.job({"files": tuple(files)})), kind)
        assert is_as(made.verdict(run.job({"files": tuple(files[:20])})), Done)
    finally:
        made.end()
    there = hub.store.tree("model", "me/run", "main")
    assert {run.destination.path(file.path) for file in files[: 100 if kind is Done else 20]} <= there.keys()


STOPPED = LOG_AND_EXIT + "    writer.scheduler.stop()\n    writer.add_scalar('late', 1.0, 1)\n"


def test_28_what_is_logged_after_stop_is_kept_and_sync_brings_it(server, run_dir, start):
    """In theirs the last push does nothing, and records since the push before are never sent."""
    start(STOPPED, run_dir, 20).succeed()
    assert sync(run_dir).exit_code == 0
    assert [file.hub_events for file in check_oracle(run_dir, server).files.values()] == [21]
