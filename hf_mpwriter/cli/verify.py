"""`hf-mpwriter verify`: compare a run with the Hub, record by record, over its whole history.

    what was found                         what is advised
    the Hub was not asked, or refused      what lets it be asked; nothing is said of the data
    bytes are missing                      sync
    a copy has another content             restore the local file or remove the copy, then sync
    an old version was shorter or differs  nothing: the past of a branch does not change

Of a staged run, what is final here is compared with the logdir too, byte by byte; without a destination only that.
What has been there and is gone is a problem even while training goes on: nothing but a person removes it.

With a run directory on each machine, the Hub has files that others write: what this run directory has neither sent nor
holds, and what was pulled and goes on elsewhere (`spool/pulled`). They are named, are no problem, and do not count as
whole.

Invariant: a problem is reported only of what the Hub has told.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from hf_mpwriter.base.names import is_attachment, is_embedding
from hf_mpwriter.base.settings import OFFLINE, Destination, is_offline
from hf_mpwriter.base.words import command_line, counted, sentence, size_text
from hf_mpwriter.cli.facts import apart, apart_text
from hf_mpwriter.cli.output import DAMAGED, failure, show_damage
from hf_mpwriter.cli.runs import (
    endpoint_option,
    examples,
    existing_spool,
    logdir_argument,
    newest_settings,
    prepare_client,
    recorded_destination,
)
from hf_mpwriter.delivery.sentences import BEGINNING, lost_text
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.copies import (
    Absent,
    Arrived,
    Conflict,
    CopyHandle,
    CopyJob,
    CopyLivesError,
    Failure,
    Item,
    Message,
    Task,
    bounded,
)
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.pulled import THEIRS, pulled_files, whose
from hf_mpwriter.spool.workers.losses import losses
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import hf_home
from hf_mpwriter.system.process import host_id
from hf_mpwriter.system.redaction import printable

if TYPE_CHECKING:
    from hf_mpwriter.testing import FileReport, Report

BUSY = 60.0  # seconds that a copy of the mirror is waited for
POLL = 0.2  # seconds


@click.command("verify", epilog=examples("verify runs/exp1", "verify runs/exp1 --running    while training goes on"))
@logdir_argument
@click.option("--running", is_flag=True, help="Training goes on: do not report what is not there yet.")
@endpoint_option
def verify_run(logdir: str, *, running: bool, endpoint: str | None) -> None:
    """Check the copy of LOGDIR on the Hub, record by record.

    Each event file on the Hub must consist of the first whole records of the local one, and no commit may have
    shortened it. Nothing may be missing. Attachments must be equal.

    A run that is kept on a local disk beside LOGDIR is also compared with what is in LOGDIR, byte by byte.

    Exit code 0: all of it is there; 1: it is not, or the Hub was not asked; 3: a file is damaged here, or records
    were lost.
    """
    spool = existing_spool(logdir)
    if lost := lost_text(losses(spool), logdir):
        click.echo(lost, err=True)
    _verify(spool, logdir, endpoint, running=running)
    if not running and (elsewhere := apart_text(apart(spool))):
        raise failure(sentence(elsewhere))
    if lost:
        click.get_current_context().exit(DAMAGED)


def _verify(spool: Spool, logdir: str, endpoint: str | None, *, running: bool) -> None:
    """Compare the run with the Hub, and with the logdir if it is staged; what is wrong is an error."""
    there = compare_logdir(spool) if LogdirSink(spool).is_staged else None
    if (recorded := spool.destination()) is None:
        if there is None:
            named = command_line("sync", logdir, "--repo-id", "NAME")
            raise failure(f"{logdir} is local only: there is no copy to compare. Upload it: {named}")
        _show_logdir(there, logdir, drained=not running)
        return
    destination = recorded_destination(recorded, endpoint, "verify", logdir, *(["--running"] if running else []))
    if is_offline():
        raise click.ClickException(f"{OFFLINE}: nothing was compared. Unset it to verify.")
    report = _compare(spool, destination, logdir, drained=not running)
    for file in [*report.files.values(), *report.attachments.values()]:
        click.echo(printable(_compared(file)))
    for problem in report.problems:
        click.echo(printable(problem), err=True)
    damaged = show_damage(report.damage)
    if there is not None:
        _show_logdir(there, logdir, drained=not running)
    if report.problems:
        problems = counted(len(report.problems), "problem")
        raise failure(
            ". ".join([problems, *advice(report, command_line("sync", logdir, *_again(spool)))]), damaged=damaged
        )
    others = sum(file.is_elsewhere for file in report.files.values())
    count = len(report.files) + len(report.attachments) - others
    files, commits = counted(count, "file"), counted(report.commits, "commit")
    if damaged:
        raise failure(f"What is whole of {files} is on the Hub; what is damaged here is not", damaged=True)
    ours = f"{commits} of {printable(destination.revision)}, {report.changes or 'none'} of which changed this run"
    click.echo(f"Whole on the Hub: {files}; no event file shrank in {ours}.")
    if others:
        pull = command_line("pull", logdir)
        click.echo(f"Other machines write {counted(others, 'file')} there. To have what they wrote so far: {pull}")


def _again(spool: Spool) -> list[str]:
    """The option that sends what was deleted on the Hub."""
    ledger = HubSink(spool).ledger()
    return ["--again"] * (ledger is not None and bool(ledger.deleted))


@dataclass
class LogdirComparison:
    """What was found in the logdir of a staged run."""

    to: str  # the logdir
    whole: int = 0  # files that are there as they are here
    absent: list[str] = field(default_factory=list)  # paths that are not there, or not whole
    lost: list[str] = field(default_factory=list)  # of these, what has been there
    growing: int = 0  # files that living processes write here; they come there later
    begun: dict[str, tuple[int, int]] = field(default_factory=dict)  # of which more is there: bytes here, and there
    # paths in whose place something else is, with what is there
    conflicts: dict[str, str] = field(default_factory=dict)
    failure: str = ""  # why it could not be compared to the end, "" if it could


def compare_logdir(spool: Spool) -> LogdirComparison:
    """Compare what is final with the logdir, byte by byte: in a copy that only reads, as the logdir may hang."""
    logdir, members = LogdirSink(spool), Members(spool)
    found, known = LogdirComparison(logdir.to), logdir.mirrored().files
    scan = EventFileScan(spool.run, foreign_bytes=math.inf, seconds=math.inf)
    files = scan.files(lambda _: True, members.growing)
    items = [Item(file.path, file.length) for file in files if not file.growing]
    found.growing = len(files) - len(items)
    items += [Item(path, length) for path, length in attachments.sizes(spool.run, is_embedding).items()]
    here = {item.path: item.length for item in items}
    while items and not found.failure:
        part = bounded(items)
        items = items[len(part) :]
        for message in _told(spool, CopyJob(Task.COMPARE, spool.run_dir, found.to, part)):
            if isinstance(message, Arrived) and message.length > here[message.path]:
                found.begun[message.path] = here[message.path], message.length
            elif isinstance(message, Arrived):
                found.whole += 1
            elif isinstance(message, Absent):
                found.absent.append(message.path)
                found.lost += [message.path] * (message.path in known)
            elif isinstance(message, Conflict):
                found.conflicts[message.path] = message.reason
            elif isinstance(message, Failure):
                found.failure = message.reason
    return found


def _told(spool: Spool, job: CopyJob) -> Iterator[Message]:
    """What a copy tells until it ends; one that is under way is waited for: what it brings may be there in part."""
    end, there = time.monotonic() + BUSY, LogdirSink(spool)
    while True:
        is_late = time.monotonic() > end
        try:
            if is_late or not (there.is_alive() and there.status().copy):
                copy = CopyHandle(spool, job)
                break
        except OSError as error:
            if is_late or not isinstance(error, CopyLivesError):
                why = str(error) or "another comparison is under way, and does not end"
                yield Failure(why)
                return
        time.sleep(POLL)
    while not copy.is_stuck:
        copy.wait(1.0)
        messages, ended = copy.listen()
        yield from messages
        if ended is not None:
            yield ended
            return
    yield Failure("it hangs")


def _show_logdir(found: LogdirComparison, logdir: str, *, drained: bool) -> None:
    """Print what was found in the logdir."""
    for path, (here, there) in found.begun.items():
        click.echo(printable(f"{path}: {BEGINNING}, {here} of {there} bytes here"))
    for path, reason in found.conflicts.items():
        click.echo(printable(f"{path}: {reason}"), err=True)
    absent = found.absent if drained else found.lost
    for path in absent:
        gone = "not in the logdir any more" if path in found.lost else "not whole in the logdir"
        click.echo(printable(f"{path}: {gone}"), err=True)
    if found.failure:
        raise failure(f"{found.to} could not be compared: {found.failure}")
    if found.conflicts:
        what = counted(len(found.conflicts), "file")
        raise failure(f"Something else is in the place of {what} in {found.to}, and is left alone")
    if absent:
        sync = command_line("sync", logdir)
        raise failure(f"Missing in {found.to}: {counted(len(absent), 'file')}. Run: {sync}")
    growing = f"; {counted(found.growing, 'file')} still written here" if found.growing else ""
    late = f"; {counted(len(found.absent), 'file')} will follow" if found.absent else ""
    click.echo(printable(f"Whole in {found.to}: {counted(found.whole, 'file')}, byte by byte{growing}{late}."))
    if found.begun:
        click.echo(printable(f"To have what other machines have written there: {command_line('pull', logdir)}"))


def _compare(spool: Spool, destination: Destination, logdir: str, *, drained: bool) -> Report:
    """Compare, or say in one line why that cannot be done."""
    prepare_client(destination.endpoint)
    os.environ |= hf_home.writable_caches(os.environ, spool.host(host_id()).cache.way)
    from hf_mpwriter.push.classify import explained
    from hf_mpwriter.push.client import Hub
    from hf_mpwriter.testing import check

    ledger = HubSink(spool).ledger()
    hub = Hub(destination.resolved(ledger.repo_id if ledger else ""), is_impatient=True)
    allows = newest_settings(Members(spool).all(), ledger).allows
    elsewhere = written_elsewhere(ledger, pulled_files(spool))
    try:
        if hub.head() is not None:
            return check(
                spool.run_dir, hub, drained=drained, attachments=allows, fetch=hub.content, elsewhere=elsewhere
            )
    except Exception as error:  # every error of the client has a verdict
        raise click.ClickException(unreached(*explained(error, destination, os.environ))) from error
    raise click.ClickException(unseen(destination, ledger, command_line("sync", logdir)))


def _compared(file: FileReport) -> str:
    """A line about a file that was compared with the Hub's copy."""
    events = "" if is_attachment(file.path) else f"{file.hub_events:>8} of {file.local_events:>8} events"
    if file.is_elsewhere:
        events = BEGINNING if file.local_bytes else "written by another machine"
    events = f"{events:>27}"
    return f"  {size_text(file.hub_bytes):>9} of {size_text(file.local_bytes):>9} {events}  {file.path}"


