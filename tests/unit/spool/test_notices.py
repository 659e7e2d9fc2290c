"""Notices: numbered, bounded, each known once, and there for the next uploader."""

from __future__ import annotations

import os

import pytest
from support import failing

from hf_mpwriter.spool.layout import HostSpool
from hf_mpwriter.spool.notices import KEPT, SAME_WITHIN, NoticesFile, read_notices

PUBLIC = "me/run is PUBLIC: everybody can read it"


class Clock:
    """Unix time that moves when it is told to."""

    now = 1_795_236_610.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


@pytest.fixture
def host(own_spool) -> HostSpool:
    """The directory of a host."""
    made = own_spool.host("h")
    os.makedirs(made.root)
    return made


def texts(host: HostSpool) -> list[str]:
    """What a reader sees."""
    return [notice.text for notice in read_notices(host)]


def test_what_is_found_out_again_is_one_notice(host, clock):
    """A first push may fail after it has asked: each try finds out the same, and so does the next uploader."""
    NoticesFile(host, clock).note(["created me/run", PUBLIC])
    file = NoticesFile(host, clock)
    file.note([PUBLIC])
    file.note(["the limit"])
    file.note(["the limit"])
    assert texts(host) == ["created me/run", PUBLIC, "the limit"]
    clock.now += SAME_WITHIN
    file.note(["the limit"])
    assert texts(host)[3:] == ["the limit"]


def test_a_second_creation_is_news_and_what_follows_it_too(host, clock):
    """The new repository may be public where the old one was not."""
    file = NoticesFile(host, clock)
    file.note(["created me/run", PUBLIC, "created me/run", PUBLIC, PUBLIC])
    assert texts(host) == ["created me/run", PUBLIC] * 2


def test_numbers_grow_also_when_the_file_was_lost(host, clock):
    """A worker that has told all of before tells what comes."""
    NoticesFile(host, clock).note(["a", "b"])
    before = read_notices(host)[-1].number
    os.unlink(host.notices)
    clock.now += 1
    NoticesFile(host, clock).note(["a"])
    assert read_notices(host)[0].number > before


def test_only_the_newest_are_kept(host, clock):
    """The file is bounded."""
    NoticesFile(host, clock).note([str(number) for number in range(2 * KEPT)])
    assert texts(host) == [str(number) for number in range(KEPT, 2 * KEPT)]


def test_what_the_disk_refuses_is_written_later(host, clock):
    """No notice is lost because the disk was full for a moment."""
    file = NoticesFile(host, clock)
    with failing("notices.save.write=enospc"):
        file.note(["a"])
        assert texts(host) == []
    file.save()
    assert texts(host) == ["a"]


def test_a_text_obeys_no_terminal(host, clock):
    """It is one line of what can be printed."""
    NoticesFile(host, clock).note(["a\nb\x1b[2J"])
    assert read_notices(host)[0].line == "a\\nb\\x1b[2J"
