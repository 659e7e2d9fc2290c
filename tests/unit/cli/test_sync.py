"""What `hf-mpwriter sync` takes and refuses before anything is sent; what it asks for, and waits for."""

from __future__ import annotations

import os
import time

import click
import pytest
import runs
from support import event_file, scalar

from hf_mpwriter.base.settings import OFFLINE, Destination, Settings
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.cli import sync
from hf_mpwriter.cli.folders import Wishes
from hf_mpwriter.cli.runs import RepoPlace
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.daemon.starts import AnyStart
from hf_mpwriter.delivery.wait import Wanted
from hf_mpwriter.events import framing
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.supervisor.drain import Drain

HUB = "http://127.0.0.1:9"
THERE = Destination(HUB, "me/run")


@pytest.fixture
def synced(tmp_path, monkeypatch) -> list[str]:
    """The runs that are uploaded; the current folder has none."""
    monkeypatch.setenv("HF_ENDPOINT", HUB)
    monkeypatch.chdir(tmp_path)
    found: list[str] = []
    monkeypatch.setattr(sync, "sync_one", lambda name, _: found.append(name))
    return found


def run(*words: str):
    """The result of `hf-mpwriter sync`."""
    return runs.run("sync", *words)


def recorded(path: str, place: str) -> None:
    """A run with a destination."""
    spool = Spool(path)
    spool.create()
    spool.record_destination(Destination(HUB, "me/run", path_in_repo=place), asked=place)


def test_two_runs_of_one_name_are_refused_only_where_they_cannot_get_a_folder_each(synced, tmp_path):
    """Without a cache one would lie over the other. With other folders they may go, and with other names."""
    (tmp_path / "cache").write_text("a file")
    for path in ("a/exp1", "b/exp1", "b/exp2"):
        (tmp_path / path).mkdir(parents=True)
        event_file(tmp_path / path / "events.out.tfevents.1700000000.host", 1)
    result = run("a/exp1", "b/exp1", "--repo-id", "me/run")
    assert (result.exit_code, synced) == (2, [])
    assert "a/exp1 and b/exp1 would both go to" in result.output
    assert "--path-in-repo" in result.output
    assert run("a/exp1", "b/exp2", "--repo-id", "me/run").exit_code == 0
    assert synced == ["a/exp1", "b/exp2"]
    assert run("a/exp1", "./a/exp1", "--repo-id", "me/run").exit_code == 0, "it is the same run"
    (tmp_path / "cache").unlink()
    synced.clear()
    assert run("a/exp1", "b/exp1", "--repo-id", "me/run").exit_code == 0
    assert synced == ["a/exp1", "b/exp1"]
    for name in ("one", "two"):
        recorded(str(tmp_path / name), "tensorboard/x")
    assert run("one", "two").exit_code == 2, "whatever their names are"


def test_of_all_runs_two_of_one_place_hold_up_no_other(synced, tmp_path):
    """Such as a run and a copy that was pulled beside it. One of them is left out, and the exit code says so."""
    for name, place in (("copy", "tensorboard/x"), ("other", "tensorboard/y"), ("x", "tensorboard/x")):
        recorded(str(tmp_path / name), place)
    result = run("--all")
    assert (result.exit_code, synced) == (1, ["copy", "other"])
    told = "x: left out. copy and x would both go to "
    assert told in result.output
    assert "Sync only one of them." in result.output
    assert "1 run left out." in result.output


def test_all_takes_the_runs_below_that_have_a_destination(synced, tmp_path):
    """Of this folder or of others; what is left out is named."""
    recorded(str(tmp_path / "runs" / "a"), "tensorboard/a")
    recorded(str(tmp_path / "runs" / "deep" / "b"), "tensorboard/b")
    Spool(str(tmp_path / "runs" / "local")).create()
    result = run("--all")
    assert (result.exit_code, synced) == (0, ["runs/a", "runs/deep/b"])
    assert "Left out, as no destination is known: runs/local. To upload all: hf-mpwriter sync --all --repo-id NAME" in (
        result.output
    )
    synced.clear()
    assert run("--all", "runs/deep").output == ""
    assert synced == ["runs/deep/b"]
    synced.clear()
    assert run("--all", "--repo-id", "me/run").exit_code == 0
    assert synced == ["runs/a", "runs/deep/b", "runs/local"]


def test_all_takes_the_folders_of_other_writers_too(synced, tmp_path):
    """The topmost ones, once it is known where they go; before that they are named with how to send them."""
    recorded(str(tmp_path / "logs" / "ours"), "tensorboard/ours")
    for path in ("logs/a", "logs/a/loss_train", "logs/deep/b", "logs/.hidden", "logs/ours/child"):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        event_file(tmp_path / path / "events.out.tfevents.1700000000.host", 1)
    result = run("--all")
    assert (result.exit_code, synced) == (0, ["logs/ours"])
    assert "Left out, as no destination is known: logs/a, logs/deep/b." in result.output
    synced.clear()
    assert run("--all", "--repo-id", "me/run", "logs").exit_code == 0
    assert synced == ["logs/ours", "logs/a", "logs/deep/b"]
    result = run("--all", "logs/deep")
    assert (result.exit_code, result.output) == (
        1,
        "Error: No destination yet: logs/deep/b. Say where to: hf-mpwriter sync ./logs/deep --all --repo-id NAME\n",
    )


