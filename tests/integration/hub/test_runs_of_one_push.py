"""A push carries several runs: one commit for all, and a verdict on each."""

from __future__ import annotations

import dataclasses

import pytest
from jobs import job_of, part
from pushing import NAME, Run, is_as
from support import event_file

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.verdicts import Done, Moved, Quarantine, Refused, Retry, Split
from hf_mpwriter.push.job import Job, Part
from hf_mpwriter.uploader.branch import is_of_a_run

pytest_plugins = ("pushing",)


@pytest.fixture
def runs(run, tmp_path) -> list[Run]:
    """Four runs of a repository that exists, each with an event file that was not sent yet."""
    assert isinstance(run.push(), Done)
    found = []
    for number in range(4):
        where = dataclasses.replace(run.destination, path_in_repo=f"{run.destination.path_in_repo}/trial{number}")
        one = dataclasses.replace(run, root=tmp_path / f"trial{number}", destination=where)
        one.root.mkdir(mode=0o700)
        one.log()
        found.append(one)
    return found


def part_of(run: Run, **changes: object) -> Part:
    """What is sent of a run."""
    file = LocalFile(NAME, run.length, growing=True)
    fields = {"folder": run.destination.path_in_repo, "files": (file,), "cache": str(run.root / "cache")}
    return part(run.root, **fields | changes)


def job(runs: list[Run], *parts: Part, **changes: object) -> Job:
    """The job of a push of them."""
    root = dataclasses.replace(runs[0].destination, path_in_repo="")
    return job_of(*(parts or map(part_of, runs)), destination=root, xet=False, **changes)


def titles(hub) -> list[str]:
    """Of all commits, the newest first."""
    return [commit.title for commit in hub.store.commits("model", "me/run")]


def test_one_commit_has_what_is_new_of_all_runs_and_names_them(hub, runs, pushes):
    """Each gets the verdict on its own files; the ledger of none gets those of another."""
    before = titles(hub)
    verdicts = pushes.verdicts(job(runs))
    assert [list(verdict.files) for verdict in verdicts] == [[NAME]] * 4
    assert len({(type(one), one.own, one.commit, one.parent) for one in verdicts}) == 1
    assert isinstance(verdicts[0], Done)
    assert [one.on_hub(hub) for one in runs] == [(one.root / NAME).read_bytes() for one in runs]
    assert titles(hub)[: -len(before)] == ["Add TensorBoard events (4 files of trial0, trial1, trial2 and 1 more)"]


def test_what_is_wrong_with_one_run_keeps_no_other_back(hub, runs, pushes):
    """Of one, others have put something else in its place; a file of another has vanished, a third has nothing new."""
    fine, foreign, vanished, done = runs
    event_file(foreign.root / NAME, 9, tag="theirs")
    stranger = dataclasses.replace(foreign, length=(foreign.root / NAME).stat().st_size)
    assert isinstance(pushes.verdict(job([stranger])), Done)
    theirs = stranger.on_hub(hub)
    (foreign.root / NAME).unlink()
    foreign.log()
    earlier = pushes.verdict(job([done]))
    (vanished.root / NAME).unlink()
    before = titles(hub)
    verdicts = pushes.verdicts(job(runs, *map(part_of, runs[:3]), part_of(done, known=earlier.files)))
    assert [type(verdict) for verdict in verdicts] == [Done, Quarantine, Retry, Done]
    assert list(verdicts[1].paths) == [NAME]
    assert all(is_of_a_run(verdict, alone=False) for verdict in verdicts[1:3])
    assert is_as(verdicts[3], Done, own=False, checked=True, files={})
    assert verdicts[0].files[NAME].length == fine.length
    assert fine.on_hub(hub) == (fine.root / NAME).read_bytes()
    assert foreign.on_hub(hub) == theirs
    assert not vanished.is_there(hub)
    assert titles(hub)[: -len(before)] == ["Add TensorBoard events (1 file of trial0)"]


def test_a_path_that_the_client_refuses_is_of_its_run_alone(hub, runs, pushes):
    """It is known at once, so the others arrive with the same push."""
    (runs[1].root / ".git").mkdir()
    path = f".git/{NAME}"
    (runs[1].root / NAME).rename(runs[1].root / path)
    bad = part_of(runs[1], files=(LocalFile(path, runs[1].length, growing=True),))
    first, second, *_ = pushes.verdicts(job(runs, part_of(runs[0]), bad))
    assert isinstance(second, Quarantine)
    assert ".git" in second.paths[path]
    assert isinstance(first, Done)
    assert runs[0].is_there(hub)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("POST /commit/ 503 times=0", Retry),
        ("POST /commit/ 400 times=0", Split),
        ("POST /commit/ 403 times=0", Refused),
        ("POST /commit/ 412 times=0", Moved),
    ],
)
def test_what_the_hub_refuses_as_a_whole_is_a_verdict_on_all(hub, runs, pushes, fault, kind):
    """None has arrived; the same push arrives later."""
    hub.fault(fault)
    verdicts = pushes.verdicts(job(runs))
    assert len(verdicts) == 4
    assert len({type(verdict) for verdict in verdicts}) == 1
    assert not any(one.is_there(hub) for one in runs)
    hub.clear_faults()
    assert all(is_as(verdict, Done, own=True) for verdict in pushes.verdicts(job(runs)))


def test_of_runs_that_were_compared_at_the_own_head_only_what_is_new_is_read_back(hub, runs, pushes):
    """One that joins is compared whole, at that commit: a file that the Hub has lost is found there."""
    first = pushes.verdicts(job(runs))
    known = [verdict.files | {"lost.tfevents": verdict.files[NAME]} for verdict in first]
    parts = [part_of(one, known=held, is_trusted=one is not runs[3]) for one, held in zip(runs, known, strict=True)]
    *trusted, joins = pushes.verdicts(job(runs, *parts, own_head=first[0].commit))
    assert [(verdict.files, verdict.checked) for verdict in trusted] == [({}, False)] * 3
    assert (list(joins.files), joins.checked) == (["lost.tfevents"], True)
    assert joins.files["lost.tfevents"].is_gone


def test_the_visibility_is_told_once_for_all_runs_and_a_private_run_does_not_go_to_a_public_repository(
    hub, runs, pushes
):
    """The others go; each user is told what concerns them."""
    parts = [part_of(runs[0]), part_of(runs[1], private=True), *map(part_of, runs[2:])]
    verdicts = pushes.verdicts(job(runs, *parts))
    assert [type(verdict) for verdict in verdicts] == [Done, Refused, Done, Done]
    assert not runs[1].is_there(hub)
    said = (runs[0].root / "job.out").read_text()
    assert said.count("PUBLIC: everybody can read it") == 1
