"""The push: what it reads back, and how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError
from jobs import ONE, TWO, job, job_of, part

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.verdicts import Done, Moved, Quarantine, Refused, Retry, Sent, Split, Unknown
from hf_mpwriter.push import commit as commit_module
from hf_mpwriter.push.client import NotQuietError, Remote, Source, check_unchanged
from hf_mpwriter.push.job import Notice, Part
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.uploader.in_flight import possible


def read_back(one: Part, there: dict[str, Remote]):
    """Compare everything that is known or to be sent."""
    return commit_module.read_back(one, Spool(one.run_dir), {*one.known, *(file.path for file in one.files)}, there)


def remote(content: bytes) -> Remote:
    """An LFS file on the Hub."""
    return Remote(len(content), hashlib.sha256(content).hexdigest(), "")


BLOB = hashlib.sha1(b"blob 3\0abc").hexdigest()  # noqa: S324 - git's own digest
LONGER = remote(b"abcdefgh")
READINGS = {
    "a prefix is taken over, even if others sent it": ({}, remote(b"abc"), Sent(3, remote(b"abc").sha256)),
    "without LFS the Hub tells git's blob id only": ({}, Remote(3, None, BLOB), Sent(3, "")),
    "another blob id": ({}, Remote(3, None, "0" * 40), None),
    "what is gone counts as gone": ({"a.tfevents": Sent(3, remote(b"abc").sha256)}, None, Sent(0, "")),
    "another content is never overwritten": ({}, remote(b"xyz"), None),
    "the local file was restored": ({"a.tfevents": Sent(7, "00")}, LONGER, Sent(8, LONGER.sha256)),
    "a longer one that was never ours is not believed": ({}, remote(b"xxxxxxxx"), None),
}


@pytest.mark.parametrize(("known", "there", "found"), READINGS.values(), ids=READINGS)
def test_event_files_are_compared_by_what_the_hub_tells(run_dir, known, there, found):
    """What is a beginning of ours counts; anything else differs, and is never overwritten."""
    expected = ({}, ["a.tfevents"]) if found is None else ({"a.tfevents": found}, [])
    result, differing = read_back(part(run_dir, known), {"a.tfevents": there} if there else {})
    assert (result, list(differing)) == expected


def test_what_the_ledger_says_is_not_hashed_again(run_dir):
    """Size and digest as known: nothing to say, nothing to read. What is gone here is held there."""
    known = {"gone.tfevents": Sent(3, remote(b"abc").sha256)}
    assert read_back(part(run_dir, known, files=()), {"gone.tfevents": remote(b"abc")}) == ({}, {})
    found = {"gone.tfevents": Sent(1, remote(b"x").sha256)}
    assert read_back(part(run_dir, files=("gone.tfevents",)), {"gone.tfevents": remote(b"x")}) == (found, {})


def lfs(file: LocalFile) -> Remote:
    """An attachment on the Hub, as LFS keeps it."""
    return Remote(file.length, file.sha256, oid="0" * 40)


def regular(file: LocalFile) -> Remote:
    """An attachment on the Hub, as a small text is kept."""
    return Remote(file.length, None, oid=file.blob_id)


THEIRS, GONE = dataclasses.replace(TWO.content, foreign=True), Sent(0, "")
OURS = [ONE.content]  # sent without a known outcome
ATTACHMENTS = {  # what the ledger knows, what may be there, what is there; what is found, None if it is not ours
    "known content is replaced": (ONE.content, [], ONE, {}),
    "so is one whose outcome was unknown": (None, OURS, ONE, {"a.tsv": ONE.content}),
    "what others have sent is not": (None, [], ONE, None),
    "equal to ours, it is foreign": (None, [], TWO, {"a.tsv": THEIRS}),
    "equal, and perhaps sent by us": (None, [TWO.content], TWO, {"a.tsv": TWO.content}),
    "as it is known": (TWO.content, [], TWO, {}),
    "an outcome is found, and not asked for again": (TWO.content, OURS, TWO, {"a.tsv": TWO.content}),
    "gone": (TWO.content, [], None, {"a.tsv": GONE}),
    "rewritten": (TWO.content, [], ONE, None),
}


@pytest.mark.parametrize("kind", [lfs, regular])
@pytest.mark.parametrize(("known", "uncertain", "there", "found"), ATTACHMENTS.values(), ids=ATTACHMENTS)
def test_attachments_are_compared_by_content(run_dir, kind, known, uncertain, there, found):
    """Known by the ledger, or uncertain with an unknown outcome: ours. Anything else is quarantined with what to do."""
    one = part(
        run_dir,
        {} if known is None else {"a.tsv": known},
        files=(TWO,),
        uncertain={"a.tsv": uncertain} if uncertain else {},
    )
    result, differing = read_back(one, {"a.tsv": kind(there)} if there else {})
    assert result == (found or {})
    assert ("remove it there" in differing.get("a.tsv", "")) is (found is None)


def test_a_refused_attachment_still_replaces_what_this_run_has_sent(run_dir):
    """The ledger keeps what it knows of it as a content that may be there; what others have sent is never ours."""
    ledger = Ledger(job(run_dir).destination)
    ledger.acknowledge({"a.tsv": ONE.content}, "c" * 40, 1.0)
    ledger.quarantine("a.tsv", "400", 1)
    again = part(run_dir, ledger.known(), files=(TWO,), uncertain=possible(ledger))
    assert read_back(again, {"a.tsv": lfs(ONE)}) == ({"a.tsv": ONE.content}, {})
    assert read_back(again, {}) == ({}, {})
    theirs = dataclasses.replace(ONE.content, foreign=True)
    ledger.acknowledge({"a.tsv": theirs}, "c" * 40, 1.0)
    ledger.quarantine("a.tsv", "400", 1)
    again = dataclasses.replace(again, uncertain=possible(ledger))
    assert list(read_back(again, {"a.tsv": lfs(ONE)})[1]) == ["a.tsv"]


def test_what_others_have_sent_is_not_replaced_when_ours_changes(run_dir):
    """It was equal, so it counted as there; nothing of ours is uncertain by the refusal."""
    theirs = dataclasses.replace(ONE.content, foreign=True)
    verdict, _ = carried(run_dir, HubOfRun(lfs(ONE)), files=(TWO,), known={"a.tsv": theirs})
    assert isinstance(verdict, Quarantine)
    assert (list(verdict.paths), verdict.committed) == (["a.tsv"], False)


@pytest.mark.parametrize("when", ["read", "commit"])
def test_an_outcome_is_unknown_only_after_the_commit_has_begun(run_dir, when):
    """A read-back that fails has uncertain nothing: what is on the Hub does not become ours by it."""
    hub = HubOfRun(lfs(ONE))
    hub.error = TimeoutError()
    if when == "read":
        hub.sizes = hub.fail
    copied(run_dir, TWO)
    verdict, _ = carried(run_dir, hub, files=(TWO,), known={"a.tsv": ONE.content})
    assert type(verdict) is (Retry if when == "read" else Unknown)


class HubOfRun:
    """A Hub with one file of the run at a head of ours; it takes all commits, and notes the parents."""

    def __init__(self, there: Remote | None, head: str | None = "c" * 40, *, private: bool | None = None) -> None:
        self.there, self._head, self.private = there, head, private
        self.repo_id, self.commits_sent, self.created = "me/run", 0, 0
        self.really, self.error, self.moves_to, self.created_at = b"", None, "", ""
        self.history = list[str]()
        self.parents: list[str | None] = []

    def head(self) -> str | None:
        """The head; a renamed repository tells its new name."""
        self.repo_id = self.moves_to or self.repo_id
        return self._head

    def create(self, *, private: bool | None) -> None:
        """Create the repository."""
        self.created, self._head, self.private = self.created + 1, "d" * 40, bool(private)

    def is_private(self) -> bool | None:
        """The visibility."""
        return self.private

    def commits(self) -> list[str]:
        """The history."""
        return self.history

    def sizes(self, paths, _) -> dict[str, Remote]:
        """What it says that is there."""
        return dict.fromkeys(paths, self.there) if self.there else {}

    def fail(self, *_) -> None:
        """Do not answer in time."""
        raise self.error

    @contextlib.contextmanager
    def copy(self, _path, _revision, _size, scratch):
        """What is there."""
        with open(f"{scratch}/copy", "wb") as file:
            file.write(self.really)
        yield file.name

    def commit(self, opened, parent: str, *, fenced: bool, **_):
        """Take a commit."""
        self.parents.append(parent if fenced else None)
        self.commits_sent += 1
        if self.error:
            raise self.error
        return "e" * 40, {source.target: Sent(source.file.length, "") for source in opened}


def carried(run_dir, hub: HubOfRun, **changes):
    """The verdict on a job with these changes, and the notices."""
    (run_dir / ".hf_mpwriter").mkdir(exist_ok=True)
    told: list[Notice] = []
    (verdict,) = commit_module.carry(job(run_dir, **changes), [Spool(str(run_dir))], hub, told.append, random.Random(1))
    return verdict, [notice.text for notice in told]


def copied(run_dir, file: LocalFile) -> None:
    """Put an empty copy of an attachment where a push looks for it."""
    copies = run_dir / ".hf_mpwriter" / "copies"
    copies.mkdir(parents=True, exist_ok=True)
    (copies / file.sha256).touch()


def test_an_answer_that_does_not_fit_at_a_head_of_ours_is_checked_by_the_content(run_dir):
    """An independent Hub tells today's id at each revision: the content itself says that it is ours."""
    Spool(str(run_dir)).create()
    hub = HubOfRun(remote(b"xyz"))
    hub.really = b"abc"
    known = {"a.tfevents": Sent(3, remote(b"abc").sha256)}
    verdict, _ = carried(run_dir, hub, known=known, last_commit="c" * 40)
    assert isinstance(verdict, Done)
    assert verdict.files["a.tfevents"].length == 5
    assert isinstance(carried(run_dir, hub, known=known, last_commit="b" * 40)[0], Quarantine), "another head"
    hub.really = b"xyz"
    assert isinstance(carried(run_dir, hub, known=known, last_commit="c" * 40)[0], Quarantine), "it is another content"


