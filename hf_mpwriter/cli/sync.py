"""`hf-mpwriter sync`: upload what is missing of runs on the Hub, through an uploader, and wait for it.

Of a staged run it first has a mirror bring back what is only in the logdir, and at the end bring there what is missing;
of one without a destination only that.

The command joins the run as an observer: a member file without a claim, which requests a push of all files. It
believes only a ledger that was compared with the Hub after the request.

    sizes -> request, uploader started -> scan -> a second request if a file is longer than it was -> wait

The uploader scans the files while this process does, so it may lack what was written since the first request.

Invariants:
- Whether the token of this process may go to the Hub that the run names is decided before all that, see `runs`.
- Of two runs that would go to one folder of a repository, no two are sent by one call. They are refused before anything
  is sent; `--all` leaves one of them out.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import NamedTuple

import click

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.names import is_ours, is_worker
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.storage import is_url, normalised_logdir
from hf_mpwriter.base.words import OURS, as_argument, as_path, command_line, counted, sentence, size_text, typed
from hf_mpwriter.cli.facts import apart, apart_text
from hf_mpwriter.cli.folders import Wishes, Writers, clashes, folders_of, recorded, spool_for, tend
from hf_mpwriter.cli.output import DAMAGED, DamageError, UploadBar, failure, show_damage
from hf_mpwriter.cli.runs import (
    RepoPlace,
    endpoint_option,
    examples,
    has_one_of,
    named,
    newest_settings,
    others_below,
    place_options,
    recorded_destination,
    runs_below,
)
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.daemon.starts import uploader_start
from hf_mpwriter.delivery.sentences import ProcessEnd, lost_text, message, of_other_writers, unsent
from hf_mpwriter.delivery.sinks import NEVER, Delivery, HubSink, LogdirSink, Question
from hf_mpwriter.delivery.wait import Wanted, ticks, wait_for
from hf_mpwriter.snapshot import attachments, event_files
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.losses import losses
from hf_mpwriter.spool.workers.member_lines import AGAIN, CREATE
from hf_mpwriter.spool.workers.members import OBSERVER, MemberFile, Members
from hf_mpwriter.supervisor.drain import Drain
from hf_mpwriter.system.process import Process
from hf_mpwriter.system.redaction import printable

STILL = 5.0  # seconds after which a mirror that stands is not waited for: one that was just started has said nothing


class RemovedError(click.ClickException):
    """The run directory was removed while it was uploaded; nothing of it can arrive any more."""

    def __init__(self, run_dir: str) -> None:
        super().__init__(printable(f"{run_dir} was removed, or replaced by another folder, while it was uploaded."))


class ApartError(click.ClickException):
    """All of the run directory has arrived, but the run stands in another one, too, with what is only there."""


class LostError(DamageError):
    """All that is on disk has arrived, but the disk has refused records for good."""


@click.command(
    "sync",
    epilog=examples(
        "sync runs/exp1",
        "sync runs/exp1 --repo-id me/run    the first time",
        "sync --all                         all runs below this folder",
        "sync runs/exp1 --follow            beside training",
    ),
)
@click.argument("logdirs", metavar="LOGDIR...", nargs=-1)
@click.option(
    "--all", "all_below", is_flag=True, help="All runs and event files below the current folder, or below each LOGDIR."
)
@place_options
@click.option("--create", is_flag=True, help="Create the repository again if it is gone.")
@click.option("--again", is_flag=True, help="Send again what was deleted on the Hub.")
@click.option(
    "--timeout", type=float, metavar="SECONDS", help="Longest wait for each run; default: until all is there."
)
@click.option("--follow", is_flag=True, help="Go on, beside training, until the writers of each LOGDIR have gone.")
@endpoint_option
def sync_runs(
    logdirs: tuple[str, ...],
    timeout: float | None,
    endpoint: str | None,
    *,
    place: RepoPlace | None,
    all_below: bool,
    create: bool,
    again: bool,
    follow: bool,
) -> None:
    """Upload what the Hub lacks of each LOGDIR, and wait for it.

    LOGDIR is the logdir of a run, or any folder with event files, whichever writer made them; then say where to with
    --repo-id. Asks the Hub what it holds, and sends only the rest. Run it during training or after a crash, as often
    as you like.

    Exit code 0: all of it is on the Hub; 1: it is not; 3: a file is damaged here, or records were lost.
    """
    wishes = Wishes(place, timeout, endpoint, create=create, again=again, only_new=all_below)
    names = list(dict.fromkeys(_below(logdirs, wishes) if all_below else logdirs))
    if not names:
        raise click.UsageError("Name a LOGDIR, or give --all for the runs below this folder.")
    left_out = clashes(names, wishes)
    for name, text in left_out.items():  # of all runs below, two of one place hold up no other
        if not all_below:
            raise click.UsageError(printable(text))
        _say(f"{name}: left out. {text}")
        names.remove(name)
    try:
        (_follow if follow else _sync)(names, wishes)
    except KeyboardInterrupt:
        name = as_path(names[0]) if len(names) == 1 else "LOGDIR"
        status, stop, sync = (typed(OURS, verb, name) for verb in ("status", "stop", "sync"))
        goes_on = f"An upload that has begun goes on: {status}. To end it: {stop}"
        later = f"What is logged from now on is not uploaded; then: {sync}"
        raise failure(f"Interrupted. {later if follow else goes_on}") from None
    if left_out:
        raise failure(f"{counted(len(left_out), 'run')} left out.")


def _sync(names: list[str], wishes: Wishes) -> None:
    """Upload one run or several."""
    if len(names) == 1:
        sync_one(names[0], wishes)
        return
    wishes = replace(wishes, names_runs=True)
    codes = [_told(name, wishes) for name in names]
    if failed := [code for code in codes if code]:
        is_damage = all(code == DAMAGED for code in failed)
        raise failure(f"{len(failed)} of {counted(len(names), 'run')} not whole on the Hub.", damaged=is_damage)


def _follow(names: list[str], wishes: Wishes) -> None:
    """Upload runs until their writers have gone, and once more. What fails meanwhile is tried again."""
    if any(map(is_url, names)):
        raise click.UsageError("--follow takes folders on a disk of this host.")
    for name in names:
        try:
            sync_one(name, wishes)  # what is wrong with the call ends it at once
        except (RemovedError, ApartError, LostError) as error:  # a program may remove its folder when it starts
            click.echo(error.format_message(), err=True)
    _say("Following: what is logged is uploaded until the writers have gone. Ctrl-C ends that.")
    drain = Drain()
    drain.follow(folders_of(names, wishes), _say)
    try:
        tend(drain, [Writers(normalised_logdir(name)) for name in names])
        failed = [code for code in [_told(name, wishes) for name in names] if code]
    finally:
        drain.leave()
    if failed:
        raise failure("Not all is on the Hub.", damaged=all(code == DAMAGED for code in failed))


def _told(name: str, wishes: Wishes) -> int:
    """Upload one of several runs; its exit code. An error is printed, and holds up no other."""
    try:
        sync_one(name, wishes)
    except click.ClickException as error:
        click.echo(f"{printable(name)}: {error.format_message()}", err=True)
        return error.exit_code
    except (HfMpWriterError, OSError) as error:
        click.echo(printable(f"{name}: {error}"), err=True)
        return 1
    return 0


def _below(folders: Sequence[str], wishes: Wishes) -> list[str]:
    """The runs below folders, and the folders with event files of others; without a repository, those that have one."""
    found, left = list[str](), list[str]()
    for folder in folders or (".",):
        top = os.path.abspath(folder)
        runs = runs_below(top)
        others = others_below(top, runs)
        mixed = [other for other in others if has_one_of(other, runs)]
        for path in [*runs, *others]:
            name = as_argument(os.path.normpath(os.path.join(folder, path)))
            if path in mixed:
                _say(f"{name} has runs below it, so its own event files are left out. Move them to a folder.")
            elif wishes.place is not None or recorded(name) is not None:
                found.append(name)
            else:
                left.append(name)
    with_name = typed(OURS, "sync", *map(as_path, folders), "--all", "--repo-id", "NAME")
    if left and not found:
        raise failure(f"No destination yet: {named(left)}. Say where to: {with_name}")
    if left:
        _say(f"Left out, as no destination is known: {named(left)}. To upload all: {with_name}")
    if not found:
        raise failure("There is no run below, and no event file. Name the folder of one: hf-mpwriter sync LOGDIR")
    return found


def _say(text: str) -> None:
    """Print what is no error."""
    click.echo(printable(text), err=True)


# one run


def sync_one(logdir: str, wishes: Wishes) -> None:
    """Upload what is missing of a run on the Hub, and wait for it."""
    wanted = wishes.place_of(logdir)
    end = time.monotonic() + (math.inf if wishes.timeout is None else wishes.timeout)
    spool = spool_for(logdir, is_wanted=wanted is not None)
    destination, is_staged = spool.destination(), LogdirSink(spool).is_staged
    if wanted is not None and not (destination and wishes.only_new):
        destination = spool.record_destination(wanted)
    if destination is None and not is_staged:
        command = command_line("sync", logdir, "--repo-id", "NAME")
        raise click.ClickException(f"{logdir} has no destination yet. Set it: {command}")
    found, problems = None, list[str]()
    if destination is not None:
        options = ["--create"] * wishes.create + ["--again"] * wishes.again
        options += [] if wishes.timeout is None else ["--timeout", f"{wishes.timeout:g}"]
        destination = recorded_destination(destination, wishes.endpoint, "sync", logdir, *options)
        if is_staged:  # what only the logdir has goes to the Hub, too
            bring_back(spool, end)
        found = _upload(spool, destination, end, wishes, logdir * wishes.names_runs)
        if found.delivery.missing or (found.delivery.total and not found.asked):
            problems.append(
                unsent(found.delivery, command_line("sync", logdir, *options), found.since, asked=found.asked)
            )
    if is_staged:
        problems += _bring(spool, end)
    lost = lost_text(losses(spool), logdir)
    elsewhere = sentence(apart_text(apart(spool)))
    if problems:
        problems += filter(None, [elsewhere, lost])
        raise failure(" ".join(problems), damaged=found is not None and found.damaged)
    if found is not None:
        _tell_whole(found, spool, logdir, f". {lost}".rstrip(". "))
    _tell_rest(elsewhere, lost)


def _tell_rest(elsewhere: str, lost: str) -> None:
    """Tell what is not whole where all of a run directory has arrived."""
    if elsewhere:
        raise ApartError(printable(elsewhere))
    if lost:
        raise LostError(lost)


def _tell_whole(found: _Uploaded, spool: Spool, logdir: str, lost: str) -> None:
    """Tell that all that can be on the Hub is there."""
    size = size_text(found.delivery.total)
    if found.damaged:
        text = f"What is whole of {spool.run_dir}, {size}, is on the Hub; what is damaged or left out is not{lost}"
        raise failure(text, damaged=True)
    but = f" but {counted(found.deleted, 'file')} that others have deleted there" if found.deleted else ""
    click.echo(printable(f"All {size} of {spool.run_dir}{but} are on the Hub: {found.delivery.to}"))
    if found.deleted:
        click.echo(printable(f"To send again what was deleted: {command_line('sync', logdir, '--again')}"), err=True)


def bring_back(spool: Spool, end: float = math.inf) -> str:
    """Have a mirror bring back what is in the logdir of a staged run and not here, until then (monotonic seconds).

    Why not all came, "" if it did.
    """
    since, patient_until = time.time(), time.monotonic() + STILL
    logdir, still = LogdirSink(spool), ""
    with _asking(spool) as ensure_mirror:
        for is_due in ticks(end):
            if (why := logdir.has_come_back(since)) is not None:
                return why
            still = logdir.status().stillness(time.time())
            if still and time.monotonic() >= patient_until and logdir.is_alive():
                return still
            if is_due:
                ensure_mirror()
    why = logdir.has_come_back(since)
    return still or "it takes longer than it may" if why is None else why


@contextmanager
def _asking(spool: Spool) -> Iterator[Callable[[], object]]:
    """Ask the mirror of a staged run to trust no record; what makes sure that one lives."""
    member_file = MemberFile(spool, OBSERVER, Process.current(), newest_settings(Members(spool).all(), None))
    try:
        member_file.count(requests=1)
        mirror, logdir = Election(spool, "mirror", by_hand=True), LogdirSink(spool)
        yield lambda: mirror.ensure(logdir.start())
    finally:
        member_file.withdraw()


def _bring(spool: Spool, end: float) -> list[str]:
    """Have what is final brought to the logdir of a staged run, and what is only there here; wait for both.

    What a live worker has open is left out: it comes there when it is sealed. What is to be told if something lacks.
    """
    logdir, asked_at = LogdirSink(spool), time.time()
    wanted = Wanted(logdir, _final(spool, logdir), Question(asked_at, compared=asked_at))
    with _asking(spool) as ensure_mirror:
        _wait(wanted, end, ensure_mirror)
        found = wanted.look()
    if found.missing:
        return [message(ProcessEnd(logdir.to, spool.run_dir, (found,), time.time()))]
    if unread := logdir.status().unread:
        path, reason = min(unread.items())
        what = f"{counted(len(unread), 'file')} of {logdir.to} cannot be read"
        return [f"{what}, such as {path}: {reason}"]
    if not found.is_compared:
        why = found.carrier.reason
        return [f"{logdir.to} could not be compared{f': {why}' if why else ''}."]
    click.echo(printable(f"All {size_text(found.total)} of {spool.run_dir} are in {logdir.to}"))
    return []


def _final(spool: Spool, logdir: LogdirSink) -> dict[str, int]:
    """Bytes per path of the files to which nothing comes any more."""
    members, known = Members(spool), logdir.mirrored().files
    alone = not any(member.alive and is_worker(member.name.worker) for member in members.all())
    scan = EventFileScan(spool.run, lambda path: known.get(path, 0), foreign_bytes=math.inf, seconds=math.inf)
    files = scan.files(lambda _: True, members.growing)
    return {
        file.path: file.length
        for file in files
        if not file.growing or (alone and not is_ours(os.path.basename(file.path)))
    }


class _Uploaded(NamedTuple):
    """What a request has led to."""

    delivery: Delivery  # if the Hub has not answered what it holds, by its last answer
    asked: bool  # whether it has answered
    damaged: bool  # whether a local file is
    since: float  # unix time of the request
    deleted: int  # files that were deleted on the Hub, and are not sent again


def _upload(spool: Spool, destination: Destination, end: float, wishes: Wishes, name: str) -> _Uploaded:
    """Request a push of all files and wait for it, until then (monotonic seconds)."""
    hub, ensure, members = HubSink(spool), _ensuring(spool, destination), Members(spool)
    settings = newest_settings(members.all(), hub.ledger())
    member_file = MemberFile(spool, OBSERVER, Process.current(), settings)
    try:
        for wish in [CREATE] * wishes.create + [AGAIN] * wishes.again:
            member_file.write({"wish": wish})
        ledger = hub.ledger()
        here, compared = members.named(ledger.files if ledger else ()), ledger.checked if ledger else 0
        sizes = event_files.sizes(spool.run, settings.allows, named=here)
        attached = attachments.sizes(spool.run, settings.allows, attachments.secrets(), named=here)
        if not (hub.has_arrived or settings.private) and (others := of_other_writers(sizes)):
            _say(f"Uploading {others}")
        question = replace(hub.question(attached), compared=compared)  # it answers for what was there when it was made
        member_file.count(requests=1)
        if sizes:
            ensure()
        scan = EventFileScan(spool.run)
        files = scan.files(settings.allows, tuple, named=here)
        while scan.unread and time.monotonic() < end:
            files = scan.files(settings.allows, tuple, named=here)
        lengths = {file.path: file.length for file in (*files, *scan.unread)}
        if any(length > sizes.get(path, 0) for path, length in lengths.items()):
            member_file.count(requests=1)
        damaged = show_damage(scan.damage(time.time())) or bool(scan.left_out)
        for what in scan.left_out:
            click.echo(printable(f"{spool.run_dir}: not uploaded: {what}"), err=True)
        wanted = Wanted(hub, lengths | attached, question)
        _wait(wanted, end, ensure, name)
    finally:
        member_file.leave()
    asked, found = HubSink(spool).has_compared(question), wanted._replace(sink=HubSink(spool))
    delivery = found.result()
    if not asked:
        known = found._replace(question=replace(question, compared=NEVER)).result()
        delivery = replace(known, carrier=delivery.carrier)  # which tells why it did not answer
    held = HubSink(spool).ledger()
    return _Uploaded(
        delivery, asked, damaged, question.at, len(held.deleted.intersection(wanted.lengths)) if held else 0
    )


def _ensuring(spool: Spool, destination: Destination) -> Callable[[], object]:
    """What makes sure that an uploader lives, and a mirror if the run is staged."""
    needed = {"uploader": uploader_start(spool, destination, time.time()), "mirror": LogdirSink(spool).start()}
    elections = {kind: Election(spool, kind, by_hand=True) for kind in needed}

    def ensure() -> None:
        if not (spool.run.is_at_path() and spool.directory.is_at_path()):
            raise RemovedError(spool.run_dir)
        for kind, election in elections.items():
            election.ensure(needed[kind])

    return ensure


def _wait(wanted: Wanted, end: float, ensure: Callable[[], object], name: str = "") -> None:
    """Wait until a sink has all that is wanted, or can have no more of it."""
    known = wanted.sink.look(wanted.lengths)  # by its last answer
    with closing(UploadBar(known.total, sum(known.missing.values()), known.place, name)) as bar:
        for look in wait_for([wanted], end):
            (delivery,) = look.deliveries
            bar.update(sum(delivery.missing.values()))
            bar.show_failure(delivery.carrier, wanted.question.at)
            if look.is_due:
                ensure()
        bar.update(sum(wanted.missing().values()))
