"""The command `doctor`: a line for each check, then how a run in LOGDIR is kept.

Exit codes: 0 if nothing fails, 4 if something does: a person is needed. 1 where a writer would refuse to begin a run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import click

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import Destination, Environment
from hf_mpwriter.base.storage import is_url, normalised_logdir
from hf_mpwriter.cli.destination import spool_at, with_namespace
from hf_mpwriter.cli.doctor.checks import Check, Health, lines
from hf_mpwriter.cli.doctor.hub import hub_checks
from hf_mpwriter.cli.doctor.machine import (
    commits_check,
    disk_check,
    filesystem_lines,
    on_different_disks,
    uploader_checks,
    versions_check,
)
from hf_mpwriter.cli.words import examples
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.system.redaction import printable

FAILS = 4  # exit code


@click.command("doctor", epilog=examples("doctor", "doctor runs/exp1    also its run and its filesystem"))
@click.argument("directory", metavar="[LOGDIR]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def examine(directory: str | None, *, as_json: bool) -> None:
    """Find what keeps uploads from working: token, Hub, disk, clock.

    Also repository, limits, versions and uploaders. With LOGDIR also its filesystem, and how a run there would be
    kept. It need not exist yet, and may be a URL. Each line begins with ok, warn or fail, and ends with what
    helps. Ends within seconds.

    Exit code 0: nothing fails; 1: no run can be kept in LOGDIR; 4: something fails.
    """
    logdir = None if directory is None else normalised_logdir(directory)
    if logdir is not None and not is_url(logdir) and os.path.lexists(logdir) and not os.path.isdir(logdir):
        raise click.ClickException(f"{printable(logdir)} is no directory. Give the logdir of a run.")
    about = filesystem_lines(logdir) if logdir is not None else []
    checks = list(_checks(logdir))
    if as_json:
        click.echo(json.dumps({"checks": [check.to_json() for check in checks], "filesystem": dict(about)}, indent=1))
    else:
        for line in lines(checks):
            click.echo(line)
        if about:
            click.echo()
            _print_aligned(about)
    click.get_current_context().exit(FAILS if any(check.health is Health.FAIL for check in checks) else 0)


def _checks(logdir: str | None) -> Iterator[Check]:
    yield versions_check()
    spool, destination, trouble = (None, None, None) if logdir is None else _run_at(logdir)
    yield from hub_checks(Environment.read().endpoint, destination, has_pushed=spool is not None and _has_pushed(spool))
    if trouble is not None:
        yield trouble
    if spool is not None and destination is not None:
        yield commits_check(spool, destination)
    for path in [os.getcwd()] if spool is None else on_different_disks(spool.run_dir, spool.directory.path):
        yield disk_check(path)
    yield from uploader_checks()


def _has_pushed(spool: Spool) -> bool:
    """Whether the last push of a run from this machine has succeeded."""
    status = Progress(spool).uploader()
    return status.succeeded_at > 0 and not status.kind and not status.place


def _run_at(logdir: str) -> tuple[Spool, Destination | None, Check | None]:
    """The spool of a logdir, its destination if it is a run that has one, and what is wrong with it."""
    spool = spool_at(logdir)
    try:
        recorded = spool.destination() if spool.exists() else None
    except (HfMpWriterError, OSError) as error:
        return spool, None, Check("run", Health.FAIL, str(error))
    if recorded is None:
        return spool, None, None
    ledger = Progress(spool).ledger()
    return spool, with_namespace(recorded, ledger.repo_id if ledger else ""), None


def _print_aligned(lines: list[tuple[str, str]]) -> None:
    """Print names and texts in two columns."""
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(f"{name.ljust(width)}  {printable(text)}")
