"""The push: what it reads back, and how it ends."""

from __future__ import annotations

import dataclasses
import hashlib
import random

import pytest
from jobs import ONE, TWO, job

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.verdicts import Quarantine, Retry, Sent, Unknown
from hf_mpwriter.push import commit as commit_module
from hf_mpwriter.push.client import Remote
from hf_mpwriter.push.job import Job
from hf_mpwriter.spool.layout import Spool


def read_back(one: Job, there: dict[str, Remote]):
    """Compare everything that is known or to be sent."""
    return commit_module.read_back(one, Spool(one.run_dir), {*one.known, *(file.path for file in one.files)}, there)


def remote(content: bytes) -> Remote:
    """An LFS file on the Hub."""
    return Remote(len(content), hashlib.sha256(content).hexdigest(), "")


def test_a_prefix_on_the_hub_is_taken_over(run_dir):
    """The ledger knows nothing, the Hub has three bytes of ours: they count, even if others sent them."""
    assert read_back(job(run_dir), {"a.tfevents": remote(b"abc")}) == (
        {"a.tfevents": Sent(3, remote(b"abc").sha256)},
        {},
    )


def test_a_small_regular_file_is_compared_by_its_git_id(run_dir):
    """Without LFS the Hub tells git's blob id only."""
    blob = hashlib.sha1(b"blob 3\0abc").hexdigest()  # noqa: S324 - git's own digest
    assert read_back(job(run_dir), {"a.tfevents": Remote(3, None, blob)})[0] == {"a.tfevents": Sent(3, "")}
    assert read_back(job(run_dir), {"a.tfevents": Remote(3, None, "0" * 40)})[1].keys() == {"a.tfevents"}


def test_what_is_gone_from_the_hub_counts_as_gone(run_dir):
    """The ledger claims a length that the Hub does not have any more: it is dropped."""
    known = {"a.tfevents": Sent(3, remote(b"abc").sha256), "other.tfevents": Sent(7, "00")}
    assert read_back(job(run_dir, known), {}) == ({"a.tfevents": Sent(0, ""), "other.tfevents": Sent(0, "")}, {})


def test_what_the_ledger_says_is_not_hashed_again(run_dir):
    """Size and digest as known: nothing to say, nothing to read."""
    known = {"missing.tfevents": Sent(3, remote(b"abc").sha256)}
    assert read_back(job(run_dir, known, files=()), {"missing.tfevents": remote(b"abc")}) == ({}, {})


def test_another_content_is_never_overwritten(run_dir):
    """Same path, not a prefix: differing."""
    found, differing = read_back(job(run_dir), {"a.tfevents": remote(b"xyz")})
    assert (found, list(differing)) == ({}, ["a.tfevents"])


def test_a_local_file_that_is_shorter_than_the_hubs_is_left_alone(run_dir):
    """A restored backup, or a file that is gone: what the Hub has is more, and counts as held."""
    there = {"a.tfevents": remote(b"abcdefgh"), "gone.tfevents": remote(b"x")}
    known = {"a.tfevents": Sent(7, "00")}
    found, differing = read_back(job(run_dir, known, files=("a.tfevents", "gone.tfevents")), there)
    assert found == {
        "a.tfevents": Sent(8, there["a.tfevents"].sha256),
        "gone.tfevents": Sent(1, there["gone.tfevents"].sha256),
    }
    assert differing == {}


def test_a_longer_copy_that_was_never_ours_is_not_believed(run_dir):
    """This path was never sent from here, and the Hub has more under its name: quarantined, not acknowledged."""
    found, differing = read_back(job(run_dir), {"a.tfevents": remote(b"xxxxxxxx")})
    assert (found, list(differing)) == ({}, ["a.tfevents"])


def lfs(file: LocalFile) -> Remote:
    """An attachment on the Hub, as LFS keeps it."""
    return Remote(file.length, file.sha256, oid="0" * 40)


def regular(file: LocalFile) -> Remote:
    """An attachment on the Hub, as a small text is kept."""
    return Remote(file.length, None, oid=file.blob_id)


