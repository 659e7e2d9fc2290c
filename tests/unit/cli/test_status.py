"""The command `status`: the lines about one run and about several, a watch, runs that cannot be read."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
from facts import FACTS, FILE, HALF, HERE, NOW, RUNNING
from runs import run
from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli import status as command
from hf_mpwriter.cli.facts import WorkerFacts, judge
from hf_mpwriter.cli.status import SeenRun, as_text, daemon_text, workers_text
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Held, Ledger
from hf_mpwriter.spool.status import LiveStatus, UploaderStatus
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import host_id

UNKNOWN = "runs, it has not said yet what it does"
ODD = "\x1b]0;mine\x07"
DOWN = dataclasses.replace(RUNNING, kind="Retry", reason="the Hub cannot be reached", failures=3, next_in=15.0)


OURS = dataclasses.replace(FILE, path="events.out.tfevents.1795233002.vm.7.0123abcd")


def in_bucket(**fields: object) -> UploaderStatus:
    """The status of an uploader that brings the run to a live bucket, too."""
    return dataclasses.replace(RUNNING, live=LiveStatus(bucket="me/b", **fields))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two runs; it is the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("exp1", "-odd"):
        Spool(str(tmp_path / "runs" / name)).create()
    Spool(str(tmp_path / "runs" / "exp1")).record_destination(Destination("https://hub", "me/run"))
    return tmp_path / "runs"


def shown(*names: str, **fields: object) -> str:
    """What `status` prints of runs with these facts, by default of exp1 alone."""
    found = dataclasses.replace(FACTS, **fields)
    names = names or ("exp1",)
    return as_text([SeenRun(name, found, judge(found, name)) for name in names], names)


def test_a_ledger_with_digests_that_no_content_has_is_shown(here):
    """Each attachment is read again then."""
    spool, destination = Spool(str(here / "exp1")), Destination("https://hub", "me/run")
    (here / "exp1" / "notes.txt").write_text("a note")
    known = Ledger(destination, files={"notes.txt": Held(6, "no digest", "c0ffee", 1.0, "none", stamp=(1, 6, 1, 1))})
    os.makedirs(spool.host(host_id()).root)
    known.save(spool.host(host_id()).ledger)
    assert "last commit  c0ffee" in run("status", here / "exp1").stdout


@pytest.mark.parametrize(
    ("status", "alive", "line"),
    [
        (UploaderStatus(), False, "none runs"),
        (UploaderStatus(phase="left", beat=NOW), False, "none runs"),
        (UploaderStatus(), True, UNKNOWN),
        (UploaderStatus(phase="left", beat=NOW, process=HERE), True, UNKNOWN),
        (RUNNING, True, "idle, process 7, last seen 3 s ago"),
        (dataclasses.replace(RUNNING, beat=NOW - 3600), True, "has said nothing for"),
        (
            dataclasses.replace(RUNNING, process=dataclasses.replace(HERE, namespace=1)),
            True,
            "idle, process 7 in another pid namespace, last seen 3 s ago",
        ),
        (
            dataclasses.replace(RUNNING, process=dataclasses.replace(HERE, host="there-1234")),
            True,
            "idle, process 7 on there-1234, last seen 3 s ago",
        ),
    ],
)
def test_a_line_about_an_uploader_says_what_it_does(status, alive, line):
    """Wherever it is; what has left does nothing, and the phase of a silent one says nothing of now."""
    assert line in daemon_text(status, NOW, is_alive=alive)


def test_workers_are_counted_and_named_while_they_are_few():
    """A thousand ranks need one line."""
    few = [
        WorkerFacts("main", "alive", "here", 7, is_here=True),
        WorkerFacts("rank_00001", "died", "gpu-3", 8, is_here=False),
        WorkerFacts("rank_00002", "ended", "gpu-3", 8, is_here=False),
    ]
    assert workers_text(few) == "1 alive: main (pid 7); 1 ended: rank_00002 on gpu-3; 1 died: rank_00001 on gpu-3"
    assert workers_text(few[1:2] * 1000).startswith("1000 died: ")
    assert len(workers_text(few[1:2] * 1000)) < 200


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "exp1 -> https://hub/me/run/tree/main/tensorboard/exp1 (public)"),
        ({}, f"  {'100 B':>9} of {'100 B':>9}  {FILE.path}"),
        ({}, "  last commit  3f2a1b0c, 2 min ago: https://hub/me/run/commit/3f2a1b0c99"),
        ({"files": ()}, "  on the Hub   nothing, as nothing was logged"),
        ({"files": HALF, "lag": 34.0}, "  on the Hub   40 B; 60 B waiting, the oldest record for 0:34"),
        ({"files": HALF}, "next: hf-mpwriter sync ./exp1"),
        ({"files": HALF, "uploader": dataclasses.replace(RUNNING, next_in=274.0)}, "  next commit  in 4:31"),
        ({"files": HALF, "uploader": DOWN}, "  next try     in 0:12"),
        ({"files": HALF, "uploader": DOWN}, "  error        the Hub cannot be reached (3 times in a row)"),
        (
            {"files": HALF, "uploader": dataclasses.replace(DOWN, hint="wait.")},
            "  error        the Hub cannot be reached (3 times in a row). Wait",
        ),
        ({"bucket": "me/b"}, "  safe         nothing is known to be in me/b yet"),
        (
            {"bucket": "me/b", "uploader": in_bucket(why="me/b is public")},
            "  safe         nothing is known to be in me/b: me/b is public",
        ),
        (
            {"bucket": "me/b", "files": HALF, "uploader": in_bucket(safe=7, at=NOW - 5, interval=4.0, size=9)},
            "  safe         7 B, everything, in me/b, 5 s ago; a round every 4 s; 9 B in the bucket",
        ),
        (
            {"bucket": "me/b", "files": (OURS,), "uploader": in_bucket(safe=7, at=NOW - 5, interval=4.0, why="503")},
            "  safe         7 B; 93 B not yet, in me/b, 5 s ago; then: 503",
        ),
        ({"destination": None}, "exp1 -> local only"),
        ({"destination": None}, f"  {'100 B':>9}  {FILE.path}"),
        (
            {"to": "s3://b/exp1", "files": (dataclasses.replace(FILE, in_logdir=40, growing=True),)},
            f"  here {'100 B':>9}, logdir {'40 B':>9}, Hub {'100 B':>9}  {FILE.path} (may still grow)",
        ),
        (
            {"to": "s3://b/exp1", "files": (dataclasses.replace(FILE, in_logdir=40),), "destination": None},
            f"  here {'100 B':>9}, logdir {'40 B':>9}  {FILE.path}",
        ),
    ],
)
def test_a_run_is_told_with_its_places_links_and_times(fields, line):
    """Where it goes, what is where, the last commit, the next one or the next try with the reason."""
    fields = {"uploader_is_alive": "uploader" in fields} | fields
    assert line in shown(**fields).splitlines()


def test_of_many_files_only_some_are_listed():
    """Those that are behind, and how many more there are."""
    files = [dataclasses.replace(FILE, path=f"events.out.tfevents.{n}", on_hub=100 - (n == 3)) for n in range(500)]
    text = shown(files=tuple(files), uploader_is_alive=True)
    assert [line for line in text.splitlines() if "tfevents" in line] == [
        f"  {'99 B':>9} of {'100 B':>9}  {files[3].path}"
    ]
    assert "499 more files; all of them: hf-mpwriter status ./exp1 --json" in text


def test_what_comes_from_a_file_obeys_no_terminal():
    """A reason, a name or a notice may hold escape sequences, because a run directory may come from anywhere."""
    failed = dataclasses.replace(RUNNING, failures=1, reason=ODD)
    files = (dataclasses.replace(FILE, path=f"a{ODD}", on_hub=1),)
    odd = {"files": files, "uploader": failed, "quarantined": {f"b{ODD}": ODD}, "to": f"s3://{ODD}"}
    assert ODD[0] not in shown(refused_there={ODD: ODD}, **odd)
    assert ODD[0] not in shown(ODD, "exp2", **odd)


def test_several_runs_have_a_line_each_and_what_is_to_be_done_below():
    """The columns are aligned; a run that needs nothing has no second line, and one without files no link."""
    behind = dataclasses.replace(FACTS, files=HALF)
    names, found = ("exp1", "long/exp2"), (FACTS, behind)
    runs = [SeenRun(name, one, judge(one, name)) for name, one in zip(names, found, strict=True)]
    lines = as_text(runs, names).splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["exp1", "complete"], ["long/exp2", "needs"]]
    assert lines[0].index("complete") == lines[1].index("needs you")
    assert lines[0].endswith(FACTS.destination.url)
    assert lines[2:] == ["next: long/exp2: hf-mpwriter sync ./long/exp2"]
    empty = shown("exp1", "exp2", files=())
    assert ("nothing logged" in empty, "http" in empty) == (True, False), empty


def test_without_an_argument_all_runs_below_are_shown(here, monkeypatch):
    """A line each, as they can be typed, and the highest exit code; JSON is a list then."""
    assert [line.split()[0] for line in run("status").output.splitlines()] == ["runs/-odd", "runs/exp1"]
    names = [one["logdir"] for one in json.loads(run("status", "--json").output)]
    assert names == [str(here / "-odd"), str(here / "exp1")]
    assert run("status").exit_code == 0
    (here / "exp1" / ".hf_mpwriter" / "run.json").write_text('{"destination": 7}')
    assert run("status").exit_code == 4
    monkeypatch.chdir(here)
    assert [line.split()[0] for line in run("status").output.splitlines()][:2] == ["./-odd", "exp1"]


@pytest.mark.parametrize("content", ['{"destination": 7}', '{"destina', ""])
def test_a_damaged_record_of_the_destination_is_said_to_be_damaged(here, content):
    """Not to be that of a local run: nothing of it is uploaded until a person has looked."""
    (here / "exp1" / ".hf_mpwriter" / "run.json").write_text(content)
    result = run("status", "runs/exp1")
    assert (result.exit_code, "run.json is damaged" in result.output) == (4, True), result.output
    found = json.loads(run("status", "runs/exp1", "--json").output)
    assert (found["state"], "is damaged" in found["next"]) == ("needs you", True)


def test_a_run_that_is_not_there_hides_no_other(here):
    """Of several the others are shown; alone it is an error."""
    result = run("status", "runs/exp1", "runs/exp7")
    assert (result.exit_code, result.output.splitlines()[0].split()[:2]) == (4, ["runs/exp1", "complete"])
    assert "next: runs/exp7: runs/exp7 does not exist." in result.output
    found = json.loads(run("status", "runs/exp1", "runs/exp7", "--json").output)
    assert [one["state"] for one in found] == ["complete", "needs you"]
    assert run("status", "runs/exp7").exit_code == 1


def test_a_folder_without_runs_says_so_and_names_the_folders_of_other_writers(tmp_path, monkeypatch):
    """Nothing is wrong. A newcomer's folder of TensorBoard runs is not an empty one."""
    monkeypatch.chdir(tmp_path)
    result = run("status")
    assert (result.exit_code, json.loads(run("status", "--json").output)) == (0, [])
    assert result.output == "No run below this folder. Give the logdir of a run: hf-mpwriter status LOGDIR\n"
    (tmp_path / "torch").mkdir()
    event_file(tmp_path / "torch" / "events.out.tfevents.1700000000.host", 1)
    assert "Event files of other writers: torch. To upload them: hf-mpwriter sync --all" in run("status").output


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_a_watch_ends_with_the_last_process_or_by_the_keyboard(here, monkeypatch, is_interrupted):
    """Where nothing can be drawn anew it prints the end only. There is no traceback."""
    held, looks = [locks.try_exclusive(Spool(str(here / "exp1")).uploader_lock)], []

    def sleep(_: float) -> None:
        looks.append(1)
        if is_interrupted:
            raise KeyboardInterrupt
        if len(looks) == 3:
            locks.release(held.pop())

    monkeypatch.setattr(command.time, "sleep", sleep)
    result = run("status", "runs/exp1", "--watch")
    assert (result.exit_code, result.output.count("runs/exp1 -> ")) == (0, 0 if is_interrupted else 1)
    assert len(looks) == (1 if is_interrupted else 3)
    for lock in held:
        locks.release(lock)