def test_event_files_beside_runs_are_named_and_left_out(synced, tmp_path):
    """Such a folder cannot become a run; what is below it can."""
    recorded(str(tmp_path / "logs" / "ours"), "tensorboard/ours")
    for path in ("logs", "logs/theirs"):
        (tmp_path / path).mkdir(exist_ok=True)
        event_file(tmp_path / path / "events.out.tfevents.1700000000.host", 1)
    result = run("--all", "--repo-id", "me/run")
    assert (result.exit_code, synced) == (0, ["logs/ours", "logs/theirs"])
    assert "logs has runs below it, so its own event files are left out." in result.output


def test_without_a_run_the_message_says_what_to_give(synced, tmp_path):
    """Nothing is searched unless it is asked for."""
    recorded(str(tmp_path / "runs" / "a"), "tensorboard/a")
    result = run()
    assert (result.exit_code, synced) == (2, [])
    assert "--all" in result.output
    (tmp_path / "empty").mkdir()
    result = run("--all", "empty")
    assert (result.exit_code, "There is no run below, and no event file." in result.output) == (1, True)


def test_the_error_of_one_run_holds_up_no_other(synced, tmp_path):
    """Each has a line, and the exit code tells that not all is there."""
    recorded(str(tmp_path / "b"), "tensorboard/b")

    def sync_one(name, _):
        if name == "a":
            raise OSError("no such disk")
        synced.append(name)

    sync.sync_one = sync_one  # the fixture puts it back
    result = run("a", "b")
    assert (result.exit_code, synced) == (1, ["b"])
    assert "a: no such disk" in result.output
    assert "1 of 2 runs not whole on the Hub." in result.output


@pytest.mark.parametrize(("names", "shown"), [(["exp 1"], "'./exp 1'"), (["exp 1", "exp2"], "LOGDIR")])
def test_an_interrupt_says_that_the_upload_goes_on_and_how_to_end_it(synced, tmp_path, monkeypatch, names, shown):
    """The uploader is a process of its own."""

    def interrupted(*_):
        raise KeyboardInterrupt

    for name in names:
        recorded(str(tmp_path / name), f"tensorboard/{name}")
    monkeypatch.setattr(sync, "sync_one", interrupted)
    result = run(*names)
    assert result.exit_code == 1
    goes_on = f"An upload that has begun goes on: hf-mpwriter status {shown}. To end it: hf-mpwriter stop {shown}"
    assert result.output == f"Error: Interrupted. {goes_on}\n"
    result = run(*names, "--follow")
    later = f"What is logged from now on is not uploaded; then: hf-mpwriter sync {shown}"
    assert (result.exit_code, result.output) == (1, f"Error: Interrupted. {later}\n")


def test_several_folders_are_followed_at_once(synced, tmp_path, monkeypatch):
    """Each is uploaded before and after; the exit code tells that one was not whole in the end."""
    recorded(str(tmp_path / "a"), "tensorboard/a")
    recorded(str(tmp_path / "b"), "tensorboard/b")
    tended, left = list[str](), list[bool]()

    def sync_one(name, _):
        synced.append(name)
        if len(synced) > 2 and name == "b":
            raise OSError("no such disk")

    monkeypatch.setattr(sync, "sync_one", sync_one)
    monkeypatch.setattr(sync, "tend", lambda drain, _: tended.extend(one.run_dir for one in drain.outcomes))
    monkeypatch.setattr(Drain, "leave", lambda _: left.append(True))
    result = run("a", "b", "--follow")
    assert (synced, tended, left) == (["a", "b", "a", "b"], [str(tmp_path / "a"), str(tmp_path / "b")], [True])
    assert (result.exit_code, "Not all is on the Hub." in result.output) == (1, True)
    assert run("s3://bucket/a", "--follow").exit_code == 2


@pytest.mark.parametrize("follows", [False, True])
def test_a_folder_that_is_removed_while_it_is_uploaded_is_told_and_not_waited_for(tmp_path, monkeypatch, follows):
    """No upload can be whole any more. Who follows it goes on: its program may have cleared it to begin anew."""
    monkeypatch.setenv("HF_ENDPOINT", HUB)
    event_file(tmp_path / "exp1" / "events.out.tfevents.1700000000.host", 1)
    monkeypatch.setattr(Election, "ensure", lambda _, need: need and os.rename(tmp_path / "exp1", tmp_path / "gone"))
    rounds = list[object]()
    monkeypatch.setattr(sync, "tend", lambda drain, _: rounds.append(drain))
    result = run(str(tmp_path / "exp1"), "--repo-id", "me/run", *["--follow"] * follows)
    assert "exp1 was removed, or replaced by another folder, while it was uploaded." in result.output
    assert (result.exit_code, len(rounds)) == (1, follows), "it is not back at the end"


