"""The last line of a run: it is told by one process, with what the Hub has and where."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.progress import Logged
from hf_mpwriter.system import disk
from hf_mpwriter.worker.ending.waits import Waits
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


def test_an_end_that_has_waited_already_tells_it_if_the_last_one_took_it_for_a_process_that_goes_on(own_spool, lines):
    """After its `with` block a process ends once more, at the end of the interpreter, and may speak for a moment."""
    path = Path(own_spool.run_dir, "events.out.tfevents.1700000000.h.1.0123abcd")
    known, length = Ledger(TO, "me/run", private=False), event_file(path, 1)
    known.acknowledge({path.name: Sent(length, "0")}, "c" * 40, 1.0)
    disk.make_dirs(own_spool.host("h-1").root)
    known.save(own_spool.host("h-1").ledger)
    own_spool.record_destination(TO)
    membership = Membership(own_spool, time.monotonic)
    membership.role, membership.destination = Role(1, None), TO
    voice, waits = Voice(membership), Waits(membership, time.monotonic)
    mine = Teller(own_spool, TO, voice, time.time())
    logged = Logged({path.name: length})

    def end() -> None:
        found = waits.wait({path.name: length}, voice, lambda: logged, lambda: None, 0.0, failed=False, teller=mine)
        assert found is not None
        mine.done(found, waits.began)

    first, _ = teller(own_spool, 0)
    end()  # of the block
    assert [line for line in lines() if line.startswith("done")] == []
    voice.take(at_end=True)
    first.done(known, time.time())
    assert [line for line in lines() if line.startswith("done")] == []
    known.acknowledge({f"rank_00001/{path.name}": Sent(5_000_000, "0")}, "d" * 40, 2.0)  # meanwhile
    known.save(own_spool.host("h-1").ledger)
    end()  # of the interpreter
    end()
    (said,) = [line for line in lines() if line.startswith("done")]
    assert said.startswith("done: 5.0 MB")
