"""`hf-mpwriter status` and `hf-mpwriter verify`: compare a run directory with the Hub.

`status` reads local files only: the ledger says what the Hub holds. `verify` downloads the Hub's copies and compares
them record by record. Neither changes anything.

`status --json` prints:

    {"logdir": "/home/me/runs/exp1",
     "destination": "https://huggingface.co/me/run ...",      null for a local run
     "uploader": {"phase": "idle", "pid": 4711, "alive": true, "beat": ..., "reason": "", "hint": "", ...},
     "workers": ["main", "rank_00001"],                       workers that are alive
     "files": [{"path": "events.out...", "bytes": 4711, "on_hub": 4096, "growing": true}],
     "quarantined": {"events.out...": "reason"},
     "dropped": {"main": 3}}                                  records that the disk refused for good, per worker
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli.logdir import existing_spool, logdir_argument, newest_settings
from hf_mpwriter.cli.output import comparison_lines, counted, file_line, printable, uploader_line
from hf_mpwriter.snapshot.attachments import Attachments
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.members import Member, Members
from hf_mpwriter.spool.progress import Progress, size_text
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system import hf_home
from hf_mpwriter.system.process import host_id


@dataclass(frozen=True)
class Overview:
    """What the disk knows of a run.

    Attributes:
        run_dir: absolute path.
        destination: None for a local run.
        uploader: as it last described itself.
        uploader_is_alive: whether one holds the uploader lock.
        workers: names of the workers that are alive.
        files: event files and attachments.
        on_hub: bytes that the Hub holds, per path.
        quarantined: the reason, per path.
        dropped: records that the disk refused for good, per worker.
    """

    run_dir: str
    destination: Destination | None
    uploader: UploaderStatus
    uploader_is_alive: bool
    workers: list[str]
    files: list[LocalFile]
    on_hub: dict[str, int]
    quarantined: dict[str, str]
    dropped: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the object that `status --json` prints."""
        uploader = {"pid": self.uploader.pid, "alive": self.uploader_is_alive}
        return {
            "logdir": self.run_dir,
            "destination": str(self.destination) if self.destination else None,
            "uploader": {**dataclasses.asdict(self.uploader), **uploader},
            "workers": self.workers,
            "files": [
                {"path": file.path, "bytes": file.length, "on_hub": self.on_hub[file.path], "growing": file.growing}
                for file in self.files
            ],
            "quarantined": self.quarantined,
            "dropped": self.dropped,
        }


@click.command("status")
@logdir_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_status(logdir: Path, *, as_json: bool) -> None:
    """Show how much of LOGDIR is on the Hub, and what its uploader does.

    Asks the disk only, not the Hub.
    """
    overview = _overview(existing_spool(logdir))
    if as_json:
        click.echo(json.dumps(overview.to_json(), indent=1))
    else:
        _print(overview, logdir)


def _overview(spool: Spool) -> Overview:
    destination = spool.destination()
    all_members, progress = Members(spool), Progress(spool)
    members, ledger = all_members.all(), progress.ledger()
    allows = newest_settings(members, ledger).allows
    attached = Attachments(spool.run).scan(allows)
    files = EventFileScan(spool.run).files(allows, all_members.growing) + attached.files
    return Overview(
        run_dir=spool.run_dir,
        destination=destination,
        uploader=progress.uploader(),
        uploader_is_alive=progress.uploader_is_alive(),
        workers=sorted({member.name.worker for member in members if member.alive}),
        files=files,
        on_hub={file.path: _bytes_on_hub(file, ledger) for file in files},
        quarantined=attached.refused | (ledger.quarantined if ledger else {}),
        dropped=_dropped(members),
    )


def _dropped(members: Iterable[Member]) -> dict[str, int]:
    dropped: dict[str, int] = {}
    for member in filter(lambda member: member.dropped, members):
        dropped[member.name.worker] = dropped.get(member.name.worker, 0) + member.dropped
    return dropped


def _bytes_on_hub(file: LocalFile, ledger: Ledger | None) -> int:
    """Return the bytes of a file that the Hub holds; of an attachment, all or none."""
    if ledger is None or (file.sha256 and (file.path in ledger.quarantined or not ledger.covers(file))):
        return 0
    return min(file.length, ledger.length(file.path))


def _print(overview: Overview, logdir: Path) -> None:
    click.echo(f"{overview.run_dir} -> {overview.destination or 'local only'}")
    click.echo(uploader_line(overview.uploader, time.time(), alive=overview.uploader_is_alive))
    for file in overview.files:
        click.echo(file_line(file, overview.on_hub[file.path]))
    total, held = sum(file.length for file in overview.files), sum(overview.on_hub.values())
    files = counted(len(overview.files), "file")
    click.echo(f"On the Hub: {size_text(held)} of {size_text(total)} in {files}.")
    for path, reason in overview.quarantined.items():
        click.echo(f"quarantined: {printable(path)}: {reason}. To try again: hf-mpwriter sync {logdir}")
    for worker, count in overview.dropped.items():
        click.echo(f"dropped: {count} records of {worker}, which the disk refused")


@click.command("verify")
@logdir_argument
@click.option("--running", is_flag=True, help="Training goes on: do not report what is not on the Hub yet.")
def verify_run(logdir: Path, *, running: bool) -> None:
    """Check the copy of LOGDIR on the Hub, record by record.

    Each event file on the Hub must consist of the first whole records of the local one, and no commit may have
    shortened it. Nothing may be missing. Attachments must be equal.
    """
    spool = existing_spool(logdir)
    if (destination := spool.destination()) is None:
        raise click.ClickException(f"{logdir} has no destination.")
    cache = str(spool.host(host_id()).cache)
    os.environ |= hf_home.writable_caches(os.environ, cache)  # read when the client is imported
    from hf_mpwriter.push.client import Hub
    from hf_mpwriter.testing import check

    ledger = Progress(spool).ledger()
    hub = Hub(ledger.resolved if ledger else destination)
    allows = newest_settings(Members(spool).all(), ledger).allows
    report = check(spool.run_dir, hub, drained=not running, attachments=allows)
    for line in comparison_lines(report):
        click.echo(line)
    for problem in report.problems:
        click.echo(printable(problem), err=True)
    if report.problems:
        count = len(report.problems)
        noun = "problem" if count == 1 else "problems"
        raise click.ClickException(f"{count} {noun}. To upload what is missing: hf-mpwriter sync {logdir}")
    count = len(report.files) + len(report.attachments)
    files, commits = counted(count, "file"), counted(report.commits, "commit")
    click.echo(f"Whole on the Hub: {files}; no event file shrank in {commits}.")
