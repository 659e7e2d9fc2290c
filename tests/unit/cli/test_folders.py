"""Folders of other writers: of which `sync` makes a run, which are followed, and when their writers have gone."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli import runs
from hf_mpwriter.cli.folders import AFTER_CLOSE, LOOK_EVERY, QUIET, Writers, followed, spool_for, tend
from hf_mpwriter.cli.runs import spool_at
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import SUPERVISOR, Members
from hf_mpwriter.supervisor.drain import ABSENT, NOTHING_THERE, ROUND, Drain, Followed, NotARunError, Upload

HUB = "http://127.0.0.1:9"
NAME = "events.out.tfevents.1700000000.host"
ENVIRON: dict[str, str] = {}


@pytest.fixture
def folder(tmp_path):
    """A folder with an event file of another writer."""
    path = tmp_path / "theirs"
    path.mkdir()
    event_file(path / NAME, 2)
    return path


def test_a_folder_with_event_files_becomes_a_run(folder):
    """Its spool is in it, and is found by the next command."""
    spool = spool_for(str(folder), is_wanted=True)
    assert spool.exists()
    assert os.listdir(folder / ".hf_mpwriter")
    assert spool_for(str(folder), is_wanted=False).root == spool.root


def test_without_a_repository_nothing_is_created(folder):
    """The message has the command."""
    with pytest.raises(click.ClickException, match=r"sync .*theirs --repo-id NAME"):
        spool_for(str(folder), is_wanted=False)
    assert os.listdir(folder) == [NAME]


def test_a_folder_without_event_files_is_no_run(tmp_path):
    """Nor is one that does not exist; nothing is created."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(click.ClickException, match="has no event files"):
        spool_for(str(tmp_path / "empty"), is_wanted=True)
    with pytest.raises(click.ClickException, match="does not exist"):
        spool_for(str(tmp_path / "gone"), is_wanted=True)
    assert os.listdir(tmp_path / "empty") == []


def test_a_folder_of_runs_is_no_run(tmp_path):
    """It would upload them a second time, to another place."""
    Spool(str(tmp_path / "runs" / "a")).create()
    event_file(tmp_path / "runs" / "a" / NAME, 2)
    with pytest.raises(click.ClickException, match=r"has 1 below it: .*--all"):
        spool_for(str(tmp_path / "runs"), is_wanted=True)


def test_a_folder_of_a_run_is_no_run(tmp_path):
    """It would be missing in the run that it is a part of."""
    Spool(str(tmp_path / "exp1")).create()
    event_file(tmp_path / "exp1" / "group" / "a" / NAME, 2)
    with pytest.raises(click.ClickException, match=r"part of a run, .*hf-mpwriter sync .*/exp1"):
        spool_for(str(tmp_path / "exp1" / "group" / "a"), is_wanted=True)


def test_nothing_is_written_into_a_folder_of_another_user(folder, tmp_path, monkeypatch):
    """The spool is in the staging directory, where each command finds it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(runs, "is_own_folder", lambda path: path != str(folder))
    spool = spool_for(str(folder), is_wanted=True)
    assert os.listdir(folder) == [NAME]
    assert (spool.run_dir, spool.exists()) == (str(folder), True)
    assert not spool.root.startswith(str(folder))
    assert spool_at(str(folder)).root == spool.root


def test_a_folder_where_runs_are_staged_is_refused_with_the_reason(folder, tmp_path, monkeypatch):
    """Its event files would not be in the run directory."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", str(tmp_path))
    with pytest.raises(click.ClickException, match="Copy it to a local disk"):
        spool_for(str(folder), is_wanted=True)


