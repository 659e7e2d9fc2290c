"""The last line of a run: it is told by one process, with what the Hub has and where."""

from __future__ import annotations

import logging
import time

import pytest

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.role import Role
from hf_mpwriter.worker.telling.teller import Teller, done
from hf_mpwriter.worker.telling.voice import Voice

TO = Destination("http://127.0.0.1:9", "run", "dataset", "v/1", "tensor board/exp1")
LINK = "http://127.0.0.1:9/datasets/me/run/tree/v%2F1/tensor%20board/exp1"


def ledger(commits: int = 3) -> Ledger:
    """What the Hub has."""
    known = Ledger(TO, "me/run", private=False, commits={"h": commits - 1, "other": 1} if commits else {})
    known.acknowledge({"a.tfevents": Sent(8_000, "0"), "b.tfevents": Sent(300, "1")}, "c" * 40, 1.0)
    return known


def teller(spool: Spool, rank: int | None) -> tuple[Teller, Voice]:
    """A worker at its end."""
    membership = Membership(spool, time.monotonic)
    membership.role = Role(rank, None)
    voice = Voice(membership)
    voice.take(at_end=True)
    return Teller(spool, TO, voice, time.time()), voice


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


def test_the_last_process_tells_it_and_no_other(own_spool, lines):
    """Whichever rank that is; who ends earlier is silent, and so is one that ends at the same time."""
    first, other = (teller(own_spool, rank)[0] for rank in (0, 1))
    since = time.time()
    first.done(ledger(), since)
    assert [line for line in lines() if line.startswith("done")] == []
    other.done(ledger(), since)
    assert [line for line in lines() if line.startswith("done")] == [f"done: 8.3 kB in 3 commits: {LINK}"]
    late, _ = teller(own_spool, 2)
    late.done(ledger(), since)
    assert [line for line in lines() if line.startswith("done")] == []


def test_while_one_process_has_the_last_word_no_other_has_it(own_spool):
    """Two that give their voices up at the same moment."""
    voices = [teller(own_spool, rank)[1] for rank in (0, 1)]
    for voice in voices:
        voice.give_up()
    with voices[0].last_word() as first, voices[1].last_word() as other:
        assert (first, other) == (True, False)
    with voices[1].last_word() as other:
        assert other


def test_a_run_that_is_over_before_its_first_housekeeping_is_told_where_it_went(own_spool, lines):
    """Once, before the last line."""
    mine, _ = teller(own_spool, None)
    mine.done(ledger(), time.time())
    begin, end = lines()
    assert begin.startswith("uploading ")
    assert begin.endswith(f" to {LINK} (public)")
    assert end.startswith("done: ")