def written_elsewhere(ledger: Ledger | None, pulled: Mapping[str, int]) -> Callable[[str, int], bool]:
    """Return what tells whether another machine writes an event file, by its path and its bytes here."""

    def elsewhere(path: str, size: int) -> bool:
        if whose(path, size, pulled) in THEIRS:
            return size <= pulled[path]  # what is here is compared all the same
        return not size and (ledger is None or path not in ledger.files)

    return elsewhere


def unseen(destination: Destination, ledger: Ledger | None, sync: str) -> str:
    """Return what to say of a repository or a branch that the Hub does not show."""
    page = destination.url
    if ledger is None or not any(held.length for held in ledger.files.values()):
        return f"Nothing was compared: {page} is not there, and nothing is known to have been sent. Run: {sync}"
    return (
        f"Nothing was compared: {page} took bytes of this run, and now it is gone, or this token may not see "
        "it. Run: hf auth login, with a token that may read it (or set HF_TOKEN); or look whether it was renamed."
    )


def unreached(why: str, helps: str) -> str:
    """Return what to say when the Hub did not answer, or refused to."""
    then = sentence(helps) or "Try again later; what is wrong: hf-mpwriter doctor"
    return printable(f"Nothing was compared: {why.rstrip('.')}. {then}")


def advice(report: Report, sync: str) -> list[str]:
    """Return what helps against the problems of a report, a sentence each, without its full stop."""
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
