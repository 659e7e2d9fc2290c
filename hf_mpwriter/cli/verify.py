"""`hf-mpwriter verify`: compare a run with the Hub, record by record, over its whole history.

    what was found                         what is advised
    the Hub was not asked, or refused      what lets it be asked; nothing is said of the data
    bytes are missing                      sync
    a copy has another content             restore the local file or remove the copy, then sync
    an old version was shorter or differs  nothing: the past of a branch does not change

With a run directory on each machine, the Hub has files that others write: what this run directory has neither sent nor
holds, and what was pulled and goes on elsewhere. They are named, and are no problem.

Invariant: a problem is reported only of what the Hub has told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hf_mpwriter.base.settings import OFFLINE, Destination, is_offline
from hf_mpwriter.base.verdicts import Refused, Verdict
from hf_mpwriter.cli.destination import (
    command_line,
    endpoint_option,
    existing_spool,
    logdir_argument,
    newest_settings,
    recorded_destination,
    with_namespace,
)
from hf_mpwriter.cli.output import comparison_lines, counted, failure, show_damage
from hf_mpwriter.pull.record import pulled_files
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import hf_home
from hf_mpwriter.system.process import host_id, start_directory
from hf_mpwriter.system.redaction import printable

if TYPE_CHECKING:
    from hf_mpwriter.testing import Report


@click.command("verify")
@logdir_argument
@click.option("--running", is_flag=True, help="Training goes on: do not report what is not on the Hub yet.")
@endpoint_option
def verify_run(logdir: Path, *, running: bool, endpoint: str | None) -> None:
    """Check the copy of LOGDIR on the Hub, record by record.

    Each event file on the Hub must consist of the first whole records of the local one, and no commit may have
    shortened it. Nothing may be missing. Attachments must be equal.
    """
    spool = existing_spool(logdir)
    if (recorded := spool.destination()) is None:
        raise click.ClickException(f"{logdir} has no destination.")
    typed = command_line("verify", logdir, *(["--running"] if running else []))
    destination = recorded_destination(recorded, endpoint, typed)
    if is_offline():
        raise click.ClickException(f"{OFFLINE}: nothing was compared. Unset it to verify.")
    report = _compare(spool, destination, logdir, drained=not running)
    for line in comparison_lines(report):
        click.echo(line)
    for problem in report.problems:
        click.echo(printable(problem), err=True)
    damaged = show_damage(report.damage)
    if report.problems:
        problems = counted(len(report.problems), "problem")
        raise failure(". ".join([problems, *advice(report, command_line("sync", logdir))]), damaged=damaged)
    others = sum(file.is_elsewhere for file in report.files.values())
    count = len(report.files) + len(report.attachments) - others
    files, commits = counted(count, "file"), counted(report.commits, "commit")
    if damaged:
        raise failure(f"What is whole of {files} is on the Hub; what is damaged here is not", damaged=True)
    click.echo(f"Whole on the Hub: {files}; no event file shrank in {commits}.")
    if others:
        pull = command_line("pull", logdir)
        click.echo(f"Other machines write {counted(others, 'file')} there. To have what they wrote so far: {pull}")


def _compare(spool: Spool, destination: Destination, logdir: Path, *, drained: bool) -> Report:
    """Compare, or say in one line why that cannot be done."""
    # read when the client is imported; it may ask the Hub of HF_ENDPOINT whatever destination it was given
    os.environ["HF_ENDPOINT"] = destination.endpoint
    os.environ |= hf_home.settled(os.environ, start_directory(), hf_home.account_home())
    os.environ |= hf_home.writable_caches(os.environ, spool.host(host_id()).cache.way)
    from hf_mpwriter.push.classify import classify
    from hf_mpwriter.push.client import Hub
    from hf_mpwriter.testing import check

    ledger = Progress(spool).ledger()
    hub = Hub(with_namespace(destination, ledger.repo_id if ledger else ""))
    allows = newest_settings(Members(spool).all(), ledger).allows
    elsewhere = written_elsewhere(ledger, pulled_files(spool))
    try:
        report = None
        if hub.head() is not None:
            report = check(
                spool.run_dir, hub, drained=drained, attachments=allows, fetch=hub.content, elsewhere=elsewhere
            )
    except Exception as error:  # every error of the client has a verdict
        raise click.ClickException(unreached(classify(error))) from error
    if report is None:
        raise click.ClickException(unseen(destination, ledger, command_line("sync", logdir)))
    return report


def written_elsewhere(ledger: Ledger | None, pulled: Mapping[str, int]) -> Callable[[str, int], bool]:
    """Return what tells whether another machine writes an event file, by its path and its bytes here.

    Args:
        ledger: what the Hub was known to hold.
        pulled: bytes that came from the Hub, per path.
    """

    def elsewhere(path: str, size: int) -> bool:
        if path in pulled:  # it does not grow here
            return size <= pulled[path]  # an interrupted pull has less; what is here is compared all the same
        return not size and (ledger is None or path not in ledger.files)

    return elsewhere


def unseen(destination: Destination, ledger: Ledger | None, sync: str) -> str:
    """Return what to say of a repository or a branch that the Hub does not show.

    Args:
        destination: of the run.
        ledger: what the Hub was known to hold.
        sync: the command that uploads.
    """
    if ledger is None or not any(held.length for held in ledger.files.values()):
        return f"Nothing was compared: {destination} is not there, and nothing is known to have been sent. Run: {sync}"
    return (
        f"Nothing was compared: {destination} took bytes of this run, and now it is gone, or this token may not see "
        "it. Run: hf auth login, with a token that may read it (or set HF_TOKEN); or look whether it was renamed."
    )


def unreached(verdict: Verdict) -> str:
    """Return what to say when the Hub did not answer, or refused to."""
    reason = getattr(verdict, "reason", "") or type(verdict).__name__
    if isinstance(verdict, Refused):
        return printable(f"Nothing was compared: the Hub refuses it: {reason} {verdict.hint}".rstrip())
    return printable(f"Nothing was compared: the Hub did not answer as it should: {reason}. Try again later.")


def advice(report: Report, sync: str) -> list[str]:
    """Return what helps against the problems of a report, a sentence each, without its full stop.

    Args:
        report: of the oracle, with problems.
        sync: the command that uploads.
    """
    files = list(report.files.values())
    late = any(file.hub_bytes < file.local_bytes and not file.differs for file in files)
    late = late or any(problem.partition(": ")[0] in report.attachments for problem in report.problems)
    found = [f"To upload what is missing or has changed: {sync}"] if late else []
    if differing := sum(file.differs for file in files):
        found.append(
            f"{counted(differing, 'file')} on the Hub cannot be continued by the local ones, and no upload replaces "
            f"them: restore the local ones, or remove those on the Hub, then run: {sync}"
        )
    return found or ["The Hub has all of the run now; earlier versions there were not as they should be"]