@pytest.mark.parametrize(
    ("created_at", "history", "stays"),
    [
        ("yesterday", [], True),  # squashed
        ("today", ["b" * 40], False),
        ("", ["c" * 40, "b" * 40], True),  # it does not tell
        ("", ["c" * 40], False),
    ],
)
def test_what_is_gone_from_a_repository_that_lives_on_was_deleted(run_dir, created_at, history, stays):
    """It is not sent again, nor told each time; a repository that was made anew gets it."""
    Spool(str(run_dir)).create()
    hub = HubOfRun(None)
    hub.created_at, hub.history = created_at, history
    before = {
        "known": {"a.tfevents": Sent(3, remote(b"abc").sha256)},
        "last_commit": "b" * 40,
        "created_at": "yesterday",
        "create": False,
    }
    verdict, _ = carried(run_dir, hub, **before)
    assert (verdict.files["a.tfevents"].deleted, hub.commits_sent) == (stays, 0 if stays else 1)
    known = {"a.tfevents": Sent(0, "", deleted=True)}
    verdict, _ = carried(run_dir, hub, **before | {"known": known, "files": ()})
    assert ("a.tfevents" in verdict.files) is not stays


PAGE = "http://127.0.0.1:9/me/run"


def test_nothing_is_sent_to_a_public_repository_that_should_be_private(run_dir):
    """At the start; a change later, and what cannot be known, is a notice."""
    hub = HubOfRun(None, private=False)
    verdict, notices = carried(run_dir, hub, private=True)
    assert isinstance(verdict, Refused)
    assert "repo_private=True" in verdict.reason
    assert (hub.commits_sent, len(notices)) == (0, 1)
    verdict, notices = carried(run_dir, HubOfRun(None), private=True)
    assert isinstance(verdict, Done)
    assert notices == [f"{PAGE}: the Hub does not say whether it is private"]
    known = {"a.tfevents": Sent(3, remote(b"abc").sha256)}
    later = HubOfRun(remote(b"abc"), private=False)
    verdict, notices = carried(run_dir, later, private=True, known=known, was_private=True)
    assert (type(verdict), verdict.private, later.commits_sent) == (Done, False, 1)
    assert notices == [f"{PAGE} is PUBLIC: everybody can read it now"]
    assert carried(run_dir, later, known=known, was_private=False)[1] == []