# one run


@pytest.mark.parametrize(("grows", "requests"), [(False, 1), (True, 2)])
def test_what_is_written_during_the_scan_is_asked_for_again(tmp_path, monkeypatch, grows, requests):
    """The uploader starts with the first request, and may have scanned a file before it became longer."""
    spool, path = Spool(str(tmp_path)), tmp_path / "events.out.tfevents.1700000000.theirs"
    spool.create()
    length, more = event_file(path, 3), framing.frame(scalar(3))
    asked, awaited = [], []

    def start(_: Election, record: AnyStart | None) -> bool:
        if record is None:  # of a mirror: the run is not staged
            return False
        asked.append([member.requests for member in Members(spool).all()])
        if grows:
            with path.open("ab") as file:
                file.write(more)
        return True

    def wait(wanted: Wanted, *_: object, **__: object) -> None:
        asked.append([member.requests for member in Members(spool).all()])
        awaited.append(wanted.lengths)

    monkeypatch.setattr(Election, "ensure", start)
    monkeypatch.setattr(sync, "_wait", wait)
    answer = sync._upload(spool, THERE, time.monotonic() + 60, Wishes(), "")
    assert asked == [[1], [requests]]
    assert awaited == [{path.name: length + len(more) * grows}]
    assert answer.delivery.total == length + len(more) * grows


def test_an_attachment_that_comes_during_the_scan_is_not_waited_for(tmp_path, monkeypatch):
    """The uploader may have looked at attachments before; its next look is a commit interval away."""
    spool, old, new = Spool(str(tmp_path)), tmp_path / "old.pt", tmp_path / "new.pt"
    spool.create()
    event_file(tmp_path / "events.out.tfevents.1700000000.theirs", 3)
    old.write_bytes(b"1")
    seen, awaited = old.stat().st_ctime_ns, []

    def start(_: Election, record: AnyStart | None) -> bool:
        if record is None:  # of a mirror: the run is not staged
            return False
        time.sleep(0.02)  # beyond a tick of the clock of the filesystem
        old.write_bytes(b"2")
        new.write_bytes(b"3")
        return True

    def wait(wanted: Wanted, *_: object, **__: object) -> None:
        awaited.append((set(wanted.lengths) & {old.name, new.name}, wanted.question.changes))

    monkeypatch.setattr(Election, "ensure", start)
    monkeypatch.setattr(sync, "_wait", wait)
    monkeypatch.setattr(sync, "newest_settings", lambda *_: Settings(allow_patterns=None))
    sync._upload(spool, THERE, time.monotonic() + 60, Wishes(), "")
    assert awaited == [({old.name}, {old.name: seen})]


def test_no_uploader_is_started_for_a_folder_without_event_files(tmp_path, monkeypatch):
    """It would ask the Hub what it holds, and make the repository for that."""
    spool = Spool(str(tmp_path))
    spool.create()
    started: list[object] = []
    monkeypatch.setattr(Election, "ensure", lambda *_: started.append(1))
    answer = sync._upload(spool, THERE, time.monotonic() + 60, Wishes(), "")
    assert (started, answer.delivery.total, answer.delivery.missing) == ([], 0, {})


def test_it_is_told_why_the_hub_was_not_asked_although_all_was_there(tmp_path, monkeypatch):
    """By its last answer nothing is missing; that it is not asked has a reason, and something helps."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(Election, "ensure", lambda *_: False)
    spool, name = Spool(str(tmp_path)), "events.out.tfevents.1700000000.theirs"
    spool.create()
    spool.record_destination(THERE)
    length = event_file(tmp_path / name, 1)
    ledger = Ledger(THERE)
    ledger.acknowledge({name: Sent(length, "0" * 64)}, "commit", 1.0)
    (tmp_path / ".hf_mpwriter" / "hosts" / "here").mkdir(parents=True)
    ledger.save(spool.host("here").ledger)
    answer = sync._upload(spool, THERE, time.monotonic() + 60, Wishes(), "")
    assert (answer.asked, answer.delivery.missing, answer.delivery.carrier.reason) == (False, {}, OFFLINE)


def test_all_with_a_repository_leaves_the_other_runs_where_they_are_recorded_for(tmp_path, monkeypatch):
    """`sync --all` proposes `--repo-id NAME` for what has no destination; the others are no error then."""
    monkeypatch.setenv("HF_ENDPOINT", HUB)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(Election, "ensure", lambda *_: False)
    spool, elsewhere = Spool(str(tmp_path)), Destination(HUB, "me/other", path_in_repo="x")
    event_file(tmp_path / "events.out.tfevents.1700000000.theirs", 1)
    spool.create()
    spool.record_destination(elsewhere)
    with pytest.raises(click.ClickException, match=r"not on the Hub|could not be asked"):
        sync.sync_one(str(tmp_path), Wishes(RepoPlace("me/run"), timeout=0.0, only_new=True))
    assert spool.destination() == elsewhere
