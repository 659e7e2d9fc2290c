"""Gaps: what is missing of a staged run holds up the later files of its writer, and nothing else."""

from __future__ import annotations

import pytest
from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.staging.gaps import Gaps
from hf_mpwriter.spool.staging.restoration import Unrestored

EARLIER, MISSING, LATER = (f"events.out.tfevents.17952330{n}.h.1.00000001" for n in (10, 20, 30))


@pytest.fixture
def spool(tmp_path) -> Spool:
    """A run of which one file is missing, as its last restore has recorded."""
    made = Spool(str(tmp_path / "exp1"))
    made.create()
    Unrestored({MISSING: 80}).save(made)
    return made


@pytest.fixture
def ledger() -> Ledger:
    """What the Hub is known to hold: nothing."""
    return Ledger(Destination("https://hub", "me/run"))


def test_later_files_of_a_writer_wait_for_a_missing_one(spool, ledger):
    """Not the earlier ones, nor those of other directories and suffixes, nor files of other writers."""
    gaps = Gaps(spool, ledger)
    assert gaps.before(LATER) == MISSING
    for path in (EARLIER, f"rank_00001/{LATER}", f"{LATER}.mine", "events.out.tfevents.1795233040.theirs"):
        assert gaps.before(path) == ""


def test_they_wait_no_longer_once_the_hub_has_it(spool, ledger):
    """The Hub is asked for what the ledger does not know. A part of it is not enough."""
    gaps = Gaps(spool, ledger)
    assert gaps.unknown.keys() == {MISSING}
    assert not gaps.were_closed()
    for length, waits in ((0, MISSING), (60, MISSING), (80, "")):
        ledger.acknowledge({MISSING: Sent(length, "0" * 64)}, "c", 1.0)
        assert gaps.unknown == {}
        assert gaps.before(LATER) == waits
    assert gaps.were_closed()
    assert not gaps.were_closed(), "it is said once"


def test_what_has_come_meanwhile_is_not_missing(spool, ledger, tmp_path):
    """As of the next look; a run that is not staged has no record."""
    now = [0.0]
    gaps = Gaps(spool, ledger, lambda: now[0])
    assert gaps.before(LATER) == MISSING
    event_file(tmp_path / "exp1" / MISSING, 5)
    now[0] = 60.0
    assert gaps.before(LATER) == ""
    Unrestored().save(spool)
    assert Unrestored.read(spool).files == {}
