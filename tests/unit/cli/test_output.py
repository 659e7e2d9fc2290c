"""The lines that the commands print."""

from __future__ import annotations

import io
import sys

from hf_mpwriter.cli.output import UploadBar
from hf_mpwriter.delivery.sinks import Carrier, Outlook


def test_the_bar_never_goes_back_and_shows_each_failure_once(capsys):
    """While it waits, the ledger may be believed less than before. Without a terminal a line is never repeated."""
    bar = UploadBar(100, 60)
    for missing in (30, 100):
        bar.update(missing)
        bar.show_failure(Carrier(reason="It is down.", failed_at=5.0), since=5.0)
    bar.close()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line for line in shown.err.splitlines() if line] == ["on the Hub: 70 B of 100 B", "not yet: It is down."]


def test_what_failed_before_the_call_and_what_ends_it_are_not_shown_above_the_bar(capsys):
    """An outage that is over, a token that was changed; a refusal is told once, at the end. Each line names its run."""
    bar = UploadBar(100, 60, name="runs/a")
    for is_refused, failed_at in ((False, 4.0), (True, 6.0)):
        bar.show_failure(Carrier(is_refused=is_refused, reason="why", failed_at=failed_at), since=5.0)
    assert capsys.readouterr().err == ""
    bar.show_failure(Carrier(reason="down", failed_at=6.0), since=5.0)
    bar.show_failure(Carrier(reason="it waits", outlook=Outlook(turn_in=60.0)), since=5.0)
    bar.update(50)
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["runs/a: not yet: down", "runs/a: not yet: it waits", "runs/a: on the Hub: 50 B of 100 B"]


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


def test_without_a_terminal_there_is_a_line_a_minute(capsys):
    """The first at once; the later ones with the time that it takes. While nothing comes there are fewer, not none.

    A day without progress is some thirty lines in the log of a job.
    """
    now = 1000.0
    bar = UploadBar(100, 100, clock=lambda: now)
    for seconds, missing in ((0, 90), (30, 80), (30, 70), (30, 60), (60, 60), (60, 60), (59, 60), (1, 60), (60, 10)):
        now += seconds
        bar.update(missing)
    assert capsys.readouterr().err.splitlines() == [
        "on the Hub: 10 B of 100 B",
        "on the Hub: 30 B of 100 B, after 1:00",
        "on the Hub: 40 B of 100 B, after 2:30",
        "on the Hub: 40 B of 100 B, after 3:30",
        "on the Hub: 90 B of 100 B, after 5:30",
    ]
    for _ in range(1440):
        now += 60
        bar.update(10)
    assert 20 < len(capsys.readouterr().err.splitlines()) < 40


def test_progress_is_off_where_the_hubs_client_shows_none(capsys, monkeypatch):
    """HF_HUB_DISABLE_PROGRESS_BARS=1, as for the client; on a terminal, too."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        bar = UploadBar(100, 60)
        bar.update(30)
        bar.close()
    assert capsys.readouterr().err == ""