def test_a_renamed_repository_is_told_and_used_by_its_new_name(run_dir):
    """Its old name answers with a redirect; a name without a namespace is no rename."""
    hub = HubOfRun(None)
    hub.moves_to = "me/new"
    verdict, notices = carried(run_dir, hub)
    assert (verdict.repo_id, notices) == ("me/new", ["me/run was renamed: it is me/new now"])
    short = HubOfRun(None)
    short.repo_id, short.moves_to = "run", "me/run"
    assert carried(run_dir, short)[1] == []


def refused_with(status: int) -> Exception:
    """What the client raises when a commit is refused."""
    asked = httpx2.Request("POST", "https://hub/api/models/me/run/commit/main")
    return HfHubHTTPError("refused", response=httpx2.Response(status, request=asked))


def test_a_refusal_may_be_about_a_parent_that_is_not_named_whole(run_dir, monkeypatch):
    """Of ids with 64 digits the client names 40. It is no verdict on the content while a parent is named."""
    monkeypatch.setattr(commit_module.time, "sleep", lambda _: None)
    hub = HubOfRun(None, head="c" * 64)
    hub.error = refused_with(400)
    assert isinstance(carried(run_dir, hub)[0], Moved)
    assert isinstance(carried(run_dir, hub, fenced=False)[0], Split)
    Spool(str(run_dir)).create()
    copied(run_dir, TWO)
    assert isinstance(carried(run_dir, hub, files=(TWO,))[0], Split), "attachments never go without one"
    hub.error = refused_with(413)
    assert isinstance(carried(run_dir, hub)[0], Split)
    short = HubOfRun(None)
    short.error = refused_with(400)
    assert isinstance(carried(run_dir, short)[0], Split)


