"""The program of a supervisor: started as its child, reaped with all that it leaves behind, signalled, killed.

    supervisor  --fork-->  child: process group, death with the parent, signals as they were  --exec-->  program
                           tells by a pipe what exec refuses; with something to do first, it has left the pipe by then,
                           and ends with the exit code of that unless it is 0

Invariants:
- The program has the signal mask and the dispositions that this process was started with.
- It shares the process group of this process only where a terminal signals that group. Else it has one of its own: what
  a launcher sends to the group of this process reaches the program once, through this process.
- Every zombie that becomes a child of this process is collected.
- No process of an upload gets a signal.

Orphans: workers of an earlier attempt whose supervisor or launcher is gone, so that nothing else ends them.

    a member file      says who the worker is, and without which process it is an orphan
    alive              its lock is held, and its process has the recorded start
    an orphan          that other process of this boot and pid namespace has ended

Invariants:
- What cannot be told for certain is no orphan: of another host, boot, pid namespace or user, or without a record.
- Uploaders are no members. Workers of other tasks have a supervisor or launcher that lives.
- Each is ended through a pidfd that was opened before its start was compared.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.spool.storage import find, spool_of
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.supervisor.decision import remaining
from hf_mpwriter.system import kernel, launch, process
from hf_mpwriter.system.kernel import Handle
from hf_mpwriter.system.process import Process, start_ticks
from hf_mpwriter.worker.holders import is_orphan

# Python ignores these; a program expects their defaults
_IGNORED_HERE = [getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)]
ERRNO_LENGTH = 16  # characters of the number of an error
PATIENCE = 5.0  # seconds between SIGTERM and SIGKILL


def has_terminal() -> bool:
    """Whether this process is in the foreground of a terminal, which then signals its process group."""
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(fd)


class Program:
    """A program that was started."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        mask: Collection[int],
        *,
        own_group: bool,
        before: Callable[[], int] | None = None,
    ) -> None:
        self.status: int | None = None  # its exit code, negative for a signal; None while it lives
        parent, (reading, writing) = os.getpid(), os.pipe()
        self.pid = os.fork()  # process id
        if not self.pid:
            _become(command, environ, mask, parent, writing, own_group=own_group, before=before)
        os.close(writing)
        with open(reading, "rb") as pipe:
            refusal = pipe.read(ERRNO_LENGTH)
        if refusal:
            os.waitpid(self.pid, 0)
            raise OSError(int(refusal), os.strerror(int(refusal)), command[0])

    def reap(self) -> None:
        """Collect all children that have ended, without waiting."""
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)) is not None:
                if found.si_pid == self.pid:
                    self.status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def send(self, number: int) -> None:
        """Send a signal to the program; it is not reaped, so the process id is its own."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


def _become(
    command: Sequence[str],
    environ: Mapping[str, str],
    mask: Collection[int],
    parent: int,
    writing: int,
    *,
    own_group: bool,
    before: Callable[[], int] | None,
) -> None:
    """In the forked child: become the program."""
    try:
        kernel.die_with_parent(parent)
        if own_group:
            os.setpgid(0, 0)
        for number in _IGNORED_HERE:
            signal.signal(number, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is not None:
            os.close(writing)
            if code := before():
                os._exit(code)
        os.execvpe(command[0], list(command), environ)  # noqa: S606 - it is the user's own command
    except OSError as error:
        if before is None:
            os.write(writing, str(error.errno).encode())
        else:
            print(f"hf-mpwriter run: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def is_upload(pid: int) -> bool:
    """Whether a process belongs to an upload or a mirror."""
    arguments = [word for word in process.command_line(pid) if "from hf_mpwriter." in word]  # no program of the user's
    return any(launch.is_command_of(kind, arguments, None) for kind in launch.KINDS)


def adopted() -> dict[int, int]:
    """The children of this process that belong to no upload: process id -> start ticks."""
    return _remaining(adopted=True)


def descendants() -> dict[int, int]:
    """All processes below this one that belong to no upload: process id -> start ticks."""
    return _remaining(adopted=False)


def _remaining(*, adopted: bool) -> dict[int, int]:
    table = process.processes()
    return {pid: table[pid].ticks for pid in remaining(table, os.getpid(), is_upload, adopted=adopted)}


def end_orphans(run_dir: str) -> Iterator[str]:
    """End the orphans of a run directory; a line for each."""
    spool = spool_of(find(run_dir))
    check_ownership(spool.directory)
    if not spool.exists() or not process.processes():  # the numbers of this /proc are of another pid namespace
        return
    here, uid = Process.current(), os.getuid()
    with contextlib.ExitStack() as stack:
        found = []
        for member in Members(spool).all():
            if is_orphan(member, here, start_ticks) and process.user_of(member.process.pid) == uid:
                with contextlib.suppress(ProcessLookupError):
                    found.append((member, stack.enter_context(Handle(member.process.pid, member.process.ticks))))
        _end([handle for _, handle in found])
        for member, _ in found:
            pid, agent = member.process.pid, member.agent.pid if member.agent else 0
            yield f"ended {member.name.worker} of {run_dir}, process {pid}: process {agent} had left it behind"


def _end(handles: Collection[Handle]) -> None:
    """End processes, and wait until they have ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for handle in handles:
            handle.send(number)
        deadline = time.monotonic() + PATIENCE
        for handle in handles:
            handle.wait(max(0.0, deadline - time.monotonic()))
