"""The lines that the commands print."""

from __future__ import annotations

import io
import sys

from hf_mpwriter.cli.output import UploadBar, counted
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system.redaction import printable


def test_a_name_that_is_no_text_is_escaped():
    """A terminal that wants UTF-8 would end the command with a traceback."""
    assert printable("a\udcff") == "a\\udcff"


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


def test_one_is_not_a_plural():
    """A run of a single process has `1 file`."""
    assert [counted(count, "file") for count in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


def test_without_a_terminal_there_is_a_line_a_minute(capsys):
    """The first at once; none where nothing has come."""
    now = 1000.0
    bar = UploadBar(100, 100, clock=lambda: now)
    for seconds, missing in ((0, 90), (30, 80), (30, 70), (30, 60), (60, 60), (60, 60), (1, 10)):
        now += seconds
        bar.update(missing)
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "on the Hub: 10 B of 100 B",
        "on the Hub: 30 B of 100 B",
        "on the Hub: 40 B of 100 B",
        "on the Hub: 90 B of 100 B",
    ]


def test_progress_is_off_where_the_hubs_client_shows_none(capsys, monkeypatch):
    """HF_HUB_DISABLE_PROGRESS_BARS=1, as for the client; on a terminal, too."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        bar = UploadBar(100, 60)
        bar.update(30)
        bar.close()
    assert capsys.readouterr().err == ""
