"""The loop of an uploader of several runs: what goes wrong with one is of that one, and they share their commits."""

from __future__ import annotations

import shutil

import pytest
from attached import write
from uploaders import EVENT_FILE

from hf_mpwriter.base.verdicts import Sent, Unknown
from hf_mpwriter.daemon.loop import REFUSALS
from hf_mpwriter.push.job import Notice
from hf_mpwriter.system import locks
from hf_mpwriter.uploader.lanes import YIELD_AFTER


def is_free(upload) -> bool:
    """Whether another process may serve a run."""
    return not locks.is_held(upload._spool.uploader_lock)


def gone_wrong(*_: object) -> None:
    """A bug."""
    raise RuntimeError("a bug")


def refused(*_: object) -> None:
    """A disk."""
    raise OSError(5, "EIO")


STEPS = {  # where it goes wrong
    "look": lambda upload: (upload.peers, "look"),
    "decide": lambda upload: (upload.sending, "situation"),
    "scan": lambda upload: (upload.sending, "scan"),
    "publish": lambda upload: (upload.sending, "publish"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_goes_wrong_is_let_go_and_the_others_go_on(sweep, monkeypatch, step):
    """Its lock is free for an uploader of its own; it is not taken in again here."""
    uploads = [sweep.add(name) for name in "abc"]
    monkeypatch.setattr(*STEPS[step](uploads[1]), gone_wrong)
    sweep.now += 10
    assert sweep.one.tick()
    assert sweep.one.uploads == [uploads[0], uploads[2]]
    assert [is_free(upload) for upload in uploads] == [False, True, False]
    assert sweep.one._declined == {uploads[1].identity}
    assert {"a", "c"} <= {part.folder for part in sweep.jobs[-1].parts}


def test_a_run_that_goes_wrong_with_its_verdict_keeps_it_from_no_other(sweep, monkeypatch):
    """The others take in theirs."""
    uploads = [sweep.add(name) for name in "abc"]
    sweep.push(*uploads)
    monkeypatch.setattr(uploads[1].sending, "conclude", gone_wrong)
    sweep.arrives("1", "0")
    assert sweep.one.uploads == [uploads[0], uploads[2]]
    assert all(upload.sending.ledger.length(EVENT_FILE) for upload in sweep.one.uploads)


def test_a_run_that_is_let_go_while_it_is_pushed_ends_the_push(sweep):
    """Nothing of it is under way when its lock is free; who comes next finds the record. The others try again."""
    uploads = [sweep.add(name) for name in "abc"]
    sweep.push(*uploads)
    sweep.one._drop(uploads[1])
    assert sweep.branch.push.killed
    sweep.conclude(*[Unknown("killed")] * 3)
    assert uploads[1].host.in_flight.exists()
    sweep.now += 10
    assert sweep.push(uploads[0], uploads[2]) == ["a"]


def test_a_disk_that_refuses_is_tried_for_a_minute(sweep, monkeypatch):
    """As long as that of a run alone; the others are served meanwhile."""
    one, two = sweep.add("a"), sweep.add("b")
    with monkeypatch.context() as patch:
        patch.setattr(one.peers, "look", refused)
        for _ in range(REFUSALS):
            sweep.now += 1
            assert sweep.one.tick()
    assert (sweep.one.uploads, one.refusals) == ([one, two], REFUSALS)
    sweep.now += 1
    sweep.one.tick()
    assert one.refusals == 0, "what it accepts begins anew"
    monkeypatch.setattr(one.peers, "look", refused)
    for _ in range(REFUSALS + 1):
        sweep.now += 1
        assert sweep.one.tick()
    assert (sweep.one.uploads, is_free(one), is_free(two)) == ([two], True, False)


def test_a_run_whose_spool_was_removed_is_let_go(sweep):
    """A user has removed the run; the process ends with the last one."""
    one, two = sweep.add("a"), sweep.add("b")
    shutil.rmtree(one.run_dir)
    assert sweep.one.tick()
    assert sweep.one.uploads == [two]
    shutil.rmtree(two.run_dir)
    assert not sweep.one.tick()


def test_a_run_goes_along_with_a_commit_of_others_once_half_of_its_interval_is_over(sweep):
    """Many runs with the same interval come to share their commits; none commits twice as often as it asked for."""
    uploads = [sweep.add(name) for name in "ab"]
    for upload in uploads:
        upload.sending.ledger.acknowledge({"sent.before": Sent(1, "0" * 64)}, "0", 1.0)
    sweep.now += 10
    sweep.one.tick()
    assert [part.folder for part in sweep.jobs[-1].parts] == ["a", "b"]
    sweep.arrives("1", "0")
    for seconds, going in ((149, ["b"]), (2, ["b", "a"])):
        sweep.now += seconds
        sweep.log(*uploads)
        sweep.workers["b"].count(requests=len(sweep.jobs))
        sweep.one.tick()
        assert sorted(part.folder for part in sweep.jobs[-1].parts) == sorted(going)
        sweep.arrives(f"{sweep.now}", "")


def test_attachments_whose_turn_it_is_go_before_event_files_of_other_runs(sweep):
    """Where many runs commit, one or another always has event files that are due."""
    one, two = sweep.add("a"), sweep.add("b")
    write(one.run_dir, "notes.txt", b"one")
    sweep.now += 10
    sweep.one.tick()
    assert [file.path for file in sweep.jobs[-1].files] == [EVENT_FILE] * 2
    sweep.arrives("1", "0")
    sweep.now += 60 * one.sending.events.settings.commit_every + YIELD_AFTER + 1
    sweep.log(one, two)
    two.sending.attachments._next_round = two.sending.attachments._last_turn = sweep.now
    sweep.one.tick()
    assert [(part.folder, [file.path for file in part.files]) for part in sweep.jobs[-1].parts] == [
        ("a", ["notes.txt"])
    ]


def test_what_was_left_behind_comes_first_the_next_time(sweep, monkeypatch):
    """Where a commit has room for few, each has its turn."""
    uploads = [sweep.add(name) for name in "abcd"]
    monkeypatch.setattr("hf_mpwriter.uploader.branch.MOST_RUNS", 2)
    assert sweep.push(*sweep.one.uploads) == ["a", "b"]
    assert sweep.one.uploads == [uploads[2], uploads[3], uploads[0], uploads[1]]


def test_what_a_push_finds_out_is_told_to_the_users_of_that_run(sweep, monkeypatch):
    """Of the others nobody reads it twice."""
    uploads = [sweep.add(name) for name in "ab"]
    sweep.push(*uploads)
    monkeypatch.setattr(sweep.pushes[-1], "listen", lambda: ([Notice("others are here", 1)], []))
    sweep.one._listen()
    notices = [[notice.text for notice in upload.status.status.notices] for upload in uploads]
    assert notices == [[], ["others are here"]]


def test_sigterm_sends_all_runs_once_more(sweep, monkeypatch):
    """In one commit, and then none is left."""
    monkeypatch.setattr("hf_mpwriter.uploader.loop.end_in_time", lambda: None)
    uploads = [sweep.add(name) for name in "abc"]
    sweep.one.terminate()
    assert sweep.one.tick()
    assert [part.folder for part in sweep.jobs[-1].parts] == ["a", "b", "c"]
    sweep.arrives("1", "0")
    assert not sweep.one.tick()
    assert all(map(is_free, uploads))