# followed folders


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
    ("named", "repo_id", "said"),
    [
        (["exp1"], None, "needs --repo-id"),
        (["s3://bucket/exp1"], None, "on a disk of this host"),
        (["a/exp1", "b/exp1"], "me/run", "would both go to"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_the_program_starts(tmp_path, named, repo_id, said):
    """Without a repository for it, what is not a folder, and two for one place where there is no cache."""
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(click.UsageError, match=said):
        followed(named, None, repo_id, ENVIRON)


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
    assert followed(["exp1"], "exp1", "me/run", environ | {"HF_MPWRITER_DISABLED": "1"}) == {}


@pytest.mark.parametrize(("said", "private"), [("1", True), ("0", False), ("", None)])
def test_a_repository_is_made_as_private_as_the_environment_says(tmp_path, monkeypatch, said, private):
    """As by a writer that takes its repository from there."""
    monkeypatch.setattr(Election, "ensure", lambda *_: False)
    event_file(tmp_path / "exp1" / NAME, 1)
    one = only(followed([], "exp1", "me/run", {"HF_MPWRITER_REPO_PRIVATE": said}))
    upload = Upload(one.make_run(), with_others=True, private=one.private)
    upload.ask()
    (member,) = Members(Spool(str(tmp_path / "exp1"))).all()
    upload.leave()
    assert member.settings.private is private


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
    (line,) = said
    assert line.startswith(f"{tmp_path / 'exp1'} goes to {HUB}/me/run/tree/main/tensorboard/exp1 (1 event file of")


# when their writers have gone


class Clock:
    """Monotonic seconds that only pass when they are slept."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let seconds pass."""
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    """The clock."""
    return Clock()


def test_writers_that_are_not_seen_have_gone_after_a_long_quiet(tmp_path, clock):
    """They may be on another host. A new file, or a longer one, begins the quiet anew."""
    event_file(tmp_path / NAME, 1)
    writers = Writers(str(tmp_path), clock)
    clock.sleep(QUIET - 1)
    assert not writers.have_gone()
    event_file(tmp_path / NAME, 2)
    clock.sleep(1)
    assert not writers.have_gone()
    clock.sleep(QUIET - 1)
    (tmp_path / "b").mkdir()
    event_file(tmp_path / "b" / NAME, 1)
    assert not writers.have_gone()
    clock.sleep(QUIET)
    assert writers.have_gone()


def test_a_writer_that_has_a_file_open_has_not_gone_however_quiet_it_is(tmp_path, clock):
    """When it has ended, and it stays quiet, it has. A reader is no writer."""
    event_file(tmp_path / NAME, 1)
    writers = Writers(str(tmp_path), clock)
    command = [sys.executable, "-c", f"f = open({str(tmp_path / NAME)!r}, 'ab'); print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        clock.sleep(10 * QUIET)
        assert not writers.have_gone()
        writer.communicate(b"\n")
    event_file(tmp_path / NAME, 2)
    assert not writers.have_gone()
    with (tmp_path / NAME).open("rb"):
        clock.sleep(AFTER_CLOSE - 1)
        assert not writers.have_gone()
        clock.sleep(1)
        assert writers.have_gone()


def test_a_writer_that_opens_its_file_for_each_record_is_given_time_while_it_lives(tmp_path, clock):
    """As torch's does without TensorFlow: that it has no file open at a look does not tell that it has closed it."""
    event_file(tmp_path / NAME, 1)
    writers = Writers(str(tmp_path), clock)
    with (tmp_path / NAME).open("ab"):
        assert not writers.have_gone()
    clock.sleep(QUIET - 1)
    assert not writers.have_gone()
    clock.sleep(1)
    assert writers.have_gone()


def test_a_file_that_others_have_open_elsewhere_does_not_count(tmp_path, clock):
    """Of the same name, in another folder."""
    (tmp_path / "a").mkdir()
    event_file(tmp_path / "a" / NAME, 1)
    writers = Writers(str(tmp_path / "a"), clock)
    with (tmp_path / NAME).open("ab"):
        clock.sleep(QUIET)
        assert writers.have_gone()


def test_folders_are_tended_until_the_writers_of_each_have_gone(tmp_path, clock):
    """Also while those of one of them have gone."""
    for name in ("short", "long"):
        event_file(tmp_path / name / NAME, 1)
    end, turns = clock.now + 900.0, list[float]()

    class Tended:
        """Counts the turns of a drain."""

        def turn(self) -> None:
            """Take one."""
            turns.append(clock.now)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now <= end:
            with (tmp_path / "long" / NAME).open("ab") as file:
                file.write(b"x")

    tend(Tended(), [Writers(str(tmp_path / name), clock) for name in ("short", "long")], sleep)
    assert clock.now >= end + QUIET
    assert turns == pytest.approx([1000.0 + LOOK_EVERY * turn for turn in range(len(turns))])
    assert turns[-1] + LOOK_EVERY == clock.now