@pytest.mark.parametrize("kind", [lfs, regular])
def test_an_attachment_replaces_only_what_this_run_has_sent(run_dir, kind):
    """Known by the ledger, or uncertain with an unknown outcome: ours. Anything else is quarantined with what to do."""
    wants_two = dataclasses.replace(job(run_dir), files=(TWO,))
    assert read_back(dataclasses.replace(wants_two, known={"a.tsv": ONE.content}), {"a.tsv": kind(ONE)}) == ({}, {})
    uncertain = dataclasses.replace(wants_two, uncertain={"a.tsv": [ONE.content]})
    assert read_back(uncertain, {"a.tsv": kind(ONE)}) == ({"a.tsv": ONE.content}, {})
    found, differing = read_back(wants_two, {"a.tsv": kind(ONE)})
    assert found == {}
    assert "remove it there" in differing["a.tsv"]


@pytest.mark.parametrize("kind", [lfs, regular])
def test_an_attachment_that_is_there_already_is_acknowledged(run_dir, kind):
    """Even if others have sent it; then it is foreign."""
    wants_two = dataclasses.replace(job(run_dir), files=(TWO,))
    theirs = dataclasses.replace(TWO.content, foreign=True)
    assert read_back(wants_two, {"a.tsv": kind(TWO)}) == ({"a.tsv": theirs}, {})
    uncertain = dataclasses.replace(wants_two, uncertain={"a.tsv": [TWO.content]})
    assert read_back(uncertain, {"a.tsv": kind(TWO)}) == ({"a.tsv": TWO.content}, {})


def test_what_is_known_is_found_again_while_a_content_is_uncertain(run_dir):
    """So the outcome is known, and is not asked for again."""
    known = dataclasses.replace(job(run_dir), files=(TWO,), known={"a.tsv": TWO.content})
    assert read_back(known, {"a.tsv": lfs(TWO)}) == ({}, {})
    uncertain = dataclasses.replace(known, uncertain={"a.tsv": [ONE.content]})
    assert read_back(uncertain, {"a.tsv": lfs(TWO)}) == ({"a.tsv": TWO.content}, {})


class HubOfOne:
    """A Hub with one attachment; no commit is allowed."""

    repo_id = "me/run"
    commits_sent = 0

    def __init__(self, there: Remote) -> None:
        self.there = there

    def head(self) -> str:
        """The head."""
        return "c" * 40

    def sizes(self, paths, _) -> dict[str, Remote]:
        """What is there."""
        return dict.fromkeys(paths, self.there)


def test_what_others_have_sent_is_not_replaced_when_ours_changes(run_dir):
    """It was equal, so it counted as there; nothing of ours is uncertain by the refusal."""
    theirs = dataclasses.replace(ONE.content, foreign=True)
    wants = dataclasses.replace(job(run_dir), files=(TWO,), known={"a.tsv": theirs})
    verdict = commit_module.carry(wants, HubOfOne(lfs(ONE)), lambda _: None, random.Random(1))
    assert isinstance(verdict, Quarantine)
    assert (list(verdict.paths), verdict.committed) == (["a.tsv"], False)


def test_an_attachment_that_is_gone_or_rewritten_is_noticed_though_nothing_is_to_be_sent(run_dir):
    """A moved head: all that is known is read back. A shorter copy is no beginning of anything."""
    known = dataclasses.replace(job(run_dir, files=()), known={"a.tsv": TWO.content})
    assert read_back(known, {}) == ({"a.tsv": Sent(0, "")}, {})
    assert list(read_back(known, {"a.tsv": lfs(ONE)})[1]) == ["a.tsv"]
    assert read_back(known, {"a.tsv": lfs(TWO)}) == ({}, {})


@pytest.mark.parametrize("when", ["read", "commit"])
def test_an_outcome_is_unknown_only_after_the_commit_has_begun(run_dir, when):
    """A read-back that fails has uncertain nothing: what is on the Hub does not become ours by it."""
    one = HubOfOne(lfs(ONE))
    if when == "read":
        one.sizes = lambda *_: timeout()
    one.is_private = lambda: None

    def commit(*_, **__):
        one.commits_sent += 1
        timeout()

    one.commit = commit
    copies = run_dir / ".hf_mpwriter" / "copies"
    copies.mkdir(parents=True)
    (copies / TWO.sha256).touch()
    verdict = commit_module.carry(
        dataclasses.replace(job(run_dir), files=(TWO,), known={"a.tsv": ONE.content}), one, str, random.Random(1)
    )
    assert type(verdict) is (Retry if when == "read" else Unknown)


def timeout() -> None:
    """The Hub does not answer."""
    raise TimeoutError
