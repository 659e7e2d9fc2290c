"""Signals that ask for a push: which ones, and what happens beside."""

from __future__ import annotations

import signal

import pytest
from programs import run_python

from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.base.settings import push_signals


@pytest.mark.parametrize(
    ("text", "signals"),
    [("", ()), ("USR1", (10,)), ("SIGUSR1", (10,)), ("term, usr1,", (15, 10)), ("SIGTERM", (15,))],
)
def test_signals_are_named(text, signals):
    """With or without SIG, in any case, several with commas."""
    assert push_signals({"HF_MPWRITER_PUSH_ON": text}) == signals


@pytest.mark.parametrize("text", ["KILL", "STOP", "USR3", "10", "USR1 USR2"])
def test_what_no_program_can_handle_is_refused(text):
    """The error names the variable."""
    with pytest.raises(SettingsError, match=r"HF_MPWRITER_PUSH_ON.*Give names such as USR1"):
        push_signals({"HF_MPWRITER_PUSH_ON": text})


HANDLED = """
import os, signal, sys, threading
from hf_mpwriter.system.supervision import push_on
asked = []
def ask():
    asked.append(1)
    raise RuntimeError("never shown")
if sys.argv[1] == "handler":
    signal.signal(signal.SIGUSR1, lambda number, frame: print("theirs", number, frame is not None))
elif sys.argv[1] == "ignored":
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
threading.Thread(target=push_on.install, args=([signal.SIGUSR1], asked.append)).start()  # nothing happens there
push_on.install([signal.SIGUSR1], ask)
push_on.install([signal.SIGUSR1], ask)  # once
import atexit
os.kill(os.getpid(), signal.SIGUSR1)
print(len(asked))
"""


@pytest.mark.parametrize(
    ("before", "code", "out"),
    [("handler", 0, "theirs 10 True\n1\n"), ("ignored", 0, "1\n"), ("default", -signal.SIGUSR1, "")],
)
def test_what_the_program_does_with_the_signal_happens_too(before, code, out):
    """Its handler is called; the default ends it, as it would have."""
    result = run_python(HANDLED, before)
    assert (result.returncode, result.stdout, result.stderr) == (code, out, "")
