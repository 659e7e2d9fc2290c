"""What Linux offers to a parent: signals as data, exact processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from programs import succeed

from hf_mpwriter.system import kernel, process
from hf_mpwriter.system.process import start_ticks

QUEUE = """
import os, select, signal
from hf_mpwriter.system.kernel import SignalQueue
queue = SignalQueue((signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD))
print([received.number for received in queue.read()])
for number in (signal.SIGTERM, signal.SIGUSR1):
    os.kill(os.getpid(), number)
select.select([queue.fd], [], [])
print(sorted((received.number, received.of_terminal) for received in queue.read()))
print(queue.mask_before)
"""


def test_signals_are_read_instead_of_ending_the_process():
    """In a process of its own; `kill` is no terminal."""
    assert succeed(QUEUE).splitlines() == ["[]", "[(10, False), (15, False)]", "set()"]


def test_a_terminal_is_told_from_other_senders():
    """What a user types reaches the whole foreground group; the kernel says so."""
    source = """
import os, pty, select, signal, sys
pid, fd = pty.fork()
if not pid:
    from hf_mpwriter.system.kernel import SignalQueue
    queue = SignalQueue((signal.SIGINT,))
    print("ready", flush=True)
    select.select([queue.fd], [], [])
    print(list(queue.read()), flush=True)
    os._exit(0)
text = b""
while b"ready" not in text:
    text += os.read(fd, 1000)
os.write(fd, b"\\x03")
while b"]" not in text:
    text += os.read(fd, 1000)
print("of_terminal=True" in text.decode())
"""
    assert succeed(source) == "True\n"


def test_a_handle_is_of_one_process_only():
    """One that has ended, and one with the same number but another start, get nothing."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks = start_ticks(child.pid)
    with pytest.raises(ProcessLookupError):
        kernel.Handle(child.pid, ticks + 1)
    kernel.send(child.pid, ticks + 1, signal.SIGKILL)
    assert child.poll() is None
    assert process.processes()[child.pid][:1] == (os.getpid(),)
    assert process.command_line(child.pid)[1:] == ["-c", "input()"]
    assert process.user_of(child.pid) == os.getuid()
    kernel.send(child.pid, ticks, signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    kernel.send(child.pid, ticks, signal.SIGKILL)
    assert (process.command_line(child.pid), process.user_of(child.pid)) == ([], None)
