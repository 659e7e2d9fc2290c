"""What the log says of a commit."""

from __future__ import annotations

from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.uploader.outcome import new_bytes

EVENTS = "events.out.tfevents.0000000001.host.7.0123abcd"


def test_only_what_the_hub_did_not_have_is_counted():
    """An event file counts with what it has grown by; an attachment as a whole, unless it is the same."""
    ledger = Ledger(Destination("http://127.0.0.1:9", "me/run"), settings=Settings())
    assert new_bytes(ledger, EVENTS, Sent(100, "a")) == 100
    ledger.acknowledge({EVENTS: Sent(100, "a"), "notes.txt": Sent(7, "b")}, "c" * 40, 5.0)
    assert new_bytes(ledger, EVENTS, Sent(130, "c")) == 30
    assert new_bytes(ledger, EVENTS, Sent(90, "d")) == 0
    assert new_bytes(ledger, "notes.txt", Sent(7, "b")) == 0
    assert new_bytes(ledger, "notes.txt", Sent(8, "e")) == 8
