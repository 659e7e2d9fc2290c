"""The lines that the commands print."""

from __future__ import annotations

import dataclasses
import io
import sys

import pytest

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.cli.output import UploadBar, counted, exit_code, file_line, uploader_line
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system.process import Process
from hf_mpwriter.system.redaction import printable

NOW = 1_700_000_000.0
HERE = dataclasses.replace(Process.current(), pid=7)
UNKNOWN = "an uploader runs, it has not said yet what it does"


@pytest.mark.parametrize(
    ("status", "alive", "line"),
    [
        (UploaderStatus(), False, "no uploader runs"),
        (UploaderStatus(phase="left", beat=NOW), False, "no uploader runs"),
        (UploaderStatus(), True, UNKNOWN),
        (UploaderStatus(phase="left", beat=NOW, process=HERE), True, UNKNOWN),
        (UploaderStatus(phase="idle", beat=NOW - 3, process=HERE), True, "uploader 7 is idle, last seen 3 s ago"),
        (
            UploaderStatus(phase="idle", beat=NOW, process=dataclasses.replace(HERE, namespace=1)),
            True,
            "uploader 7 in another pid namespace is idle, last seen 0 s ago",
        ),
        (
            UploaderStatus(phase="idle", beat=NOW, process=dataclasses.replace(HERE, host="there-1234")),
            True,
            "uploader 7 on there-1234 is idle, last seen 0 s ago",
        ),
        (
            UploaderStatus(phase="waiting", beat=NOW, process=HERE, failures=1, reason="It is down.", hint="Wait."),
            True,
            "uploader 7 is waiting, last seen 0 s ago; 1 failure: It is down. Wait.",
        ),
        (UploaderStatus(failures=2, reason="It is down."), False, "no uploader runs; 2 failures in a row: It is down."),
    ],
)
def test_a_line_about_an_uploader_says_what_it_does_and_what_holds_it_up(status, alive, line):
    """The failures of an uploader that has left are shown too."""
    assert uploader_line(status, NOW, alive=alive) == line


def test_an_uploader_that_is_silent_is_shown_as_such():
    """Its phase is what it wrote last, and says nothing of now."""
    assert "has said nothing for" in uploader_line(
        UploaderStatus(phase="idle", beat=NOW - 3600, process=HERE), NOW, alive=True
    )


def test_a_name_that_is_no_text_is_escaped():
    """A terminal that wants UTF-8 would end the command with a traceback."""
    assert printable("a\udcff") == "a\\udcff"
    file = LocalFile("a.tfevents\udcff", 2000, growing=True)
    assert file_line(file, 1000) == "     1.0 kB of    2.0 kB  a.tfevents\\udcff (growing)"


def test_the_bar_never_goes_back_and_shows_each_failure_once(capsys):
    """While it waits, the ledger may be believed less than before. Without a terminal a line is never repeated."""
    bar = UploadBar(100, 60)
    for missing in (30, 100):
        bar.update(missing)
        bar.show_failure(UploaderStatus(failures=1, reason="It is down."))
    bar.close()
    shown = capsys.readouterr()
    assert shown.out.count("not yet: It is down.") == 1
    assert shown.err == "on the Hub: 70 B of 100 B\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    """It is drawn anew in one line, and shows the bytes."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = UploadBar(100, 60)
    for missing in (30, 100):
        bar.update(missing)
    bar.close()
    assert "70.0/100" in terminal.getvalue().rpartition("\r")[2]


def test_damage_counts_before_what_is_missing():
    """An upload mends what is missing, and no damage."""
    codes = [exit_code(complete=complete, damaged=damaged) for damaged in (False, True) for complete in (True, False)]
    assert codes == [0, 1, 3, 3]


def test_what_comes_from_a_file_obeys_no_terminal():
    """A reason may hold escape sequences, because a run directory may come from anywhere."""
    status = UploaderStatus(failures=1, reason="\x1b]0;mine\x07")
    assert "\x1b" not in uploader_line(status, NOW, alive=False)


def test_one_is_not_a_plural():
    """A run of a single process has `1 file`."""
    assert [counted(count, "file") for count in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
