"""`hf-mpwriter logs`: the logs of the uploaders of a run, of its mirrors, and of its samplers.

    hosts/<host>/uploader.log.1, uploader.log     the older half first
    hosts/<host>/mirror.log.1, mirror.log         of a staged run

With several logs each has a line `==> HOST uploader <==` above it. `--follow` leaves the work to `tail -F`, which
goes on where a log is rotated, and names each by its path. A log that is made later is not followed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable, Iterator

import click

from hf_mpwriter.base.words import command_line
from hf_mpwriter.cli.destination import existing_spool
from hf_mpwriter.cli.options import examples, logdir_argument
from hf_mpwriter.delivery.sinks import LogdirSink
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk, launch
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.redaction import printable

LINES = 100  # to begin with


@click.command("logs", epilog=examples("logs runs/exp1", "logs -f runs/exp1    go on, until Ctrl-C"))
@logdir_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged, until Ctrl-C.")
def show_logs(logdir: str, *, follow: bool) -> None:
    """Print the last hundred lines that the uploader of LOGDIR has logged.

    The words of the Hub's client are there as well.
    """
    spool = existing_spool(logdir)
    logs = dict(_places(spool))
    if not logs:
        click.echo(printable(_no_log(spool, logdir)), err=True)
    elif follow:
        _follow(logs.values())
    else:
        for name, place in logs.items():
            _show(name if len(logs) > 1 else "", last_lines(place))


def _no_log(spool: Spool, logdir: str) -> str:
    """What to say of a run without a log: why there is none, and what makes one."""
    if spool.destination() is None and not LogdirSink(spool).is_staged:
        upload = command_line("sync", logdir, "--repo-id", "NAME")
        return f"{logdir} is local only, so no uploader has run here. To upload it: {upload}"
    return f"No uploader has run here yet. To start one: {command_line('sync', logdir)}"


def _places(spool: Spool) -> Iterator[tuple[str, Place]]:
    """The logs of a run, each with its name."""
    for host in spool.host_ids():
        for kind in launch.DAEMONS:
            if (place := spool.host(host).daemon(kind).log).exists():
                yield f"{host.rpartition('-')[0]} {kind}", place


def last_lines(place: Place) -> list[str]:
    """The last whole lines of a log and of its older half."""
    text = b""
    for part in (place.parent / f"{place.basename}.1", place):
        with contextlib.suppress(OSError):
            text += disk.read(part) or b""
    return text.rpartition(b"\n")[0].decode(errors="replace").splitlines()[-LINES:]


def _show(name: str, lines: list[str]) -> None:
    if name and lines:
        click.echo(printable(f"==> {name} <=="))
    for line in lines:
        click.echo(printable(line))


def _follow(logs: Iterable[Place]) -> None:
    """Print what `tail -F` reads; what a terminal would obey is escaped here, so it does not write there itself."""
    command = ["tail", "-n", str(LINES), "-F", "--", *map(os.fspath, logs)]
    with contextlib.suppress(KeyboardInterrupt), subprocess.Popen(command, stdout=subprocess.PIPE) as tail:
        try:
            for line in tail.stdout or ():
                click.echo(printable(line.decode(errors="replace").rstrip("\n")))
        finally:
            tail.terminate()
