"""Two runs in one folder of a repository: the second one says so, once."""

from __future__ import annotations

import dataclasses
import os

import pytest
from pushing import Run
from support import event_file

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.verdicts import Done, Verdict
from hf_mpwriter.push import job as job_module
from hf_mpwriter.push.job import Notice

pytest_plugins = ["pushing"]
OTHER = "events.out.tfevents.1700000001.there.2.0123abcd"


def notices(run: Run) -> list[str]:
    """What the last push has found out."""
    with open(os.path.join(run.root, "job.out"), "rb") as file:
        messages = [job_module.from_line(line) for line in file]
    return [message.text for message in messages if isinstance(message, Notice)]


def push(run: Run, *paths: str, **changes: object) -> tuple[Verdict, str]:
    """Push new files; the verdict, and the notice about other runs."""
    files = tuple(LocalFile(path, event_file(run.root / path, 3, tag=str(run.root)), growing=True) for path in paths)
    verdict = run.push(files=files, **changes)
    return verdict, "".join(text for text in notices(run) if "path_in_repo" in text)


@pytest.fixture
def other(run, tmp_path) -> Run:
    """Another run for the same folder."""
    (tmp_path / "other").mkdir()
    return dataclasses.replace(run, root=tmp_path / "other")


def test_a_run_that_begins_where_another_one_is_says_so_once(run, other):
    """It names the folder and what tells them apart; nothing is refused. The first one has nothing to say."""
    first, said = push(run, OTHER)
    assert (type(first), said) == (Done, "")
    done, said = push(other, "events.out.tfevents.1700000002.here.3.0123abcd")
    assert isinstance(done, Done)
    assert f"{run.destination.url} has event files that are not of this run directory" in said
    assert f"before its next start: hf-mpwriter pull {other.root}. " in said
    assert "give one of them another path_in_repo" in said
    _, again = push(other, "events.out.tfevents.1700000003.here.3.0123abcd", known=done.files)
    assert again == ""


def test_what_is_of_this_run_is_no_other_run(run, other):
    """Files that are here as well, as after a pull, and those of other nodes, which have directories of their own."""
    push(run, OTHER, f"rank_00008/{OTHER}")
    event_file(other.root / OTHER, 3, tag=str(run.root))
    assert push(other, "events.out.tfevents.1700000002.here.3.0123abcd")[1] == ""
    node = dataclasses.replace(other, root=other.root / "node")
    node.root.mkdir()
    assert push(node, "rank_00001/events.out.tfevents.1700000002.here.3.0123abcd")[1] == ""
    assert push(node, "rank_00008/events.out.tfevents.1700000002.here.3.0123abcd")[1] != ""
