"""`sync --follow`: how it is known that the writers have gone."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import event_file

from hf_mpwriter.cli.syncing.following import AFTER_CLOSE, LOOK_EVERY, QUIET, Writers, tend

NAME = "events.out.tfevents.1700000000.host"


class Clock:
    """Monotonic seconds that only pass when they are slept."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let seconds pass."""
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    """The clock."""
    return Clock()


def test_writers_that_are_not_seen_have_gone_after_a_long_quiet(tmp_path, clock):
    """They may be on another host. A new file, or a longer one, begins the quiet anew."""
    event_file(tmp_path / NAME, 1)
    writers = Writers(str(tmp_path), clock)
    clock.sleep(QUIET - 1)
    assert not writers.have_gone()
    event_file(tmp_path / NAME, 2)
    clock.sleep(1)
    assert not writers.have_gone()
    clock.sleep(QUIET - 1)
    (tmp_path / "b").mkdir()
    event_file(tmp_path / "b" / NAME, 1)
    assert not writers.have_gone()
    clock.sleep(QUIET)
    assert writers.have_gone()


def test_a_writer_that_has_a_file_open_has_not_gone_however_quiet_it_is(tmp_path, clock):
    """When it has ended, and it stays quiet, it has. A reader is no writer."""
    event_file(tmp_path / NAME, 1)
    writers = Writers(str(tmp_path), clock)
    command = [sys.executable, "-c", f"f = open({str(tmp_path / NAME)!r}, 'ab'); print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        clock.sleep(10 * QUIET)
        assert not writers.have_gone()
        writer.communicate(b"\n")
    event_file(tmp_path / NAME, 2)
    assert not writers.have_gone()
    with (tmp_path / NAME).open("rb"):
        clock.sleep(AFTER_CLOSE - 1)
        assert not writers.have_gone()
        clock.sleep(1)
        assert writers.have_gone()


def test_a_writer_that_opens_its_file_for_each_record_is_given_time_while_it_lives(tmp_path, clock):
    """As torch's does without TensorFlow: that it has no file open at a look does not tell that it has closed it."""
    event_file(tmp_path / NAME, 1)
    writers = Writers(str(tmp_path), clock)
    with (tmp_path / NAME).open("ab"):
        assert not writers.have_gone()
    clock.sleep(QUIET - 1)
    assert not writers.have_gone()
    clock.sleep(1)
    assert writers.have_gone()


def test_a_file_that_others_have_open_elsewhere_does_not_count(tmp_path, clock):
    """Of the same name, in another folder."""
    (tmp_path / "a").mkdir()
    event_file(tmp_path / "a" / NAME, 1)
    writers = Writers(str(tmp_path / "a"), clock)
    with (tmp_path / NAME).open("ab"):
        clock.sleep(QUIET)
        assert writers.have_gone()


def test_folders_are_tended_until_the_writers_of_each_have_gone(tmp_path, clock):
    """Also while those of one of them have gone."""
    for name in ("short", "long"):
        event_file(tmp_path / name / NAME, 1)
    end, turns = clock.now + 900.0, list[float]()

    class Tended:
        """Counts the turns of a drain."""

        def turn(self) -> None:
            """Take one."""
            turns.append(clock.now)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now <= end:
            with (tmp_path / "long" / NAME).open("ab") as file:
                file.write(b"x")

    tend(Tended(), [Writers(str(tmp_path / name), clock) for name in ("short", "long")], sleep)
    assert clock.now >= end + QUIET
    assert turns == pytest.approx([1000.0 + LOOK_EVERY * turn for turn in range(len(turns))])
    assert turns[-1] + LOOK_EVERY == clock.now
