"""Independent Hubs: what they do otherwise than the Hub of Hugging Face."""

from __future__ import annotations

import json

import pytest
from attached import quarantined, write
from programs import wait_for
from runs import LOG_AND_EXIT, check_oracle, finished

from hf_mpwriter.localhub import LocalHub

ALL_FILES = LOG_AND_EXIT.replace('"me/run",', '"me/run", repo_allow_patterns=None,')


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub whose commits have ids of 64 hex digits."""
    with LocalHub(tmp_path / "hub", long_ids=True) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def test_commits_name_the_first_40_digits_of_a_longer_parent(hub, run_dir, start):
    """Event files and attachments arrive, in two starts, and no request is refused."""
    for text in (b"one", b"two"):
        write(run_dir, "notes.txt", text)
        start(ALL_FILES, run_dir, 20).succeed()
        wait_for(lambda: finished(run_dir), "the uploader leaves")
    check_oracle(run_dir, hub)
    assert {len(commit.oid) for commit in hub.store.commits("model", "me/run")} == {64}
    assert hub.store.read_blob("model", "me/run", "tensorboard/exp1/notes.txt") == b"two"
    with open(f"{hub.root}/requests.jsonl", encoding="utf-8") as file:
        commits = [line["status"] for line in map(json.loads, file) if "/commit/" in line["path"]]
    assert set(commits) == {200}
    assert quarantined(run_dir) == {}
