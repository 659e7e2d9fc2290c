"""The command line: `hf-mpwriter status | sync | verify | run | hub | demo`."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import NoReturn

import click
from tqdm import tqdm

from hf_mpwriter._version import __version__
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination, Environment, Settings, check_repo_id
from hf_mpwriter.localhub.server.accounts import Tokens
from hf_mpwriter.localhub.server.faults import GRAMMAR, FaultError, parse
from hf_mpwriter.localhub.server.limits import HubLimits
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool import members as members_module
from hf_mpwriter.spool import progress
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.spool.progress import Progress, size_text
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system import hf_home, redaction
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.worker.election import Election

FOREVER = 10 * 365 * 86400.0  # seconds

logdir_argument = click.argument("logdir", type=click.Path(path_type=Path))


class Failure(click.ClickException):
    """An error of ours, told in one line."""


def _fail(error: HfMpWriterError) -> NoReturn:
    raise Failure(str(error)) from error


def _existing(logdir: Path) -> Spool:
    spool = Spool(os.path.abspath(logdir))
    try:
        check_ownership(spool.root)
        spool.check_format()
    except HfMpWriterError as error:
        _fail(error)
    if not spool.exists():
        raise Failure(f"{logdir} is no run directory of hf_mpwriter. Give the logdir of a SummaryWriter.")
    return spool


def _destination(spool: Spool) -> Destination | None:
    try:
        return spool.destination()
    except HfMpWriterError as error:
        _fail(error)


def _settings(members: list[members_module.Member], view: Progress) -> Settings:
    """The newest settings that any worker has left: on its card, or what the ledger remembers of it."""
    newest = max(members, key=lambda member: member.started_at, default=None)
    book = view.ledger()
    return newest.settings if newest else (book and book.settings) or Settings()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """TensorBoard event files from many training processes, delivered to the Hugging Face Hub."""
    redaction.guard()


@main.command()
@logdir_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def status(logdir: Path, *, as_json: bool) -> None:
    """Show what of LOGDIR is on the Hub, and what its uploader does."""
    spool = _existing(logdir)
    destination = _destination(spool)
    everybody, view = members_module.Members(spool), Progress(spool)
    members = everybody.all()
    allows = _settings(members, view).allows
    attached = attachments.Attachments(spool.run_dir).scan(allows)
    files = EventFileScan(spool.run_dir).files(allows, everybody.growing) + attached.files
    book, report = view.ledger(), view.uploader()
    held = {file.path: _on_hub(file, book) for file in files}
    quarantined = attached.refused | (book.quarantined if book else {})
    summary = {
        "logdir": spool.run_dir,
        "destination": str(destination) if destination else None,
        "uploader": {**dataclasses.asdict(report), "pid": report.pid, "alive": view.uploader_is_alive()},
        "workers": sorted({member.name.worker for member in members if member.alive}),
        "files": [{"path": f.path, "bytes": f.length, "on_hub": held[f.path], "growing": f.growing} for f in files],
        "quarantined": quarantined,
        "dropped": {member.name.worker: member.dropped for member in members if member.dropped},
    }
    if as_json:
        click.echo(json.dumps(summary, indent=1))
        return
    click.echo(f"{spool.run_dir} -> {destination or 'local only'}")
    click.echo(_uploader_line(report, alive=view.uploader_is_alive()))
    total, there = sum(file.length for file in files), sum(held.values())
    for file in files:
        mark = " (growing)" if file.growing else ""
        click.echo(f"  {size_text(held[file.path]):>9} of {size_text(file.length):>9}  {_printable(file.path)}{mark}")
    click.echo(f"{size_text(there)} of {size_text(total)} in {len(files)} files are on the Hub.")
    for path, reason in quarantined.items():
        click.echo(f"refused: {_printable(path)}: {reason}. To try again: hf-mpwriter sync {logdir}")
    for member in members:
        if member.dropped:
            click.echo(f"lost: {member.dropped} records of {member.name.worker}, the disk refused them")


def _on_hub(file: LocalFile, book: Ledger | None) -> int:
    """Bytes of a file that the Hub has; of an attachment all or none."""
    if book is None or (file.sha256 and (file.path in book.quarantined or not book.covers(file))):
        return 0
    return min(file.length, book.length(file.path))


def _printable(path: str) -> str:
    """A name that may be no text, for people."""
    return path.encode(errors="backslashreplace").decode()


def _uploader_line(report: UploaderStatus, *, alive: bool) -> str:
    state = f"uploader {report.pid} is {report.phase}" if alive else "no uploader runs"
    still = f"; {text}" if alive and (text := report.stillness(time.time())) else ""
    trouble = f"; {report.failures} failures in a row: {report.reason} {report.hint}" if report.reason else ""
    age = f", heard {max(0, time.time() - report.beat):.0f} s ago" if alive and report.beat else ""
    return f"{state}{age}{still}{trouble}".rstrip()


@main.command()
@logdir_argument
@click.option("--repo-id", help="Destination of a run that was local so far.")
@click.option("--repo-type", default="model", show_default=True)
@click.option("--revision", default="main", show_default=True)
@click.option("--path-in-repo", default="tensorboard", show_default=True, help="The name of LOGDIR is appended.")
@click.option("--timeout", type=float, help="Seconds to wait; without it, until everything is on the Hub.")
def sync(
    logdir: Path, repo_id: str | None, repo_type: str, revision: str, path_in_repo: str, timeout: float | None
) -> None:
    """Upload what of LOGDIR is not on the Hub yet, and wait for it.

    Asks the Hub what it has. Works while training runs and after it has crashed, any number of times: what is there
    is not sent again.
    """
    spool = _existing(logdir)
    destination = _destination(spool)
    if repo_id is not None:
        folder = "/".join(filter(None, [path_in_repo.strip("/"), Path(spool.run_dir).name]))
        try:
            wanted = Destination(Environment.read().endpoint, repo_id, repo_type, revision, folder)
            spool.record_destination(wanted)
        except HfMpWriterError as error:
            _fail(error)
        destination = wanted
    if destination is None:
        raise Failure(f"{logdir} has no destination yet. Give one: hf-mpwriter sync {logdir} --repo-id NAME")
    settings = _settings(members_module.Members(spool).all(), Progress(spool))
    lengths = {file.path: file.length for file in EventFileScan(spool.run_dir).files(settings.allows, tuple)}
    lengths |= attachments.sizes(spool.run_dir, settings.allows)
    book = Progress(spool).ledger()
    checked = book.checked if book else 0.0
    card = members_module.MemberFile(spool, members_module.OBSERVER, Process.current(), settings)
    try:
        card.write({"want": lengths})
        missing = _wait_with_bar(spool, lengths, FOREVER if timeout is None else timeout, checked)
    finally:
        card.leave(dropped=0)
    if missing:
        view = Progress(spool)
        reason = "; ".join(view.refused(missing).values()) or view.uploader().reason
        raise Failure(f"{size_text(sum(missing.values()))} are not on the Hub yet. {reason}".rstrip())
    click.echo(f"All {size_text(sum(lengths.values()))} of {spool.run_dir} are on the Hub: {destination}")


def _wait_with_bar(spool: Spool, lengths: dict[str, int], timeout: float, checked: float) -> dict[str, int]:
    view, election = Progress(spool), Election(spool)
    total = sum(lengths.values())
    told = ""
    there = total - sum(view.missing(lengths).values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="on the Hub", initial=there) as bar:

        def tell(missing: dict[str, int]) -> None:
            nonlocal told
            bar.n = max(bar.n, total - sum(missing.values()))
            bar.refresh()
            if (reason := view.uploader().reason) and reason != told and view.uploader().failures:
                bar.write(f"not yet: {reason} {view.uploader().hint}".rstrip())
                told = reason

        missing = progress.wait(view, lengths, timeout, election.ensure_uploader, tell, since=checked)
        bar.n = total - sum(missing.values())
    return missing


@main.command()
@logdir_argument
@click.option("--running", is_flag=True, help="The run is not over: what is not on the Hub yet is no fault.")
def verify(logdir: Path, *, running: bool) -> None:
    """Check LOGDIR against the Hub: whole-record prefixes, never shrunk, nothing missing, attachments equal."""
    spool = _existing(logdir)
    destination = _destination(spool)
    os.environ |= hf_home.writable_caches(os.environ, spool.host(host_id()).cache)  # read when the client is imported
    from hf_mpwriter.push.client import Hub
    from hf_mpwriter.testing import check

    if destination is None:
        raise Failure(f"{logdir} has no destination.")
    view = Progress(spool)
    book = view.ledger()
    destination = book.resolved if book else destination
    allows = _settings(members_module.Members(spool).all(), view).allows
    report = check(spool.run_dir, Hub(destination), drained=not running, attachments=allows)
    for file in [*report.files.values(), *report.attachments.values()]:
        sizes = f"{size_text(file.hub_bytes):>9} of {size_text(file.local_bytes):>9}"
        events = f"{file.hub_events:>8} of {file.local_events:>8} events"
        click.echo(f"  {sizes} {events if file.path in report.files else ' ' * len(events)}  {file.path}")
    for problem in report.problems:
        click.echo(problem, err=True)
    if report.problems:
        raise Failure(f"{len(report.problems)} problems. To upload what is missing: hf-mpwriter sync {logdir}")
    count = len(report.files) + len(report.attachments)
    click.echo(f"Whole on the Hub: {count} of {count} files; no event file shrank in {report.commits} commits.")


@main.command(epilog=f"\b\n{GRAMMAR}")
@click.option("--root", type=click.Path(path_type=Path), required=True, help="Folder that keeps the Hub's data.")
@click.option("--port", type=int, default=8765, show_default=True, help="0 picks a free one.")
@click.option("--no-xet", is_flag=True, help="Offer plain LFS only.")
@click.option("--discard", is_flag=True, help="Check what is uploaded and forget it, to measure for long.")
@click.option("--commits-per-hour", type=int, default=0, help="Per repository; 0: any number.")
@click.option("--requests-per-5min", type=int, default=0, help="Requests to the API; 0: any number.")
@click.option("--busy", is_flag=True, help="Refuse a commit (409) while another to its repository is under way.")
@click.option("--fault", "faults", multiple=True, metavar="FAULT", help="What goes wrong; any number, see below.")
def hub(
    root: Path,
    port: int,
    commits_per_hour: int,
    requests_per_5min: int,
    faults: tuple[str, ...],
    *,
    no_xet: bool,
    discard: bool,
    busy: bool,
) -> None:
    """Serve a Hub on this machine: point HF_ENDPOINT at it and rehearse.

    It answers the real huggingface_hub client on 127.0.0.1 only. A token in HF_MPWRITER_LOCALHUB_TOKEN is then
    required of every request; one in HF_MPWRITER_LOCALHUB_READ_TOKEN may only read.
    """
    try:
        from hf_mpwriter.localhub import serve
    except ImportError as error:
        raise Failure(f"The local Hub needs more packages: pip install 'hf-mpwriter[localhub]' ({error})") from error
    try:
        parsed = [parse(fault) for fault in faults]
    except FaultError as error:
        raise Failure(str(error)) from error
    limits = HubLimits(commits_per_hour, requests_per_5min, busy)
    serve(root, port, tokens=Tokens.take(os.environ), limits=limits, xet=not no_xet, discard=discard, faults=parsed)


@main.command(context_settings={"allow_interspersed_args": False})
@click.option("--patch", is_flag=True, help="Put our writers in place of those that the programs construct.")
@click.option("--repo-id", help="Where to, for writers that are not told; the same as HF_MPWRITER_REPO_ID.")
@click.argument("command", nargs=-1, required=True)
def run(*, patch: bool, repo_id: str | None, command: tuple[str, ...]) -> None:
    """Run a command: hf-mpwriter run --patch -- python train.py.

    With --patch, torch's, tensorboardX's and huggingface_hub's writers are ours in all Python programs that it starts.
    A Python that ignores PYTHONPATH (python -I, -E) is not reached.
    """
    if repo_id is not None:
        try:
            os.environ["HF_MPWRITER_REPO_ID"] = check_repo_id(repo_id)
        except HfMpWriterError as error:
            _fail(error)
    if patch:
        if not os.environ.get("HF_MPWRITER_REPO_ID"):
            click.echo(
                "No --repo-id and no HF_MPWRITER_REPO_ID: what names no repository itself stays local.", err=True
            )
        site = os.path.join(os.path.dirname(os.path.dirname(__file__)), "integrations", "site")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [site, os.environ.get("PYTHONPATH")]))
    try:
        os.execvp(command[0], command)  # noqa: S606 - it is the user's own command
    except OSError as error:
        raise Failure(f"{command[0]}: {error.strerror}") from error


@main.command()
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="Where to put everything; default: a new one."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the victims.")
@click.option("--steps", type=int, default=400, show_default=True, help="Training steps of each worker.")
def demo(directory: Path | None, seed: int, steps: int) -> None:
    """Train in four processes against a local Hub, kill half-way, resume, and count what arrived.

    Starts a Hub on this machine, trains a small network on scikit-learn's handwritten digits in four processes with
    four learning rates, each logging scalars, histograms, images and text. Half-way it kills one worker and the
    uploader with SIGKILL, starts the worker again, waits for the end, and checks every event against the Hub.
    Nothing leaves this machine.
    """
    try:
        from hf_mpwriter.demo import run
    except ImportError as error:
        raise Failure(f"The demo needs more packages: pip install 'hf-mpwriter[demo]' ({error})") from error
    raise SystemExit(run(directory, seed, steps))
