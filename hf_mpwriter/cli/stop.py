"""`hf-mpwriter stop`: end the sampler of a run, its uploader and its mirror; say what is left, and what finishes it.

    SIGTERM   it takes a last snapshot, pushes, and ends within GRACE seconds; a sampler seals its file
    SIGCONT   one that is stopped could not end otherwise
    SIGKILL   what has not ended by then; nothing is lost, as all of it is on disk

A pid comes from a file. So it is signalled only if the process that has it now is one of ours, for this run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator

import click
import psutil

from hf_mpwriter.base.words import ago, command_line, counted, size_text
from hf_mpwriter.cli.destination import existing_spool
from hf_mpwriter.cli.options import examples, logdir_argument
from hf_mpwriter.cli.status.facts import RunFacts, gather
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.samplers import SamplerStatus, is_alive
from hf_mpwriter.system.daemon import GRACE
from hf_mpwriter.system.launch import is_command_of
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.system.redaction import printable

PATIENCE = GRACE + 10.0  # seconds until it is killed
KILL_PATIENCE = 30.0  # seconds after that
POLL = 0.1  # seconds


@click.command("stop", epilog=examples("stop runs/exp1"))
@logdir_argument
def stop_run(logdir: str) -> None:
    """End the uploader of LOGDIR, with a last push.

    Says what is left then. Training goes on: a process that logs starts another uploader. End training first.
    """
    spool = existing_spool(logdir)
    for line in _ended(spool, gather(spool)):
        click.echo(printable(line))
    for line in left(gather(spool), logdir):
        click.echo(printable(line))


def _ended(spool: Spool, facts: RunFacts) -> Iterator[str]:
    """End what runs; what was done."""
    host = spool.host(host_id())  # the sampler comes first: the others take what it seals
    ours: list[tuple[str, Process | None, Callable[[], bool]]] = []
    if is_alive(spool):
        ours.append(("sampler", SamplerStatus.read(host).process, functools.partial(is_alive, spool)))
    ours += [("uploader", facts.hub.uploader.process, HubSink(spool).is_alive)]
    ours += [("mirror", facts.there.mirror.process, LogdirSink(spool).is_alive)] if facts.there.to else []
    for kind, process, lives in ours:
        if not lives():
            yield f"no {kind} runs"
            continue
        if process is None:
            raise click.ClickException(f"The {kind} has not said yet who it is. Try again in some seconds.")
        here = Process.current()
        if (process.host, process.boot, process.namespace) != (here.host, here.boot, here.namespace):
            raise click.ClickException(f"The {kind} is on {process.host.rpartition('-')[0]}: run this command there.")
        how = "ended" if _end(kind, process, spool.run_dir) else "killed, as it did not end"
        yield f"{kind} {process.pid} is {how}"


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


def left(facts: RunFacts, logdir: str) -> Iterator[str]:
    """What is left, and what finishes it."""
    if facts.alive:
        yield f"{counted(len(facts.alive), 'worker')} still alive: what is logged next starts another uploader"
    if facts.waiting:
        since = "" if facts.lag is None else f", the oldest record was logged {ago(facts.lag)}"
        yield f"{size_text(facts.waiting)} are not on the Hub{since}"
    if facts.missing_there:
        yield f"{size_text(facts.missing_there)} are not in {facts.there.to}"
    if facts.waiting or facts.missing_there:
        yield f"next: {command_line('sync', logdir)}"
    elif facts.hub.destination:
        yield "all that was logged is on the Hub"
    elif not facts.there.to:
        upload = command_line("sync", logdir, "--repo-id", "NAME")
        yield f"the run is local only: nothing is uploaded. To upload it: {upload}"
