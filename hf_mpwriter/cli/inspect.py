"""`hf-mpwriter status`: what the disk knows of a run. It asks the Hub nothing: the ledger says what the Hub holds.

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
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli.destination import command_line
from hf_mpwriter.cli.logdir import existing_spool, logdir_argument, newest_settings
from hf_mpwriter.cli.output import counted, file_line, uploader_line
from hf_mpwriter.snapshot.attachments import Attachments
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.member_lines import Member
from hf_mpwriter.spool.members import Members
from hf_mpwriter.spool.progress import Progress, size_text
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system.redaction import printable


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
    attached = Attachments(spool.run_dir).scan(allows)
    files = EventFileScan(spool.run_dir).files(allows, all_members.growing) + attached.files
    return Overview(
        run_dir=spool.run_dir,
        destination=destination,
        uploader=progress.uploader(),
        uploader_is_alive=progress.uploader_is_alive(),
        workers=sorted({member.name.worker for member in members if member.alive}),
        files=files,
        on_hub={file.path: _bytes_on_hub(file, ledger) for file in files},
        quarantined=attached.refused | (ledger.reasons if ledger else {}),
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
    click.echo(printable(f"{overview.run_dir} -> {overview.destination or 'local only'}"))
    click.echo(uploader_line(overview.uploader, time.time(), alive=overview.uploader_is_alive))
    for file in overview.files:
        click.echo(file_line(file, overview.on_hub[file.path]))
    total, held = sum(file.length for file in overview.files), sum(overview.on_hub.values())
    files = counted(len(overview.files), "file")
    click.echo(f"On the Hub: {size_text(held)} of {size_text(total)} in {files}.")
    for path, reason in overview.quarantined.items():
        again = command_line("sync", logdir)
        click.echo(f"quarantined: {printable(path)}: {printable(reason)}. To try again: {again}")
    for worker, count in overview.dropped.items():
        click.echo(f"dropped: {count} records of {worker}, which the disk refused")
