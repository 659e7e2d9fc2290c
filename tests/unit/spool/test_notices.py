"""Notices: numbered, bounded, each known once, and there for the next uploader."""

from __future__ import annotations

import os

import pytest
from support import failing

from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.spool.layout import HostSpool
from hf_mpwriter.spool.status import NOTICES_KEPT, SAME_WITHIN, UploaderStatus
from hf_mpwriter.system.process import Process

PUBLIC = "me/run is PUBLIC: everybody can read it"


class Uploaders:
    """Uploaders of one host, one after the other; a clock that moves when it is told to."""

    def __init__(self, host: HostSpool) -> None:
        self.host, self.now = host, 1_795_236_610.0

    def start(self) -> StatusFile:
        """The status of the next one."""
        return StatusFile(self.host, Process.current(), lambda: self.now, 0.0, lambda: self.now)

    def texts(self) -> list[str]:
        """What a reader sees."""
        return [notice.text for notice in UploaderStatus.read(self.host).notices]


@pytest.fixture
def uploaders(own_spool) -> Uploaders:
    """Those of a host."""
    host = own_spool.host("h")
    os.makedirs(host.root)
    return Uploaders(host)


def test_what_is_found_out_again_is_one_notice(uploaders):
    """A first push may fail after it has asked: each try finds out the same, and so does the next uploader."""
    uploaders.start().notify(["created me/run", PUBLIC])
    status = uploaders.start()
    status.notify([PUBLIC])
    status.notify(["the limit"])
    status.notify(["the limit"])
    assert uploaders.texts() == ["created me/run", PUBLIC, "the limit"]
    uploaders.now += SAME_WITHIN
    status.notify(["the limit"])
    assert uploaders.texts()[3:] == ["the limit"]


def test_a_second_creation_is_news_and_what_follows_it_too(uploaders):
    """The new repository may be public where the old one was not."""
    uploaders.start().notify(["created me/run", PUBLIC, "created me/run", PUBLIC, PUBLIC])
    assert uploaders.texts() == ["created me/run", PUBLIC] * 2


def test_numbers_grow_also_when_the_file_was_lost(uploaders):
    """A worker that has told all of before tells what comes."""
    uploaders.start().notify(["a", "b"])
    before = UploaderStatus.read(uploaders.host).notices[-1].number
    os.unlink(uploaders.host.daemon("uploader").status)
    uploaders.now += 1
    uploaders.start().notify(["a"])
    assert UploaderStatus.read(uploaders.host).notices[0].number > before


def test_only_the_newest_are_kept(uploaders):
    """The file is bounded."""
    uploaders.start().notify([str(number) for number in range(2 * NOTICES_KEPT)])
    assert uploaders.texts() == [str(number) for number in range(NOTICES_KEPT, 2 * NOTICES_KEPT)]


def test_what_the_disk_refuses_is_written_later(uploaders):
    """No notice is lost because the disk was full for a moment."""
    status = uploaders.start()
    with failing("status.write=enospc"):
        status.notify(["a"])
        assert uploaders.texts() == []
    uploaders.now += 3600.0
    status.beat()
    assert uploaders.texts() == ["a"]


def test_a_text_obeys_no_terminal(uploaders):
    """It is one line of what can be printed."""
    uploaders.start().notify(["a\nb\x1b[2J"])
    assert UploaderStatus.read(uploaders.host).notices[0].line == "a\\nb\\x1b[2J"
