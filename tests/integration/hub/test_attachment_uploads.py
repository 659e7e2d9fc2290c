"""Attachments on the whole path, with real processes and the local Hub."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from attached import copies, quarantined, write
from programs import wait_for
from runs import LOG_AND_EXIT, hub_view, no_uploader, run

from hf_mpwriter import testing
from hf_mpwriter.base.arguments import patterns

EVERYTHING = LOG_AND_EXIT.replace("logdir=", "repo_allow_patterns=None, logdir=")
EMBED = """
import sys
import numpy
from hf_mpwriter import HFSummaryWriter
patterns = ["*.tfevents.*", "*.tsv", "*.pbtxt", "*.png"]
with HFSummaryWriter("me/run", logdir=sys.argv[1], repo_allow_patterns=patterns, commit_every=0.01) as writer:
    for step in range(3):
        images = numpy.random.default_rng(step).random((9, 3, 8, 8))
        labels = [f"label {n}" for n in range(9)]
        writer.add_embedding(numpy.random.default_rng(step).random((9, 4)), labels, images, step, "layer")
"""
ON_AND_ON = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], repo_allow_patterns="*", commit_every=0.05)
step = 0
while True:
    writer.add_scalar("loss", 1 / (step + 1), step)
    for name in sys.argv[2:]:
        with open(os.path.join(sys.argv[1], name), "r+b") as file:
            file.write(b"%010d" % step * 500)
    step += 1
    time.sleep(0.05)
"""


def on_hub(hub, name: str) -> bytes | None:
    """The content of a file of the run on the Hub, None if it is not there."""
    path = f"tensorboard/exp1/{name}"
    there = path in hub.store.tree("model", "me/run")
    return hub.store.read_blob("model", "me/run", path) if there else None


def versions(hub, name: str) -> list[bytes]:
    """All contents of a file over the history of the branch."""
    path = f"tensorboard/exp1/{name}"
    blobs = [commit.tree[path] for commit in hub.store.commits("model", "me/run") if path in commit.tree]
    return [Path(hub.store.blob_path(blob)).read_bytes() for blob in blobs]


def check_oracle(run_dir, hub, allowed="*"):
    """The oracle's report, attachments included."""
    allows = patterns("repo_allow_patterns", allowed)
    report = testing.check(
        str(run_dir), hub_view(hub), attachments=lambda path: any(Path(path).match(one) for one in allows)
    )
    assert report.problems == []
    return report


def test_the_files_of_add_embedding_arrive_whole(hub, run_dir, start):
    """After the with block all files are on the Hub, the last state of the growing configuration included."""
    pytest.importorskip("PIL")
    start(EMBED, run_dir).succeed()
    config = on_hub(hub, "projector_config.pbtxt")
    assert config == (run_dir / "projector_config.pbtxt").read_bytes()
    assert config.count(b"embeddings {") == 3
    report = check_oracle(run_dir, hub, ["*.tsv", "*.pbtxt", "*.png"])
    assert len(report.attachments) == 10
    kinds = {path.rpartition(".")[2]: blob.lfs for path, blob in hub_view(hub).tree("main").items()}
    assert (kinds["tsv"], kinds["png"]) == (False, True), "both kinds of storage on the Hub"
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert copies(run_dir) == []


def test_a_file_that_changes_in_place_ends_with_its_last_content(hub, run_dir, start):
    """Text and binary, rewritten many times a second: each version on the Hub is one that the file had."""
    write(run_dir, "state.txt", b"0000000000" * 500)
    write(run_dir, "state.bin", b"0000000000" * 500 + bytes(range(256)))
    worker = start(ON_AND_ON, run_dir, "state.txt", "state.bin")
    for name in ("state.txt", "state.bin"):
        wait_for(lambda name=name: len(set(versions(hub, name))) > 1 if repo_exists(hub) else False, "versions")
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    check_oracle(run_dir, hub)
    for content in [*versions(hub, "state.txt"), *versions(hub, "state.bin")]:
        assert len(content) in (5000, 5256)
        assert len({content[n : n + 10] for n in range(0, 5000, 10)}) == 1, "a torn copy"
    assert quarantined(run_dir) == {}


def repo_exists(hub) -> bool:
    """Whether the repository has been made."""
    return any(repo.id == "me/run" for repo in hub.store.repos())


def test_a_foreign_file_on_the_hub_is_never_overwritten(hub, run_dir, start, api):
    """Of both kinds: the path is quarantined with a reason, the others go on; once it is removed, `sync` sends it."""
    theirs = {"notes.txt": b"theirs\n", "notes.bin": bytes(range(256))}
    api.create_repo("me/run")
    for name, content in theirs.items():
        write(run_dir, name, b"ours, " + content)
        api.upload_file(path_or_fileobj=content, path_in_repo=f"tensorboard/exp1/{name}", repo_id="me/run")
    write(run_dir, "zebra.txt", b"arrives")
    write(run_dir, "same.txt", b"the same")
    api.upload_file(path_or_fileobj=b"the same", path_in_repo="tensorboard/exp1/same.txt", repo_id="me/run")
    start(EVERYTHING, run_dir, 20).succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert {name: on_hub(hub, name) for name in theirs} == theirs
    assert on_hub(hub, "zebra.txt") == b"arrives"
    assert quarantined(run_dir).keys() == theirs.keys()
    assert all("remove it there" in why for why in quarantined(run_dir).values())
    check_oracle(run_dir, hub, "*.tfevents.*")
    for name in theirs:
        api.delete_file(f"tensorboard/exp1/{name}", "me/run")
    assert run("sync", run_dir).exit_code == 0
    check_oracle(run_dir, hub)


def test_status_and_verify_count_attachments(hub, run_dir, start):
    """An attachment counts as uploaded when its content is on the Hub; `verify` finds one that differs."""
    write(run_dir, "notes.txt", b"mine")
    start(EVERYTHING, run_dir, 5).succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert "4 B of       4 B  notes.txt" in run("status", run_dir).output
    assert run("verify", run_dir).exit_code == 0
    write(run_dir, "notes.txt", b"ours")
    assert "0 B of       4 B  notes.txt" in run("status", run_dir).output
    result = run("verify", run_dir)
    assert (result.exit_code, "notes.txt: another content is on the Hub" in result.output) == (1, True)


def test_a_file_that_the_repository_ignores_is_quarantined_not_claimed(hub, run_dir, start, api):
    """The client silently drops what the repository's .gitignore names; the ledger must not claim it."""
    api.create_repo("me/run")
    api.upload_file(path_or_fileobj=b"*.log\n", path_in_repo=".gitignore", repo_id="me/run")
    write(run_dir, "a.log", b"ignored")
    write(run_dir, "b.txt", b"taken")
    start(EVERYTHING, run_dir, 5).succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert (on_hub(hub, "a.log"), on_hub(hub, "b.txt")) == (None, b"taken")
    assert quarantined(run_dir) == {"a.log": "the repository's .gitignore leaves it out"}
