"""What workers tell: each notice once, none of the past, by the first of them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.notices import NoticesFile
from hf_mpwriter.system import locks
from hf_mpwriter.worker.membership import Membership
from hf_mpwriter.worker.role import Role
from hf_mpwriter.worker.telling.notices import RECENT, Notices
from hf_mpwriter.worker.telling.voice import ToldRecord, Voice


@pytest.fixture
def told(own_spool, caplog):
    """What a worker tells now."""

    def tell(notices: Notices, *, is_first: bool = True) -> list[str]:
        caplog.clear()
        notices.tell(own_spool, lambda: is_first)
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
    assert told(next_one, is_first=False) == []
    assert told(first) == ["created me/run"]
    file.note(["me/run is PUBLIC"])
    assert told(next_one, is_first=False) == []
    assert told(next_one) == ["me/run is PUBLIC"]
    assert told(first) == []


def voice(spool: Spool, rank: int | None, child: str | None = None, name: str = "") -> Voice:
    """The voice of a process, which takes part."""
    membership = Membership(spool, time.monotonic)
    membership.role, membership.name = Role(rank, child), name
    made = Voice(membership)
    made.take(at_end=True)
    return made


def test_the_first_that_lives_speaks(own_spool):
    """Rank 0, or the process alone; then the others, as ranks end or die. Children do not, while one of these does."""
    late, next_one, child = voice(own_spool, 11), voice(own_spool, 2), voice(own_spool, 0, "loader")
    assert (late.is_first(), next_one.is_first(), child.is_first()) == (False, True, False)
    first = voice(own_spool, 0)
    assert (late.is_first(), next_one.is_first(), first.is_first()) == (False, False, True)
    first.give_up()
    next_one.give_up()
    assert late.is_first()


def test_one_child_stands_in_where_no_rank_speaks(own_spool):
    """As where only children log; it holds up neither a rank that comes nor the last word of one."""
    child, other = voice(own_spool, None, "SpawnProcess-1"), voice(own_spool, None, "SpawnProcess-2")
    assert (child.is_first(), other.is_first()) == (True, False)
    rank = voice(own_spool, 0)
    assert (child.is_first(), rank.is_first()) == (False, True)
    rank.give_up()
    with rank.last_word() as is_last:
        assert is_last
    child.give_up()
    other.take(at_end=True)
    assert (child.is_first(), other.is_first(), other.may_tell_unsent(failed=True)) == (False, True, False)


def test_a_child_that_cannot_tell_who_is_first_is_silent(own_spool):
    """There may be hundreds."""
    child = voice(own_spool, 3, "loader")
    os.rename(os.path.join(own_spool.root, "claims"), os.path.join(own_spool.root, "away"))
    with open(os.path.join(own_spool.root, "claims"), "w", encoding="utf-8"):
        assert not child.is_first()


def test_of_two_processes_with_one_name_the_earlier_speaks(own_spool):
    """One waits at its end, and the next attempt has its name already."""
    earlier, later = voice(own_spool, 0), voice(own_spool, 0)
    assert (earlier.is_first(), later.is_first()) == (True, False)
    earlier.give_up()
    assert later.is_first()


def test_a_process_that_does_not_log_is_not_waited_for(own_spool):
    """Only members may speak, and processes that wait at their ends."""
    membership = Membership(own_spool, time.monotonic)
    Voice(membership).take()
    assert not own_spool.claims.names()


def test_where_the_disk_cannot_tell_who_is_first_all_speak(own_spool):
    """Told twice is better than not at all."""
    mine = voice(own_spool, 3)
    os.rename(os.path.join(own_spool.root, "claims"), os.path.join(own_spool.root, "away"))
    with open(os.path.join(own_spool.root, "claims"), "w", encoding="utf-8"):
        assert mine.is_first()


def test_what_is_unsent_is_told_by_one_of_those_that_wait_at_the_same_time(own_spool):
    """By another one only if it ends later, or if what was told has arrived."""
    first, other = voice(own_spool, 0), voice(own_spool, 1)
    for one in (first, other):
        one.begin_end()
    assert (first.may_tell_unsent(failed=False), other.may_tell_unsent(failed=False)) == (True, False)
    first.told_unsent(5.0)
    first.give_up()
    assert not other.may_tell_unsent(failed=False)
    later = voice(own_spool, 0)
    later.begin_end()
    assert later.may_tell_unsent(failed=False)
    later.told_unsent(0.0)
    assert not other.may_tell_unsent(failed=False)
    later.give_up()
    assert other.may_tell_unsent(failed=False)


def test_one_that_fails_tells_what_is_unsent_although_an_earlier_one_lives(own_spool):
    """The launcher may kill that one before it tells anything; but what was told is not told again."""
    first, other, child = voice(own_spool, 0), voice(own_spool, 1), voice(own_spool, 1, "loader")
    for one in (first, other, child):
        one.begin_end()
    assert (other.may_tell_unsent(failed=True), child.may_tell_unsent(failed=True)) == (True, False)
    first.told_unsent(5.0)
    assert not other.may_tell_unsent(failed=True)


def test_a_process_of_no_launcher_tells_what_is_unsent_although_an_earlier_one_lives(own_spool):
    """Its user may see no other; notices are told by the first all the same."""
    _, mine = voice(own_spool, None), voice(own_spool, None, name="proc_00001")
    mine.begin_end()
    assert (mine.may_tell_unsent(failed=False), mine.is_first()) == (True, False)


def test_one_record_holds_what_was_told_of_both_kinds(own_spool, told):
    """Who tells a notice keeps what was told of an end, and the other way round."""
    mine = voice(own_spool, 0)
    mine.told_unsent(5.0)
    uploader(own_spool).note(["created me/run"])
    assert told(Notices(own_spool, time.time())) == ["created me/run"]
    mine.told_unsent(6.0)
    record = ToldRecord.read(own_spool.told)
    assert (record.unsent, list(record.numbers)) == (6.0, ["h"])


def test_a_voice_is_a_lock_that_the_kernel_frees(own_spool):
    """So the death of the first one is noticed by all."""
    mine = voice(own_spool, 0)
    assert locks.is_held(own_spool.claim("main", "voice"))
    mine.give_up()
    assert not locks.is_held(own_spool.claim("main", "voice"))
