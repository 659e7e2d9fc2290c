"""The lines about one run, and those about several."""

from __future__ import annotations

import dataclasses

import pytest
from facts import FACTS, FILE, HERE, NOW, RUNNING, facts

from hf_mpwriter.cli.status.facts import WorkerFacts
from hf_mpwriter.cli.status.judgement import judge
from hf_mpwriter.cli.status.text import daemon_text, failure_text, file_text, full, line, table, workers_text
from hf_mpwriter.spool.status import UploaderStatus

UNKNOWN = "runs, it has not said yet what it does"


def shown(**fields: object) -> str:
    """What `status exp1` prints."""
    found = facts(**fields)
    return "\n".join(full(found, judge(found, "exp1"), "exp1"))


@pytest.mark.parametrize(
    ("status", "alive", "line"),
    [
        (UploaderStatus(), False, "none runs"),
        (UploaderStatus(phase="left", beat=NOW), False, "none runs"),
        (UploaderStatus(), True, UNKNOWN),
        (UploaderStatus(phase="left", beat=NOW, process=HERE), True, UNKNOWN),
        (RUNNING, True, "idle, process 7, last seen 3 s ago"),
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
    """Wherever it is; what has left does nothing."""
    assert daemon_text(status, NOW, is_alive=alive) == line


def test_an_uploader_that_is_silent_is_shown_as_such():
    """Its phase is what it wrote last, and says nothing of now."""
    silent = dataclasses.replace(RUNNING, beat=NOW - 3600)
    assert "has said nothing for" in daemon_text(silent, NOW, is_alive=True)


def test_a_failure_is_told_in_plain_words_with_how_often_and_what_helps():
    """The words of the client are in the log."""
    failed = dataclasses.replace(RUNNING, kind="Retry", reason="the Hub cannot be reached", failures=3, hint="Wait.")
    assert failure_text(failed) == "the Hub cannot be reached (3 times in a row). Wait."
    assert failure_text(dataclasses.replace(RUNNING, reason="the next is due.")) == "the next is due."


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


def test_the_files_of_a_local_run_have_no_part_on_the_hub():
    """Nothing is to be uploaded; of a staged one, what is in the logdir is told all the same."""
    assert file_text(FILE, is_local=True) == f"      100 B  {FILE.path}"
    staged = dataclasses.replace(FILE, in_logdir=40)
    assert file_text(staged, is_local=True) == f"  here     100 B, logdir      40 B  {FILE.path}"
    assert " of " not in shown(destination=None)
    assert "exp1 -> local only" in shown(destination=None)


def test_a_run_is_told_with_its_links_and_times():
    """Where it goes, the last commit, the next one, for how long the oldest record waits."""
    text = shown(
        files=(dataclasses.replace(FILE, on_hub=40),),
        lag=34.0,
        uploader=dataclasses.replace(RUNNING, next_in=274.0),
        uploader_is_alive=True,
    )
    assert text.splitlines()[0] == "exp1 -> https://hub/me/run/tree/main/tensorboard/exp1 (public)"
    assert "40 B; 60 B waiting, the oldest record for 0:34" in text
    assert "3f2a1b0c, 2 min ago: https://hub/me/run/commit/3f2a1b0c99" in text
    assert "  next commit  in 4:31" in text
    assert "next: " not in text
    assert shown(files=(dataclasses.replace(FILE, on_hub=40),)).splitlines()[-1] == "next: hf-mpwriter sync exp1"


def test_a_wait_after_a_failure_is_one_for_the_next_try():
    """Its reason stands below it."""
    failed = dataclasses.replace(RUNNING, kind="Retry", reason="the Hub cannot be reached", failures=3, next_in=15.0)
    text = shown(files=(dataclasses.replace(FILE, on_hub=40),), uploader=failed, uploader_is_alive=True)
    assert "  next try     in 0:12" in text
    assert "  error        the Hub cannot be reached (3 times in a row)\n" in f"{text}\n"


def test_a_run_that_has_logged_nothing_has_no_link():
    """Its page is not there."""
    found = facts(files=())
    text = line(found, judge(found, "exp1"))
    assert ("nothing to upload" in text, "http" in text) == (True, False), text
    assert "on the Hub   nothing, as nothing was logged" in shown(files=())
    whole = facts(files=(FILE,))
    assert line(whole, judge(whole, "exp1")).endswith(whole.hub.destination.url)


def test_of_many_files_only_some_are_listed():
    """Those that are behind, and how many more there are."""
    files = [dataclasses.replace(FILE, path=f"events.out.tfevents.{n}", on_hub=100 - (n == 3)) for n in range(500)]
    text = shown(files=tuple(files), uploader_is_alive=True)
    assert [line for line in text.splitlines() if "tfevents" in line] == [
        f"  {'99 B':>9} of {'100 B':>9}  {files[3].path}"
    ]
    assert "499 more files; all of them: hf-mpwriter status exp1 --json" in text


def test_a_staged_file_is_told_with_its_three_places():
    """Here, in the logdir, on the Hub."""
    staged = dataclasses.replace(FILE, in_logdir=40, growing=True)
    assert (
        file_text(staged) == f"  here {'100 B':>9}, logdir {'40 B':>9}, Hub {'100 B':>9}  {FILE.path} (may still grow)"
    )


def test_what_comes_from_a_file_obeys_no_terminal():
    """A reason, a name or a notice may hold escape sequences, because a run directory may come from anywhere."""
    odd = "\x1b]0;mine\x07"
    failed = dataclasses.replace(RUNNING, failures=1, reason=odd)
    files = (dataclasses.replace(FILE, path=f"a{odd}", on_hub=1),)
    text = shown(files=files, uploader=failed, quarantined={f"b{odd}": odd}, to=f"s3://{odd}", refused_there={odd: odd})
    assert odd[0] not in text
    found = facts(files=files)
    assert odd[0] not in "".join(table([(odd, found, judge(found, odd))]))


def test_several_runs_have_a_line_each_and_what_is_to_be_done_below():
    """The columns are aligned; a run that needs nothing has no second line."""
    behind = facts(files=(dataclasses.replace(FILE, on_hub=40),))
    lines = list(table([("exp1", FACTS, judge(FACTS, "exp1")), ("long/exp2", behind, judge(behind, "long/exp2"))]))
    assert [line.split()[:2] for line in lines[:2]] == [["exp1", "complete"], ["long/exp2", "needs"]]
    assert lines[0].index("complete") == lines[1].index("needs you")
    assert lines[2:] == ["next: long/exp2: hf-mpwriter sync long/exp2"]
