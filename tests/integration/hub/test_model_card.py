"""What becomes of the model card and of the repository around it, in real pushes."""

from __future__ import annotations

import base64
import dataclasses
import json

import pytest
from hub_clients import ask
from pushing import NAME, hits, is_as

from hf_mpwriter.base.verdicts import Done, Unknown
from hf_mpwriter.push.client import TAG

pytest_plugins = ("pushing",)


def put_card(hub, repo_id: str, content: bytes) -> None:
    """Another user creates a repository with a model card."""
    owner, name = repo_id.split("/")
    assert ask(hub, "POST", "/api/repos/create", {"name": name, "organization": owner})[0] == 200
    lines = [
        {"key": "header", "value": {"summary": "my card"}},
        {
            "key": "file",
            "value": {"path": "README.md", "content": base64.b64encode(content).decode(), "encoding": "base64"},
        },
    ]
    body = "\n".join(map(json.dumps, lines)).encode()
    assert ask(hub, "POST", f"/api/models/{repo_id}/commit/main", body)[0] == 200


def card(hub, where) -> bytes | None:
    """The model card of a repository, None if it has none."""
    tree = hub.store.tree(where.repo_type, where.repo_id, where.revision)
    if "README.md" not in tree:
        return None
    return hub.store.read_blob(where.repo_type, where.repo_id, "README.md", where.revision)


@pytest.mark.parametrize("fault", ["503", "401", "404", "200 body=<html>Welcome</html>"])
def test_a_card_that_cannot_be_read_for_certain_is_left_alone_and_holds_back_no_events(hub, new, fault):
    """A failed read is not "no model card": huggingface_hub's writer replaces the card with an empty one."""
    mine = b"---\nlicense: mit\n---\nMy precious model card"
    put_card(hub, new.destination.repo_id, mine)
    hub.fault(f"/resolve/.*README.md {fault} times=0")
    assert is_as(new.push(), Done, own=True)
    assert hits(hub) == [1]
    assert card(hub, new.destination) == mine
    assert new.is_there(hub)


@pytest.mark.parametrize(
    "mine",
    [
        b"---\n: [broken\n---\nMine",
        b"---\n- a list\n---\n",
        b"\xff\xfe",
        b"---\ntags: [hf-summary-writer]\n---\n",
    ],
)
def test_a_card_that_cannot_be_understood_or_has_the_tag_stays_as_it_is(hub, new, mine):
    """Byte for byte; the events are committed."""
    put_card(hub, new.destination.repo_id, mine)
    assert is_as(new.push(), Done, own=True)
    assert card(hub, new.destination) == mine
    assert new.is_there(hub)


def test_a_card_of_the_users_gets_the_tag_and_keeps_the_rest(hub, new):
    """Metadata, text and other tags stay."""
    put_card(hub, new.destination.repo_id, b"---\nlicense: mit\ntags:\n- mine\n---\nMy precious model card\n")
    assert is_as(new.push(), Done)
    text = card(hub, new.destination).decode()
    assert text == f"---\nlicense: mit\ntags:\n- mine\n- {TAG}\n---\nMy precious model card\n"


def test_a_card_that_the_hub_refuses_does_not_hold_back_events(hub, new):
    """validate-yaml refuses the card, and the same push commits the events alone."""
    hub.fault("POST /api/validate-yaml 400 times=0")
    assert is_as(new.push(), Done, own=True)
    assert card(hub, new.destination) is None
    assert new.is_there(hub)


def test_a_refused_card_is_not_blamed_for_what_happens_to_the_events(hub, new):
    """The commit without it gets no answer: its outcome is unknown, and no file of ours is refused."""
    hub.fault("POST /api/validate-yaml 400 times=0")
    hub.fault("POST /commit/ close times=0")
    assert is_as(new.push(), Unknown)


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
@pytest.mark.parametrize("revision", ["main", "exp/1"])
def test_only_the_main_branch_of_a_model_or_dataset_gets_a_new_card(hub, new, kind, revision):
    """The card of a Space is its configuration, and a branch is a copy of main: neither gets a new card."""
    where = dataclasses.replace(new.destination, repo_type=kind, revision=revision)
    assert is_as(new.push(destination=where), Done)
    found = card(hub, where)
    commits = [item for item in hub.store.commits(kind, where.repo_id, revision) if "Add TensorBoard" in item.title]
    assert len(commits) == 1, "the tag comes with the events"
    assert (TAG.encode() in (found or b"")) is (revision == "main" and kind != "space")
    assert where.path(NAME) in hub.store.tree(kind, where.repo_id, revision)


@pytest.mark.parametrize("private", [None, False, True])
def test_a_repository_is_created_as_private_as_requested_and_a_public_one_is_logged(hub, new, private):
    """None leaves the choice to the Hub."""
    assert is_as(new.push(private=private), Done)
    assert hub.store.repo_info("model", new.destination.repo_id).private is bool(private)
    output = (new.root / "job.out").read_text()
    assert ("PUBLIC: everybody can read it" in output) is not bool(private)


def test_a_commit_without_a_parent_touches_no_card(hub, new):
    """Without a parent, a change of the card since it was read would be overwritten."""
    put_card(hub, new.destination.repo_id, b"Mine")
    assert is_as(new.push(fenced=False), Done, own=True)
    assert card(hub, new.destination) == b"Mine"
