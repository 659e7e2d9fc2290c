"""Progress: what is missing, told from the ledgers alone."""

from __future__ import annotations

import os
import time

import pytest

from hf_mpwriter.errors import Sent
from hf_mpwriter.ledger import Ledger
from hf_mpwriter.progress import Progress
from hf_mpwriter.settings import Destination
from hf_mpwriter.spool import Spool

HERE = Destination("https://hub", "me/run")
EVENTS = "events.out.tfevents.1700000000.here.1.0123abcd"


@pytest.fixture
def spool(tmp_path) -> Spool:
    """A run with a destination, a host, and one attachment that is a minute old."""
    made = Spool(str(tmp_path / "run"))
    made.create()
    made.record_destination(HERE)
    os.makedirs(made.host("h").root)
    with open(os.path.join(made.run_dir, "a.tsv"), "w", encoding="utf-8") as file:
        file.write("four")
    return made


def view(spool: Spool, *, drained: float, sent: Sent | None = None, parked: str = "", checked: float = 0.0) -> Progress:
    """A view of a ledger that holds the attachment."""
    book = Ledger(HERE, drained=drained, checked=checked)
    book.acknowledge({"a.tsv": sent or Sent(4, "5" * 64, "6" * 40), EVENTS: Sent(10, "7" * 64)}, "c", 1.0)
    if parked:
        book.parked[parked] = "why"
    book.save(spool.host("h").ledger)
    return Progress(spool)


def test_an_attachment_has_arrived_with_a_snapshot_that_began_after_its_last_change(spool):
    """Nobody has to read it; a snapshot of before does not count, nor what is gone on the Hub, nor a parked path."""
    later, wanted = time.time() + 10, {"a.tsv": 4}
    assert view(spool, drained=later).missing(wanted) == {}
    assert view(spool, drained=time.time() - 10).missing(wanted) == wanted
    assert view(spool, drained=later, sent=Sent(0, "")).missing(wanted) == wanted
    assert view(spool, drained=later, parked="a.tsv").missing(wanted) == wanted
    assert view(spool, drained=later).missing(wanted, since=later) == wanted


def test_what_an_attachment_becomes_after_the_question_is_not_waited_for(spool):
    """A snapshot that began after the question is enough, however often the file changes; and what is gone is gone."""
    asked = time.time() - 100
    assert view(spool, drained=asked + 1).missing({"a.tsv": 4}, asked=asked) == {}
    assert view(spool, drained=asked - 1).missing({"a.tsv": 4}, asked=asked) == {"a.tsv": 4}
    os.unlink(os.path.join(spool.run_dir, "a.tsv"))
    assert view(spool, drained=0.0).missing({"a.tsv": 4}) == {}


def test_an_attachment_that_is_parked_holds_back_nobody(spool):
    """Only later event files of a directory wait for a parked event file."""
    missing = {"a.tsv": 4, "b.tsv": 4, EVENTS: 20}
    assert view(spool, drained=0.0, parked="a.tsv").refused(missing).keys() == {"a.tsv"}
    assert view(spool, drained=0.0, parked=EVENTS).refused(missing).keys() == {EVENTS}
    later = EVENTS.replace("17", "18")
    assert view(spool, drained=0.0, parked=EVENTS).refused({later: 1}).keys() == {later}


def test_a_refusal_of_before_the_question_is_tried_again(spool):
    """Whoever asks anew, as `sync` does, does not give up on what the ledger says of the past."""
    refused = view(spool, drained=0.0, parked="a.tsv", checked=50.0)
    assert refused.is_hopeless({"a.tsv": 4})
    assert refused.is_hopeless({"a.tsv": 4}, since=49.0)
    assert not refused.is_hopeless({"a.tsv": 4}, since=51.0)
    assert not refused.is_hopeless({"a.tsv": 4, "b.tsv": 4})
