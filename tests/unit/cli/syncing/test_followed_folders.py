"""Folders that a supervisor follows: when what is new is asked for, and what is told."""

from __future__ import annotations

import time

import pytest
from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli.syncing.following import followed
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import SUPERVISOR, Members
from hf_mpwriter.supervisor.drain import ABSENT, NOTHING_THERE, ROUND, Drain, Followed, NotARunError, Upload
from hf_mpwriter.worker.election import UploaderElection

HUB = "http://127.0.0.1:9"
NAME = "events.out.tfevents.1700000000.host"
ENVIRON: dict[str, str] = {}


@pytest.fixture(autouse=True)
def of_the_hub(monkeypatch, tmp_path):
    """A Hub that is not there, and a current folder."""
    monkeypatch.setenv("HF_ENDPOINT", HUB)
    monkeypatch.chdir(tmp_path)


def record(folder, place: str, repo_id: str = "me/run") -> None:
    """A run with a destination."""
    spool = Spool(str(folder))
    spool.create()
    spool.record_destination(Destination(HUB, repo_id, path_in_repo=place))


def only(found: dict[str, Followed]) -> Followed:
    """The only folder."""
    (one,) = found.values()
    return one


def test_what_is_new_is_asked_for_once_a_round(tmp_path):
    """Not where a worker of ours logs: its uploader has an interval of its own."""
    one = Followed(lambda: Spool(str(tmp_path)))
    assert [one.is_due(now) for now in (5.0, 10.0)] == [True, True], "what failed is tried again"
    one.begin_round(10.0)
    assert [one.is_due(now) for now in (20.0, 10.0 + ROUND)] == [False, True]
    one.is_told = True
    assert not one.is_due(9 * ROUND)


def test_that_uploads_fail_is_told_once_and_that_they_work_again():
    """Another reason is told, too."""
    one = Followed(lambda: Spool("/nowhere"))
    told = [one.change(reason) for reason in ("", "HTTP 503", "HTTP 503", "HTTP 401", "", "")]
    reasons = ["not on the Hub yet: HTTP 503", "not on the Hub yet: HTTP 401"]
    assert told == ["", reasons[0], "", reasons[1], "uploads work again", ""]


def test_a_named_folder_becomes_a_run_when_it_has_event_files(tmp_path):
    """Nothing is written into it before, and it need not be there."""
    one = only(followed(["exp1"], None, "me/run", ENVIRON))
    with pytest.raises(NotARunError, match=ABSENT):
        one.make_run()
    (tmp_path / "exp1").mkdir()
    with pytest.raises(NotARunError, match=NOTHING_THERE):
        one.make_run()
    assert list((tmp_path / "exp1").iterdir()) == []
    event_file(tmp_path / "exp1" / NAME, 1)
    assert one.make_run().destination() == Destination(HUB, "me/run", path_in_repo="tensorboard/exp1")
    assert one.make_run().exists(), "and it may be called again"


def test_a_folder_goes_on_where_it_went_before(tmp_path):
    """Also in another folder of the repository. Another repository, named for this call, is refused in words."""
    event_file(tmp_path / "exp1" / NAME, 1)
    record(tmp_path / "exp1", "elsewhere")
    for repo_id, environ in ((None, ENVIRON), ("me/run", ENVIRON), (None, {"HF_MPWRITER_REPO_ID": "me/other"})):
        assert only(followed(["exp1"], None, repo_id, environ)).make_run().destination().path_in_repo == "elsewhere"
    for other in ("me/other", "datasets/me/run"):
        with pytest.raises(NotARunError, match="is recorded for"):
            only(followed(["exp1"], None, other, ENVIRON)).make_run()


def test_the_token_goes_to_no_other_hub(tmp_path, monkeypatch):
    """A folder may come from anywhere."""
    event_file(tmp_path / "exp1" / NAME, 1)
    record(tmp_path / "exp1", "tensorboard/exp1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:10")
    with pytest.raises(NotARunError, match="Nothing was sent"):
        only(followed(["exp1"], None, None, ENVIRON)).make_run()


