"""What `verify` advises, and what it says when the Hub was not asked."""

from __future__ import annotations

import pytest
from runs import run

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.cli.verify import advice, unreached, unseen
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.testing import FileReport, Report

SYNC = "hf-mpwriter sync ./exp1"
HERE = Destination("https://hub", "me/run")


def report(problem: str, file: FileReport | None = None, attachment: FileReport | None = None) -> Report:
    """A report with one problem."""
    files = {file.path: file} if file else {}
    attachments = {attachment.path: attachment} if attachment else {}
    return Report(files=files, attachments=attachments, problems=[problem])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (report("a: 1 of 2 bytes", FileReport("a", 2, 1)), f"upload what is missing or has changed: {SYNC}"),
        (report("a.tsv: not on the Hub", attachment=FileReport("a.tsv", 2)), f"or has changed: {SYNC}"),
        (
            report("a: is not the beginning", FileReport("a", 2, 2, differs=True)),
            "no upload replaces them: restore the local ones",
        ),
        (report("a: is longer", FileReport("a", 2, 3, differs=True)), f"remove those on the Hub, then run: {SYNC}"),
        (report("a: shrank on the Hub", FileReport("a", 2, 2)), "The Hub has all of the run now"),
    ],
)
def test_what_is_advised_fits_what_was_found(found, words):
    """Missing bytes are sent by `sync`, other content is not; of the past nothing can be changed."""
    (sentence,) = advice(found, SYNC)
    assert words in sentence


@pytest.mark.parametrize(
    ("why", "helps", "words"),
    [
        ("token refused (401)", "run `hf auth login`", "token refused (401). Run `hf auth login`"),
        ("the Hub fails (503)", "", "the Hub fails (503). Try again later; what is wrong: hf-mpwriter doctor"),
    ],
)
def test_without_an_answer_nothing_is_said_of_the_data(why, helps, words):
    """One line: the reason, and what helps."""
    assert unreached(why, helps) == f"Nothing was compared: {words}"


def test_a_local_run_is_told_with_what_uploads_it(tmp_path, monkeypatch):
    """There is nothing to compare it with."""
    monkeypatch.chdir(tmp_path)
    Spool("exp1").create()
    done = run("verify", "exp1")
    text = "exp1 is local only: there is no copy to compare. Upload it: hf-mpwriter sync ./exp1 --repo-id NAME"
    assert (done.exit_code, done.output) == (1, f"Error: {text}\n")


def test_a_repository_that_is_not_seen_may_have_held_the_run():
    """What took bytes before is gone or hidden; what never did is only not there yet."""
    held = Ledger(HERE)
    held.acknowledge({"a": Sent(5, "5" * 64)}, "c", 1.0)
    assert "hf auth login" in unseen(HERE, held, SYNC)
    for ledger in (None, Ledger(HERE)):
        assert unseen(HERE, ledger, SYNC).endswith(f"Run: {SYNC}")
