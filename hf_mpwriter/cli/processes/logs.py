"""`hf-mpwriter logs`: the logs of the uploaders of a run, and of its mirrors.

    hosts/<host>/uploader.log.1, uploader.log     the older half first
    hosts/<host>/mirror.log.1, mirror.log         of a staged run

With several logs each part has a line `==> HOST uploader <==` above it, as `tail` has. `--follow` ends with the last
process of the run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import click

from hf_mpwriter.cli.destination import command_line, existing_spool, logdir_argument
from hf_mpwriter.cli.words import examples
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.spool.staging.logdir import Logdir
from hf_mpwriter.spool.staging.record import MirrorPlaces
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.spool.workers.samplers import SamplerPlaces
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.redaction import printable

EVERY = 0.5  # seconds between two looks of `--follow`


class FollowedLog:
    """A log and how much of it was shown."""

    def __init__(self, name: str, place: Place) -> None:
        self.name, self._place = name, place
        self._older = place.parent / f"{place.basename}.1"
        self._inode, self._shown, self._rest = 0, 0, b""

    def last(self, count: int) -> list[str]:
        """The last whole lines; what comes later is news."""
        before = self._read(self._older)
        self._inode, now = self._number(self._place), self._read(self._place)
        self._shown = len(now)
        whole, _, self._rest = (before + now).rpartition(b"\n")
        lines = whole.decode(errors="replace").splitlines()
        return lines[-count:] if count else []

    def news(self) -> list[str]:
        """The whole lines that have come since, also where the file was rotated meanwhile."""
        inode, data = self._number(self._place), self._read(self._place)
        if inode != self._inode:
            self._rest += self._read(self._older)[self._shown :] if self._inode else b""
            self._inode, self._shown = inode, 0
        news, self._shown = data[self._shown :], len(data)
        whole, _, self._rest = (self._rest + news).rpartition(b"\n")
        return whole.decode(errors="replace").splitlines()

    @staticmethod
    def _read(place: Place) -> bytes:
        with contextlib.suppress(OSError):
            return disk.read(place) or b""
        return b""

    @staticmethod
    def _number(place: Place) -> int:
        with contextlib.suppress(OSError):
            return place.stat().st_ino
        return 0


@click.command("logs", epilog=examples("logs runs/exp1", "logs -f runs/exp1    go on, until the run ends"))
@logdir_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged, until the last process of the run ends.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    metavar="N",
    help="Lines to begin with.",
)
def show_logs(logdir: str, *, follow: bool, lines: int) -> None:
    """Print what the uploader of LOGDIR has logged.

    The words of the Hub's client are there as well.
    """
    spool = existing_spool(logdir)
    logs: dict[str, FollowedLog] = {}
    new = _add_new(spool, logs)
    if not new and not (follow and _is_live(spool)):
        click.echo(printable(_no_log(spool, logdir)), err=True)
    _show([(logs[name], logs[name].last(lines)) for name in new], is_only=len(logs) == 1)
    is_live = follow
    while is_live:
        is_live = _is_live(spool)  # before the look: what a process logs at its end is shown
        _add_new(spool, logs)
        _show([(log, log.news()) for log in logs.values()], is_only=len(logs) == 1)
        time.sleep(EVERY if is_live else 0.0)


def _no_log(spool: Spool, logdir: str) -> str:
    """What to say of a run without a log: why there is none, and what makes one."""
    if spool.destination() is None and not Logdir(spool).is_staged:
        upload = command_line("sync", logdir, "--repo-id", "NAME")
        return f"{logdir} is local only, so no uploader has run here. To upload it: {upload}"
    return f"No uploader has run here yet. To start one: {command_line('sync', logdir)}"


def _add_new(spool: Spool, logs: dict[str, FollowedLog]) -> list[str]:
    """Add the logs that are new; their names."""
    new = [(name, place) for name, place in _places(spool) if name not in logs]
    for name, place in new:
        logs[name] = FollowedLog(name, place)
    return [name for name, _ in new]


def _places(spool: Spool) -> Iterator[tuple[str, Place]]:
    for host in spool.host_ids():
        files = spool.host(host)
        logs = {"uploader": files.log, "mirror": MirrorPlaces.of(files).log, "sampler": SamplerPlaces.of(files).log}
        for kind, place in logs.items():
            if place.exists():
                yield f"{host.rpartition('-')[0]} {kind}", place


def _show(parts: list[tuple[FollowedLog, list[str]]], *, is_only: bool) -> None:
    for log, lines in parts:
        if lines and not is_only:
            click.echo(printable(f"==> {log.name} <=="))
        for line in lines:
            click.echo(printable(line))


def _is_live(spool: Spool) -> bool:
    """Whether a process of the run lives that may log, or have one started that does."""
    if Progress(spool).uploader_is_alive() or Logdir(spool).is_alive():
        return True
    return any(member.works for member in Members(spool).all())
