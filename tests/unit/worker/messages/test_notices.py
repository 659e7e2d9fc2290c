"""What workers tell: each notice once, none of the past, by the reporter."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.notices import NoticesFile
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.messages.notices import RECENT, Notices
from hf_mpwriter.worker.messages.reporter import Reporter, ToldRecord


@pytest.fixture
def told(own_spool, caplog):
    """What a worker tells now."""

    def tell(notices: Notices, *, reports: bool = True) -> list[str]:
        caplog.clear()
        notices.tell(own_spool, reports=reports)
        return [record.getMessage() for record in caplog.records]

    return tell


def uploader(spool: Spool, host: str = "h", ago: float = 0.0) -> NoticesFile:
    """The notices file of an uploader that starts now, with a clock that is behind."""
    os.makedirs(spool.host(host).root, exist_ok=True)
    return NoticesFile(spool.host(host), lambda: time.time() - ago)


def test_each_notice_is_told_once(own_spool, told):
    """Whatever comes when, also from an uploader that was replaced, and from one on another host."""
    notices = Notices(own_spool, time.time())
    assert told(notices) == []
    first = uploader(own_spool)
    first.note(["created me/run"])
    assert told(notices) == ["created me/run"]
    first.note(["me/run is PUBLIC"])
    assert told(notices) == ["me/run is PUBLIC"]
    assert told(notices) == []
    uploader(own_spool).note(["created me/run", "the limit"])
    uploader(own_spool, "other").note(["me/run is PUBLIC"])
    assert told(notices) == ["created me/run", "the limit", "me/run is PUBLIC"]
    assert told(notices) == []


def test_what_was_there_before_is_not_told_again(own_spool, told):
    """A run that is resumed; but a rank that came first may have started the uploader a moment ago."""
    uploader(own_spool, ago=2 * RECENT).note(["old"])
    uploader(own_spool).note(["recent"])
    assert told(Notices(own_spool, time.time())) == ["recent"]


def test_a_run_that_is_resumed_at_once_tells_only_what_was_not_told(own_spool, told):
    """However soon it starts, and however late: what an uploader has found out since the end is news."""
    first, other = uploader(own_spool), uploader(own_spool, "other", ago=2 * RECENT)
    first.note(["created me/run"])
    assert told(Notices(own_spool, time.time())) == ["created me/run"]
    assert told(Notices(own_spool, time.time())) == []
    first.note(["me/run is PUBLIC"])
    other.note(["the limit"])
    assert told(Notices(own_spool, time.time() + 2 * RECENT)) == ["me/run is PUBLIC", "the limit"]


def test_a_record_that_cannot_be_read_or_written_hides_no_notice(own_spool, told):
    """Then a notice may be told twice."""
    os.makedirs(own_spool.told)
    uploader(own_spool).note(["created me/run"])
    assert told(Notices(own_spool, time.time())) == ["created me/run"]
    Path(own_spool.told).write_bytes(b'{"numbers": {"h": "many"}}')
    assert told(Notices(own_spool, time.time())) == ["created me/run"]


def test_a_spool_that_was_removed_has_no_notices(own_spool, told):
    """Training goes on."""
    notices = Notices(own_spool, time.time())
    os.rename(own_spool.hosts, f"{os.fspath(own_spool.hosts)}~")
    assert told(notices) == []
    with open(own_spool.hosts, "w", encoding="utf-8"):
        assert told(notices) == []


def test_the_next_one_tells_what_the_first_has_not_told(own_spool, told):
    """It looks again whenever it keeps house, and repeats nothing, also when the first has ended in between."""
    first, next_one = Notices(own_spool, time.time()), Notices(own_spool, time.time())
    file = uploader(own_spool)
    file.note(["created me/run"])
    assert told(next_one, reports=False) == []
    assert told(first) == ["created me/run"]
    file.note(["me/run is PUBLIC"])
    assert told(next_one, reports=False) == []
    assert told(next_one) == ["me/run is PUBLIC"]
    assert told(first) == []


def test_one_record_holds_what_was_told_of_both_kinds(own_spool, told):
    """Who tells a notice keeps what was told of an end, and the other way round."""
    mine = Reporter(Membership(own_spool, time.monotonic))
    mine.told_unsent(5.0)
    uploader(own_spool).note(["created me/run"])
    assert told(Notices(own_spool, time.time())) == ["created me/run"]
    mine.told_unsent(6.0)
    record = ToldRecord.read(own_spool.told)
    assert (record.unsent, list(record.numbers)) == (6.0, ["h"])
