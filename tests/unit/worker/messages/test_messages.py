"""The last line of a run: it is told once, with what the Hub has and where."""

from __future__ import annotations

import logging
import time

import pytest

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.delivery.sentences import done
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.messages.reporter import Reporter
from hf_mpwriter.worker.messages.run import RunMessages

TO = Destination("http://127.0.0.1:9", "run", "dataset", "v/1", "tensor board/exp1")
LINK = "http://127.0.0.1:9/datasets/me/run/tree/v%2F1/tensor%20board/exp1"


def ledger(commits: int = 3) -> Ledger:
    """What the Hub has."""
    known = Ledger(TO, "me/run", private=False, commits={"h": commits - 1, "other": 1} if commits else {})
    known.acknowledge({"a.tfevents": Sent(8_000, "0"), "b.tfevents": Sent(300, "1")}, "c" * 40, 1.0)
    return known


def messages(spool: Spool) -> RunMessages:
    """Those of a reporter at its end."""
    reporter = Reporter(Membership(spool, time.monotonic))
    assert reporter.take(at_end=True)
    return RunMessages(spool, TO, reporter, time.time())


@pytest.fixture
def lines(caplog):
    """What is logged, since the last look."""
    with caplog.at_level(logging.INFO):

        def take() -> list[str]:
            found = caplog.messages[:]
            caplog.clear()
            return found

        yield take


@pytest.mark.parametrize(("commits", "text"), [(3, " in 3 commits"), (1, " in 1 commit"), (0, "")])
def test_the_last_line_counts_what_is_there(commits, text):
    """Bytes and commits of the whole run, by all uploaders; a ledger of an earlier version counts no commits."""
    assert done(ledger(commits), TO) == f"done: 8.3 kB{text}: {LINK}"


def test_the_end_is_told_once(own_spool, lines):
    """Not by a process that left before another one has told it; by one that has left since, again."""
    mine, since = messages(own_spool), time.time()
    mine.done(ledger(), since)
    assert [line for line in lines() if line.startswith("done")] == [f"done: 8.3 kB in 3 commits: {LINK}"]
    mine.done(ledger(), since)
    assert lines() == []
    mine.done(ledger(), time.time() + 1)
    assert [line.partition(":")[0] for line in lines()] == ["done"]


def test_a_run_that_is_over_before_its_first_housekeeping_is_told_where_it_went(own_spool, lines):
    """Once, before the last line."""
    messages(own_spool).done(ledger(), time.time())
    begin, end = lines()
    assert begin.startswith("uploading ")
    assert begin.endswith(f" to {LINK} (public)")
    assert end.startswith("done: ")