@pytest.mark.parametrize(
    ("named", "said"),
    [(["exp1"], "needs --repo-id"), (["s3://bucket/exp1"], "on a disk of this host")],
)
def test_what_cannot_be_followed_is_refused_before_the_program_starts(named, said):
    """Without a repository for it, and what is no folder."""
    with pytest.raises(Exception, match=said):
        followed(named, None, None, ENVIRON)


def test_two_folders_for_one_place_are_refused():
    """One would lie over the other."""
    with pytest.raises(Exception, match="would both go to"):
        followed(["a/exp1", "b/exp1"], None, "me/run", ENVIRON)
    assert len(followed(["a/exp1", "b/exp2"], None, "me/run", ENVIRON)) == 2


def test_the_run_directory_is_followed_unless_its_writers_are_ours(tmp_path):
    """Nothing is said of it then. A local run stays local, and one of another repository goes where it goes."""
    event_file(tmp_path / "exp1" / NAME, 1)
    one = only(followed([], "exp1", "me/run", ENVIRON))
    assert not one.is_named
    for _ in range(2):
        assert one.make_run().destination().path_in_repo == "tensorboard/exp1"
    event_file(tmp_path / "local" / NAME, 1)
    Spool(str(tmp_path / "local")).create()
    record(tmp_path / "other", "tensorboard/other", "me/other")
    event_file(tmp_path / "other" / NAME, 1)
    for name in ("local", "other"):
        with pytest.raises(NotARunError, match=NOTHING_THERE):
            only(followed([], name, "me/run", ENVIRON)).make_run()
    assert Spool(str(tmp_path / "local")).destination() is None


@pytest.mark.parametrize("environ", [{"LOCAL_RANK": "1"}, {"SLURM_LOCALID": "3"}])
def test_of_the_ranks_of_a_host_the_first_follows_the_run_directory(environ):
    """What is named is followed by each."""
    assert followed([], "exp1", "me/run", environ) == {}
    assert len(followed(["exp1"], "exp1", "me/run", environ)) == 1
    assert len(followed([], "exp1", "me/run", {"LOCAL_RANK": "0"})) == 1
    assert followed([], "exp1", None, {"HF_MPWRITER_REPO_ID": "me/run"}) == {}, "both options ask for it"


@pytest.mark.parametrize(("said", "private"), [("1", True), ("0", False), ("", None)])
def test_a_repository_is_made_as_private_as_the_environment_says(tmp_path, monkeypatch, said, private):
    """As by a writer that takes its repository from there."""
    monkeypatch.setattr(UploaderElection, "ensure", lambda _: False)
    event_file(tmp_path / "exp1" / NAME, 1)
    one = only(followed([], "exp1", "me/run", {"HF_MPWRITER_REPO_PRIVATE": said}))
    upload = Upload(one.make_run(), time.monotonic, with_others=True, private=one.private)
    upload.ask()
    (member,) = Members(Spool(str(tmp_path / "exp1"))).all()
    upload.leave()
    assert member.settings.private is private


def test_nothing_is_followed_where_writers_are_disabled():
    """HF_MPWRITER_DISABLED: nothing is uploaded."""
    assert followed(["exp1"], "exp1", "me/run", {"HF_MPWRITER_DISABLED": "1"}) == {}


def test_the_line_about_a_followed_folder_has_a_page_that_opens(tmp_path):
    """Not the words by which two places are told apart."""
    event_file(tmp_path / "exp1" / NAME, 1)
    one, said = only(followed([], "exp1", "me/run", ENVIRON)), list[str]()
    drain = Drain()
    drain._say = said.append
    upload = drain._opened(str(tmp_path / "exp1"), one)
    (member,) = Members(Spool(str(tmp_path / "exp1"))).all()
    upload.leave()
    assert member.name.worker == SUPERVISOR, "the uploader stays, though nothing may be new"
    assert said == [f"uploading {tmp_path / 'exp1'} to {HUB}/me/run/tree/main/tensorboard/exp1"]
