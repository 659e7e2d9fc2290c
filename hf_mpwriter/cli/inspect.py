"""`hf-mpwriter status`: what the disk knows of a run. It asks the Hub nothing: the ledger says what the Hub holds.

`status --json` prints:

    {"logdir": "/home/me/runs/exp1",
     "destination": "https://huggingface.co/me/run ...",      null for a local run
     "visibility": "public",                                  private or unknown otherwise, as it was seen last
     "uploader": {"phase": "idle", "pid": 4711, "alive": true, "process": {"host": ...}, "beat": ..., "reason": "", ...,
                  "notices": ["created ..."]},                what its uploaders have found out, the newest last
     "workers": ["main", "rank_00001"],                       workers that are alive
     "mirror": {"to": "s3://...", "phase": "idle", "alive": true, "reason": "", "next_try": ..., ...,
                "refused": {"events.out...": "reason"}},      null unless the run is staged
     "files": [{"path": "events.out...", "bytes": 4711, "on_hub": 4096, "growing": true,
                "in_logdir": 4711,                            null unless the run is staged; it takes whole files
                "pulled": false}],                            whether it came from the Hub: another machine wrote it
     "quarantined": {"events.out...": "reason"},
     "dropped": {"main": 3},                                  records that the disk refused for good, per worker
     "damaged": {"events.out...": "is damaged at ..."}}       what no reader reaches; exit code 3 if it is damage
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import click

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli.destination import command_line, existing_spool, logdir_argument, newest_settings
from hf_mpwriter.cli.output import counted, exit_code, file_line, mirror_line, show_damage, uploader_line
from hf_mpwriter.pull.record import pulled_files
from hf_mpwriter.snapshot.attachments import Attachments
from hf_mpwriter.snapshot.event_files import Damage, EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.notices import read_notices
from hf_mpwriter.spool.progress import Progress, size_text
from hf_mpwriter.spool.staging.logdir import Logdir
from hf_mpwriter.spool.staging.record import Mirrored
from hf_mpwriter.spool.staging.status import MirrorStatus
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.spool.workers.share import Share
from hf_mpwriter.system.redaction import printable


@dataclass(frozen=True)
class Overview:
    """What the disk knows of a run.

    Attributes:
        run_dir: absolute path.
        destination: None for a local run.
        visibility: public, private or unknown, as it was seen last.
        uploader: as it last described itself.
        notices: what the uploaders of all hosts have found out, the newest last.
        uploader_is_alive: whether one holds the uploader lock.
        workers: names of the workers that are alive.
        files: event files and attachments.
        on_hub: bytes that the Hub holds, per path.
        pulled: paths that came from the Hub.
        quarantined: the reason, per path.
        dropped: records that the disk refused for good, per worker.
        damaged: what is behind the last whole record, per path of an event file.
        logdir: of a staged run, where it is brought to; "" for any other.
        mirror: as it last described itself.
        mirror_is_alive: whether one holds the mirror lock.
        mirrored: what is in the logdir.
    """

    run_dir: str
    destination: Destination | None
    visibility: str
    uploader: UploaderStatus
    notices: list[str]
    uploader_is_alive: bool
    workers: list[str]
    files: list[LocalFile]
    on_hub: dict[str, int]
    pulled: frozenset[str]
    quarantined: dict[str, str]
    dropped: dict[str, int]
    damaged: dict[str, str]
    logdir: str
    mirror: MirrorStatus
    mirror_is_alive: bool
    mirrored: Mirrored

    def in_logdir(self, file: LocalFile) -> int | None:
        """Return the bytes of a file that are in the logdir; None of a run without one, and of attachments."""
        if not self.logdir or is_attachment(file.path):
            return None
        return min(file.length, self.mirrored.files.get(file.path, 0))

    def to_json(self) -> dict[str, Any]:
        """Return the object that `status --json` prints."""
        uploader = {"pid": self.uploader.pid, "alive": self.uploader_is_alive, "notices": self.notices}
        return {
            "logdir": self.run_dir,
            "destination": str(self.destination) if self.destination else None,
            "visibility": self.visibility,
            "uploader": {**dataclasses.asdict(self.uploader), **uploader},
            "mirror": self._mirror_json() if self.logdir else None,
            "workers": self.workers,
            "files": [
                {
                    "path": file.path,
                    "bytes": file.length,
                    "on_hub": self.on_hub[file.path],
                    "growing": file.growing,
                    "in_logdir": self.in_logdir(file),
                    "pulled": file.path in self.pulled,
                }
                for file in self.files
            ],
            "quarantined": self.quarantined,
            "dropped": self.dropped,
            "damaged": self.damaged,
        }

    def _mirror_json(self) -> dict[str, Any]:
        more = {"to": self.logdir, "alive": self.mirror_is_alive, "refused": self.mirrored.refused}
        return {**dataclasses.asdict(self.mirror), **more}


@click.command("status")
@logdir_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_status(logdir: str, *, as_json: bool) -> None:
    """Show how much of LOGDIR is on the Hub, and what its uploader does.

    Asks the disk only, not the Hub.
    """
    overview, damage = _overview(existing_spool(logdir))
    if as_json:
        click.echo(json.dumps(overview.to_json(), indent=1))
    else:
        _print(overview, logdir)
    damaged = show_damage(damage)
    click.get_current_context().exit(exit_code(complete=True, damaged=damaged))


def _overview(spool: Spool) -> tuple[Overview, list[Damage]]:
    destination = spool.destination()
    all_members, progress = Members(spool), Progress(spool)
    members, ledger = all_members.all(), progress.ledger()
    allows = Share(spool).of(newest_settings(members, ledger).allows)
    attached = Attachments(spool.run).scan(allows)
    scan = EventFileScan(spool.run)
    files = scan.files(allows, all_members.growing) + attached.files
    damage, logdir = scan.damage(time.time()), Logdir(spool)
    overview = Overview(
        run_dir=spool.run_dir,
        destination=destination,
        visibility=visibility(ledger),
        notices=_notices(spool),
        uploader=progress.uploader(),
        uploader_is_alive=progress.uploader_is_alive(),
        workers=sorted({member.name.worker for member in members if member.alive}),
        files=files,
        on_hub={file.path: _bytes_on_hub(file, ledger) for file in files},
        pulled=frozenset(pulled_files(spool)),
        quarantined=attached.refused | (ledger.reasons if ledger else {}),
        dropped=_dropped(members),
        damaged={one.path: str(one) for one in damage},
        logdir=logdir.to,
        mirror=logdir.status(),
        mirror_is_alive=logdir.is_alive(),
        mirrored=logdir.mirrored(),
    )
    return overview, damage


def visibility(ledger: Ledger | None) -> str:
    """Return who can read the repository, as it was seen last."""
    private = ledger.private if ledger else None
    return "unknown" if private is None else "private" if private else "public"


def _notices(spool: Spool) -> list[str]:
    found = [notice for host_id in spool.host_ids() for notice in read_notices(spool.host(host_id))]
    return [notice.text for notice in sorted(found, key=lambda notice: notice.time)]


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


def _print(overview: Overview, logdir: str) -> None:
    where = f"{overview.destination} ({overview.visibility})" if overview.destination else "local only"
    click.echo(printable(f"{overview.run_dir} -> {where}"))
    click.echo(uploader_line(overview.uploader, time.time(), alive=overview.uploader_is_alive))
    if overview.logdir:
        line = mirror_line(overview.mirror, time.time(), alive=overview.mirror_is_alive)
        click.echo(printable(f"logdir {overview.logdir}: {line}"))
    for file in overview.files:
        pulled, there = file.path in overview.pulled, overview.in_logdir(file)
        click.echo(file_line(file, overview.on_hub[file.path], pulled=pulled, in_logdir=there))
    total, held = sum(file.length for file in overview.files), sum(overview.on_hub.values())
    files = counted(len(overview.files), "file")
    click.echo(f"On the Hub: {size_text(held)} of {size_text(total)} in {files}.")
    if overview.logdir:
        there = sum(overview.in_logdir(file) or 0 for file in overview.files)
        click.echo(f"In the logdir: {size_text(there)} of {size_text(total)}; an open file comes when it is sealed.")
    for path, reason in overview.mirrored.refused.items():
        again = command_line("sync", logdir)
        click.echo(printable(f"not brought to the logdir: {path}: {reason}. To try again: {again}"))
    for path, reason in overview.quarantined.items():
        again = command_line("sync", logdir)
        click.echo(f"quarantined: {printable(path)}: {printable(reason)}. To try again: {again}")
    for worker, count in overview.dropped.items():
        click.echo(f"dropped: {count} records of {worker}, which the disk refused")
