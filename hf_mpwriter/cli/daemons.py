"""`hf-mpwriter logs` and `hf-mpwriter stop`: what the uploader, mirror and sampler of a run log, and their end.

`logs` leaves the work to `tail`, which names each of several logs by its path, and with `--follow` goes on where a log
is rotated. A log that is made later is not followed.

    hosts/<host>/uploader.log.1, uploader.log     the older half first
    hosts/<host>/mirror.log.1, mirror.log         of a staged run

`stop` signals a pid that comes from a file, so only if the process that has it now is one of ours, for this run:

    SIGTERM   it takes a last snapshot, pushes, and ends within GRACE seconds; a sampler seals its file
    SIGCONT   one that is stopped could not end otherwise
    SIGKILL   what has not ended by then; nothing is lost, as all of it is on disk
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import click
import psutil

from hf_mpwriter.base.words import command_line, counted
from hf_mpwriter.cli.facts import gather, judge
from hf_mpwriter.cli.runs import examples, existing_spool, logdir_argument
from hf_mpwriter.cli.status import SeenRun, table
from hf_mpwriter.daemon.loop import GRACE
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import SamplerStatus
from hf_mpwriter.system import locks
from hf_mpwriter.system.launch import DAEMONS, is_command_of
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.system.redaction import printable

LINES = 100  # of each log, to begin with
PATIENCE = GRACE + 10.0  # seconds until a process is killed
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
    # what a terminal would obey is escaped here, so `tail` does not write there itself
    command = ["tail", "-n", str(LINES), *(["-F"] if follow else []), "--", *logs]
    with contextlib.suppress(KeyboardInterrupt), subprocess.Popen(command, stdout=subprocess.PIPE) as tail:
        try:
            for line in tail.stdout or ():
                click.echo(printable(line.decode(errors="replace").rstrip("\n")))
        finally:
            tail.terminate()


def _logs(spool: Spool, *, follow: bool) -> Iterator[str]:
    """The paths of all logs, on whichever host. An older half that is followed would be printed again by a rotation."""
    for host in spool.host_ids():
        for kind in DAEMONS:
            log = os.fspath(spool.host(host).daemon(kind).log)
            there = list(filter(os.path.exists, (f"{log}.1", log)))
            yield from [log] * bool(there) if follow else there


@click.command("stop", epilog=examples("stop runs/exp1"))
@logdir_argument
def stop_run(logdir: str) -> None:
    """End the uploader of LOGDIR, with a last push.

    Says what is left then. Training goes on: a process that logs starts another uploader. End training first.
    """
    spool = existing_spool(logdir)
    for line in _ended(spool) or ["no uploader runs"]:
        click.echo(printable(line))
    facts = gather(spool)
    if facts.alive:
        count = counted(len(facts.alive), "worker")
        click.echo(f"{count} still alive: what is logged next starts another uploader")
    for line in table([SeenRun(logdir, facts, judge(facts, logdir))]):
        click.echo(printable(line))


def _ended(spool: Spool) -> list[str]:
    """End what runs; what was done."""
    done = []
    processes = {  # the sampler comes first: the others take what it seals
        "sampler": SamplerStatus.read(spool.host(host_id())).process,
        "uploader": HubSink(spool).status().process,
        "mirror": LogdirSink(spool).status().process,
    }
    for kind, process in processes.items():
        if not locks.is_held(spool.lock_of(kind)):
            continue
        unknown = click.ClickException(f"The {kind} has not said yet who it is. Try again in some seconds.")
        if process is None:
            raise unknown
        here = Process.current()
        if (process.host, process.boot, process.namespace) != (here.host, here.boot, here.namespace):
            raise click.ClickException(f"The {kind} is on {process.host.rpartition('-')[0]}: run this command there.")
        if Process.of(process.pid) != process and locks.is_held(spool.lock_of(kind)):  # it is the one before
            raise unknown
        how = "ended" if _end(kind, process, spool.run_dir) else "killed, as it did not end"
        done.append(f"{kind} {process.pid} is {how}")
    return done


def _end(kind: str, process: Process, run_dir: str) -> bool:
    """End a process; False if it had to be killed."""
    for number, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, KILL_PATIENCE)):
        try:
            if _is_ours(kind, process, run_dir):
                os.kill(process.pid, number)
                os.kill(process.pid, signal.SIGCONT)
        except ProcessLookupError:
            return number == signal.SIGTERM
        except PermissionError:
            raise click.ClickException(f"The {kind}, process {process.pid}, is another user's.") from None
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if not _is_ours(kind, process, run_dir):
                return number == signal.SIGTERM
            time.sleep(POLL)
    raise click.ClickException(f"The {kind}, process {process.pid}, does not end: it hangs in the kernel.")


def _is_ours(kind: str, process: Process, run_dir: str) -> bool:
    """Whether the process that has the pid now is this one, and of this kind and run."""
    if Process.of(process.pid) != process:
        return False
    with contextlib.suppress(psutil.Error):
        return is_command_of(kind, psutil.Process(process.pid).cmdline(), run_dir)
    return False