def test_a_push_that_went_well_waits_for_nothing(run_dir, monkeypatch):
    """Only a branch that has moved is tried again after a while."""
    slept = []
    monkeypatch.setattr(commit_module.time, "sleep", slept.append)
    assert isinstance(carried(run_dir, HubOfRun(None))[0], Done)
    assert slept == []


class MovingHub(HubOfRun):
    """The branch moves during the first commit; it notes where each path was compared."""

    def __init__(self) -> None:
        super().__init__(None)
        self.compared: list[tuple[str, str]] = []

    def sizes(self, paths, revision) -> dict[str, Remote]:
        """What it says that is there."""
        self.compared += [(path, revision) for path in sorted(paths)]
        return {path: remote(b"abcde") for path in paths if path.startswith("there/")}

    def commit(self, opened, parent: str, **options: bool):
        """Refuse the first."""
        first, self._head = self._head == "c" * 40, "d" * 40
        self.error = refused_with(412) if first else None
        return super().commit(opened, parent, **options)


def test_what_was_there_before_the_branch_has_moved_is_compared_again(run_dir, tmp_path, monkeypatch):
    """A run with nothing to send is as far as the others of its push: its copies may have changed, too."""
    monkeypatch.setattr(commit_module.time, "sleep", lambda _: None)
    hub, spools = MovingHub(), [Spool(str(run_dir)) for _ in range(2)]
    there = {"a.tfevents": Sent(5, remote(b"abcde").sha256)}
    parts = part(run_dir, there, folder="there"), part(run_dir, folder="new")
    verdicts = commit_module.carry(job_of(*parts), spools, hub, lambda _: None, random.Random(1))
    assert [(verdict.own, verdict.commit, verdict.parent) for verdict in verdicts] == [
        (False, "d" * 40, "d" * 40),
        (True, "e" * 40, "d" * 40),
    ]
    assert [revision for path, revision in hub.compared if path == "there/a.tfevents"] == ["c" * 40, "d" * 40]


@pytest.mark.parametrize("change", ["grown", "shorter", "rewritten", "nothing"])
def test_a_file_that_changes_while_it_is_sent_by_its_path_is_found(tmp_path, change):
    """By its size, or by its time of change where that is the same."""
    path, other = tmp_path / "theirs.tfevents", tmp_path / "other.tfevents"
    stamps = {}
    for one in (path, other):
        one.write_bytes(b"content")
        os.utime(one, (1e9,) * 2)
        stamps[Source(LocalFile(one.name, 7, False), str(one), one.name)] = 7, 10**18
    check_unchanged(stamps)
    if change != "nothing":
        path.write_bytes({"grown": b"content, more", "shorter": b"con", "rewritten": b"another"}[change])
        with pytest.raises(NotQuietError, match="changed") as error:
            check_unchanged(stamps)
        assert error.value.paths == {path.name}
