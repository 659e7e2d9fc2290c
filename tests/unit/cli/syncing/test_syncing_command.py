"""Which runs `hf-mpwriter sync` takes, and which it refuses, before anything is sent."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner
from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli.main import main
from hf_mpwriter.cli.syncing import command
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.supervisor.drain import Drain
from hf_mpwriter.worker.election import UploaderElection

HUB = "http://127.0.0.1:9"


@pytest.fixture
def synced(tmp_path, monkeypatch) -> list[str]:
    """The runs that are uploaded; the current folder has none."""
    monkeypatch.setenv("HF_ENDPOINT", HUB)
    monkeypatch.chdir(tmp_path)
    found: list[str] = []
    monkeypatch.setattr(command, "sync_one", lambda name, _: found.append(name))
    return found


def run(*words: str):
    """The result of `hf-mpwriter sync`."""
    return CliRunner().invoke(main, ["sync", *words])


def recorded(path: str, place: str) -> None:
    """A run with a destination."""
    spool = Spool(path)
    spool.create()
    spool.record_destination(Destination(HUB, "me/run", path_in_repo=place))


def test_two_runs_of_one_name_are_refused_for_one_repository(synced, tmp_path):
    """One would lie over the other. With other folders in the repository they may go, and with other names."""
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


def test_runs_that_are_recorded_for_one_place_are_refused(synced, tmp_path):
    """Whatever their names are."""
    recorded(str(tmp_path / "one"), "tensorboard/x")
    recorded(str(tmp_path / "two"), "tensorboard/x")
    result = run("one", "two")
    assert (result.exit_code, synced) == (2, [])


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
        "Error: No destination yet: logs/deep/b. Say where to: hf-mpwriter sync logs/deep --all --repo-id NAME\n",
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

    command.sync_one = sync_one  # the fixture puts it back
    result = run("a", "b")
    assert (result.exit_code, synced) == (1, ["b"])
    assert "a: no such disk" in result.output
    assert "1 of 2 runs not whole on the Hub." in result.output


@pytest.mark.parametrize(("names", "shown"), [(["exp 1"], "'exp 1'"), (["exp 1", "exp2"], "LOGDIR")])
def test_an_interrupt_says_that_the_upload_goes_on_and_how_to_end_it(synced, tmp_path, monkeypatch, names, shown):
    """The uploader is a process of its own."""

    def interrupted(*_):
        raise KeyboardInterrupt

    for name in names:
        recorded(str(tmp_path / name), f"tensorboard/{name}")
    monkeypatch.setattr(command, "sync_one", interrupted)
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

    monkeypatch.setattr(command, "sync_one", sync_one)
    monkeypatch.setattr(command, "tend", lambda drain, _: tended.extend(one.run_dir for one in drain.outcomes))
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
    monkeypatch.setattr(UploaderElection, "ensure", lambda _: os.rename(tmp_path / "exp1", tmp_path / "gone"))
    rounds = list[object]()
    monkeypatch.setattr(command, "tend", lambda drain, _: rounds.append(drain))
    result = run(str(tmp_path / "exp1"), "--repo-id", "me/run", *["--follow"] * follows)
    assert "exp1 was removed, or replaced by another folder, while it was uploaded." in result.output
    assert (result.exit_code, len(rounds)) == (1, follows), "it is not back at the end"
