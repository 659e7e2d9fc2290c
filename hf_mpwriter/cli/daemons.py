"""`hf-mpwriter logs` and `hf-mpwriter stop`: what the uploader, mirror and sampler of a run log, and their end.

`logs` leaves the work to `tail`, which names each of several logs by its path, and with `--follow` goes on where a log
is rotated. A log that is made later is not followed. Of what no daemon has written, such as a log of 200 GB, it shows
the last bytes; a line of any length is no more than LONGEST_LINE bytes of memory.

    hosts/<host>/uploader.log.1, uploader.log     the older half first
    hosts/<host>/mirror.log.1, mirror.log         of a staged run

`stop` asks an uploader to let the run go: it may serve others. Mirror and sampler serve one run, and are signalled.

    uploader           a member file of an ENDER: it takes a last snapshot, pushes, and lets go within GRACE seconds
    mirror, sampler    SIGTERM: one seals its file, the other brings a last time what is final
    SIGCONT            one that is stopped could do nothing otherwise
    SIGKILL            what has not done so by then; nothing is lost, as all of it is on disk. An uploader that serves
                       other runs is left alone, and the user is told

Invariant: a pid comes from a file, so it is signalled only if the process that has it now is one of ours, of this kind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import click
import psutil

from hf_mpwriter.base.words import command_line, counted, typed
from hf_mpwriter.cli.facts import gather, judge
from hf_mpwriter.cli.runs import examples, existing_spool, logdir_argument, newest_settings
from hf_mpwriter.cli.status import SeenRun, serving, table
from hf_mpwriter.daemon.background import LOG_LIMIT
from hf_mpwriter.daemon.loop import GRACE
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import DaemonStatus, SamplerStatus, UploaderStatus
from hf_mpwriter.spool.workers.members import ENDER, MemberFile, Members
from hf_mpwriter.system import locks
from hf_mpwriter.system.launch import DAEMONS, is_command_of
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.system.redaction import printable

LINES = 100  # of each log, to begin with
LONGEST_LINE = 16 << 10  # bytes
PATIENCE = GRACE + 10.0  # seconds until a process is killed
END_PATIENCE = 5.0  # seconds from the last run of an uploader to its end
KILL_PATIENCE = 30.0  # seconds after that
POLL = 0.1  # seconds


@click.command("logs", epilog=examples("logs runs/exp1", "logs -f runs/exp1    go on, until Ctrl-C"))
@logdir_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged, until Ctrl-C.")
def show_logs(logdir: str, *, follow: bool) -> None:
    """Print the last lines that the uploader of LOGDIR has logged.

    The words of the Hub's client are there as well.
    """
    spool = existing_spool(logdir)
    logs = list(_logs(spool, follow=follow))
    if not logs:
        click.echo(printable(f"No uploader has run here yet. To start one: {command_line('sync', logdir)}"), err=True)
        return
    uploader = HubSink(spool)
    if (status := uploader.status()).serves > 1 and uploader.is_alive():
        click.echo(printable(f"uploader {status.pid}{serving(status)}; what follows is about this run"), err=True)
    # what a terminal would obey is escaped here, so `tail` does not write there itself
    first = f"--bytes={LONGEST_LINE}" if any(map(_is_foreign, logs)) else f"--lines={LINES}"
    command = ["tail", first, *(["-F"] if follow else []), "--", *logs]
    with contextlib.suppress(KeyboardInterrupt), subprocess.Popen(command, stdout=subprocess.PIPE) as tail:
        try:
            while tail.stdout and (line := tail.stdout.readline(LONGEST_LINE)):
                click.echo(printable(line.decode(errors="replace").rstrip("\n")))
        finally:
            tail.terminate()


def _logs(spool: Spool, *, follow: bool) -> Iterator[str]:
    """The paths of all logs, on whichever host. An older half that is followed would be printed again by a rotation."""
    for host in spool.host_ids():
        for kind in DAEMONS:
            log = spool.host(host).daemon(kind).log
            there = [os.fspath(one) for one in (log.parent / f"{log.basename}.1", log) if one.is_file()]
            yield from [os.fspath(log)] * bool(there) if follow else there


def _is_foreign(log: str) -> bool:
    """Whether a log is longer than a daemon lets it become."""
    try:
        return os.path.getsize(log) > 2 * LOG_LIMIT
    except OSError:
        return False


@click.command("stop", epilog=examples("stop runs/exp1"))
@logdir_argument
def stop_run(logdir: str) -> None:
    """End the upload of LOGDIR, with a last push.

    Its uploader goes on for other runs, if it has any. Says what is left then. Training goes on: a process that logs
    starts another uploader. End training first.
    """
    spool = existing_spool(logdir)
    is_idle = True
    for line in _ended(spool):
        is_idle = False
        click.echo(printable(line))
    if is_idle:
        click.echo("no uploader runs")
    facts = gather(spool)
    if facts.alive:
        count = counted(len(facts.alive), "worker")
        click.echo(f"{count} still alive: what is logged next starts another uploader")
    for line in table([SeenRun(logdir, facts, judge(facts, logdir))]):
        click.echo(printable(line))


def _ended(spool: Spool) -> Iterator[str]:
    """End what runs; what was done."""
    sampler, logdir = SamplerStatus.read(spool.host(host_id())), LogdirSink(spool)
    if process := _holder(spool, "sampler", sampler):  # first: the others take what it seals
        yield _end("sampler", process, spool.run_dir)
    uploader = HubSink(spool).status()
    if process := _holder(spool, "uploader", uploader):
        yield _let_go(spool, process, uploader)
    if process := _holder(spool, "mirror", logdir.status()):
        yield _end("mirror", process, spool.run_dir)


def _holder(spool: Spool, kind: str, status: DaemonStatus) -> Process | None:
    """The process that holds the lock of a kind, None if none does."""
    if not locks.is_held(spool.lock_of(kind)):
        return None
    process, here = status.process, Process.current()
    unknown = click.ClickException(f"The {kind} has not said yet who it is. Try again in some seconds.")
    if process is None:
        raise unknown
    if (process.host, process.boot, process.namespace) != (here.host, here.boot, here.namespace):
        raise click.ClickException(f"The {kind} is on {process.host.rpartition('-')[0]}: run this command there.")
    if Process.of(process.pid) != process:  # it is the one before
        if locks.is_held(spool.lock_of(kind)):
            raise unknown
        return None
    return process


def _let_go(spool: Spool, process: Process, before: UploaderStatus) -> str:
    """Have the uploader let a run go; what was done."""
    _check_is_own("uploader", process)
    ender = MemberFile(spool, ENDER, Process.current(), newest_settings(Members(spool).all(), HubSink(spool).ledger()))
    try:
        ender.count(requests=1)
        _send("uploader", process, None, signal.SIGCONT)
        has_let_go = _within(PATIENCE, lambda: _has_let_go(spool, before))
    finally:
        ender.withdraw()
    status = UploaderStatus.read(spool.host(host_id()))
    if not has_let_go and status.serves > 1:
        others = counted(status.serves - 1, "other run")
        raise click.ClickException(
            f"The uploader, process {process.pid}, does not let go of {spool.logdir}. It serves {others}, so it is "
            f"not killed. To end it for all of them: {typed('kill', '-9', str(process.pid))}"
        )
    if not has_let_go:
        return _kill("uploader", process, None)
    goes_on = f"; it goes on for {counted(status.serves, 'other run')}" if status.is_over and status.serves else ""
    may_end = status.is_over and not goes_on  # else it has others, or this run again by now
    if _within(END_PATIENCE * may_end, lambda: not _is_ours("uploader", process, None)):
        return f"uploader {process.pid} is ended"
    return f"uploader {process.pid} has let go of {spool.logdir}{goes_on}"


def _has_let_go(spool: Spool, before: UploaderStatus) -> bool:
    """Whether a run is not served any more as it was; the same process may have taken it again."""
    status = UploaderStatus.read(spool.host(host_id()))
    is_same = (status.process, status.started_at) == (before.process, before.started_at) and not status.is_over
    return not is_same or not locks.is_held(spool.uploader_lock)


def _end(kind: str, process: Process, run_dir: str) -> str:
    """End a process that serves one run; what was done."""
    _check_is_own(kind, process)
    for number in (signal.SIGTERM, signal.SIGCONT):
        _send(kind, process, run_dir, number)
    if _within(PATIENCE, lambda: not _is_ours(kind, process, run_dir)):
        return f"{kind} {process.pid} is ended"
    return _kill(kind, process, run_dir)


def _kill(kind: str, process: Process, run_dir: str | None) -> str:
    _send(kind, process, run_dir, signal.SIGKILL)
    if _within(KILL_PATIENCE, lambda: not _is_ours(kind, process, run_dir)):
        return f"{kind} {process.pid} is killed, as it did not end"
    raise click.ClickException(f"The {kind}, process {process.pid}, does not end: it hangs in the kernel.")


def _send(kind: str, process: Process, run_dir: str | None, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if _is_ours(kind, process, run_dir):
            os.kill(process.pid, number)


def _check_is_own(kind: str, process: Process) -> None:
    """Refuse to end what belongs to another user."""
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return
    except PermissionError:
        raise click.ClickException(f"The {kind}, process {process.pid}, is another user's.") from None


def _within(patience: float, is_so: Callable[[], bool]) -> bool:
    """Whether something becomes so within so many seconds."""
    end = time.monotonic() + patience
    while not (found := is_so()) and time.monotonic() < end:
        time.sleep(POLL)
    return found


def _is_ours(kind: str, process: Process, run_dir: str | None) -> bool:
    """Whether the process that has the pid now is this one, and of this kind, and run if one is given."""
    if Process.of(process.pid) != process:
        return False
    with contextlib.suppress(psutil.Error):
        return is_command_of(kind, psutil.Process(process.pid).cmdline(), run_dir)
    return False
