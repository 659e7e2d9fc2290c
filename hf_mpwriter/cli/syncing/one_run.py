"""`hf-mpwriter sync` of one run: upload what is missing on the Hub, through an uploader, and wait for it.

Of a staged run it first has a mirror bring back what is only in the logdir, and at the end bring there what is missing;
of one without a destination only that.

The command joins the run as an observer: a member file without a claim, which requests a push of all files. It
believes only a ledger that was compared with the Hub after the request. Whether the token of this process may go to the
Hub that the run names is decided before all that, see `destination`.

    sizes -> request, uploader started -> scan -> a second request if a file is longer than it was -> wait

The uploader scans the files while this process does, so it may lack what was written since the first request.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import NamedTuple

import click

from hf_mpwriter.base.names import is_ours, is_worker
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Refused
from hf_mpwriter.cli.destination import (
    command_line,
    newest_settings,
    page_of,
    recorded_destination,
)
from hf_mpwriter.cli.output import UploadBar, failure, show_damage
from hf_mpwriter.cli.syncing.folders import Wishes, spool_for
from hf_mpwriter.cli.words import sentence
from hf_mpwriter.snapshot import attachments, event_files
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress, size_text, wait
from hf_mpwriter.spool.staging.logdir import Logdir
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.workers.members import OBSERVER, MemberFile, Members
from hf_mpwriter.system.process import Process
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.worker.election import Election, MirrorElection


class RemovedError(click.ClickException):
    """The run directory was removed while it was uploaded; nothing of it can arrive any more."""

    def __init__(self, run_dir: str) -> None:
        super().__init__(printable(f"{run_dir} was removed, or replaced by another folder, while it was uploaded."))


def sync_one(logdir: str, wishes: Wishes) -> None:
    """Upload what is missing of a run on the Hub, and wait for it."""
    wanted, timeout = wishes.place_of(logdir), wishes.timeout
    spool = spool_for(logdir, is_wanted=wanted is not None)
    destination = spool.destination()
    if wanted is not None and not (destination and wishes.only_new):
        spool.record_destination(wanted)
        destination = wanted
    there = Logdir(spool)
    if destination is None and there.is_staged:
        _bring(spool, there, math.inf if timeout is None else timeout, quiet=wishes.is_quiet)
        return
    if destination is None:
        command = command_line("sync", logdir, "--repo-id", "NAME")
        raise click.ClickException(f"{logdir} has no destination yet. Set it: {command}")
    options = ["--create"] * wishes.create + ([] if timeout is None else ["--timeout", f"{timeout:g}"])
    typed = command_line("sync", logdir, *options)
    destination = recorded_destination(destination, wishes.endpoint, typed)
    settings = newest_settings(Members(spool).all(), Progress(spool).ledger())
    patience, started, began_at = math.inf if timeout is None else timeout, time.monotonic(), time.time()
    if there.is_staged:  # what only the logdir has goes to the Hub, too
        bring_back(spool, patience)
    left = max(0.0, patience + started - time.monotonic())
    lengths, missing, asked, damaged = _request_and_wait(
        spool, destination, settings, left, wishes, logdir * wishes.names_runs
    )
    left = max(0.0, patience + started - time.monotonic())
    shortfall = _not_there(spool, there, left, quiet=wishes.is_quiet) if there.is_staged else None
    if missing or (lengths and not asked):
        progress = Progress(spool)
        paths, failed = progress.refused(missing).values(), failed_since(began_at, progress)
        text = shortfall_text(sum(missing.values()), paths, failed, typed, asked=asked)
        raise failure(" ".join(filter(None, [text, shortfall])), damaged=damaged)
    if shortfall is not None:
        raise failure(shortfall, damaged=damaged)
    size = size_text(sum(lengths.values()))
    if damaged:
        raise failure(f"What is whole of {spool.run_dir}, {size}, is on the Hub; what is damaged is not", damaged=True)
    if not wishes.is_quiet:
        click.echo(f"All {size} of {spool.run_dir} are on the Hub: {page_of(spool, destination)}")


def _not_there(spool: Spool, there: Logdir, timeout: float, *, quiet: bool) -> str | None:
    """Bring to the logdir; what is to be told, beside what the Hub lacks."""
    try:
        _bring(spool, there, timeout, quiet=quiet)
    except click.ClickException as error:
        return error.message
    return None


def bring_back(spool: Spool, timeout: float) -> str:
    """Have a mirror bring back what is in the logdir of a staged run and not here; why not all came, "" if it did."""
    since = time.time()
    with _asking(spool) as ensure_mirror:
        return Logdir(spool).wait_until_back(timeout, ensure_mirror, since)


@contextmanager
def _asking(spool: Spool) -> Iterator[Callable[[], bool]]:
    """Ask the mirror of a staged run to trust no record; what makes sure that one lives."""
    member_file = MemberFile(spool, OBSERVER, Process.current(), newest_settings(Members(spool).all(), None))
    try:
        member_file.count(requests=1)
        yield MirrorElection(spool, by_hand=True).ensure_mirror
    finally:
        member_file.withdraw()


def _bring(spool: Spool, there: Logdir, timeout: float, *, quiet: bool) -> None:
    """Have what is final brought to the logdir of a staged run, and what is only there here; wait for both.

    What a live worker has open is left out: it comes there when it is sealed.
    """
    members, known = Members(spool), there.mirrored().files
    alone = not any(member.alive and is_worker(member.name.worker) for member in members.all())
    scan = EventFileScan(spool.run, lambda path: known.get(path, 0))
    files = scan.files(lambda _: True, members.growing)
    lengths = {file.path: file.length for file in files if not file.growing or (alone and not _is_ours(file.path))}
    asked_at = time.time()
    with _asking(spool) as ensure_mirror:
        total, lacking, what = sum(lengths.values()), sum(there.missing(lengths).values()), f"in {there.to}"
        with closing(UploadBar(total, lacking, what, drawn=not quiet, lines=not quiet)) as bar:
            missing = there.wait(
                lengths,
                timeout,
                ensure_mirror,
                lambda missing: bar.update(sum(missing.values())),
                since=asked_at,
            )
            bar.update(sum(missing.values()))
    shortfall = there.shortfall(lengths)
    if shortfall.missing:
        raise failure(f"{shortfall.sentence()} {shortfall.outlook()}", damaged=False)
    if unread := there.status().unread:
        path, reason = min(unread.items())
        what = f"{len(unread)} file{'s' * (len(unread) > 1)} of {there.to} cannot be read"
        raise failure(printable(f"{what}, such as {path}: {reason}"), damaged=False)
    if there.status().checked < asked_at:
        why = there.status().reason
        raise failure(f"{there.to} could not be compared{f': {why}' if why else ''}.", damaged=False)
    if not quiet:
        click.echo(printable(f"All {size_text(sum(lengths.values()))} of {spool.run_dir} are in {there.to}"))


def _is_ours(path: str) -> bool:
    return is_ours(os.path.basename(path))


def failed_since(since: float, progress: Progress) -> UploaderStatus:
    """The status of an uploader that fails; an empty one if it has not failed since a unix time."""
    uploader = progress.uploader()
    return uploader if uploader.is_news(since, time.monotonic()) else UploaderStatus()


def shortfall_text(missing: int, refused: Collection[str], uploader: UploaderStatus, again: str, *, asked: bool) -> str:
    """Say what is not on the Hub, or not known to be there, why, and what helps."""
    size = size_text(missing)
    if refused:
        return f"{size} are not on the Hub yet: {'; '.join(dict.fromkeys(refused))}."
    why, helps = uploader.reason.rstrip("."), sentence(uploader.hint)
    because = f": {why}" if why else ""
    if uploader.kind == Refused.__name__:  # the Hub was asked, and has answered
        then = "" if "hf-mpwriter sync" in helps else f"{'; then' if helps else 'To try again'}: {again}"
        lead = f"{size} are not on the Hub" if missing else "The Hub does not tell what it has"
        return f"{lead}{because}. {helps}{then}"
    if asked:
        return f"{size} are not on the Hub yet{because}."
    known = f"{size} are not there yet" if missing else "everything is there"
    return f"The Hub could not be asked{because}. By what it last answered, {known}."


class _Synced(NamedTuple):
    """What a request has led to."""

    lengths: dict[str, int]  # bytes of all files, per path
    missing: dict[str, int]  # bytes that the Hub lacks; if it has not answered what it holds, by its last answer
    asked: bool  # whether it has answered
    damaged: bool  # whether a local file is


def _request_and_wait(
    spool: Spool, destination: Destination, settings: Settings, timeout: float, wishes: Wishes, name: str
) -> _Synced:
    """Request a push of all files and wait for it."""
    waiting = _Waiting(spool, destination, name, quiet=wishes.is_quiet)
    member_file = MemberFile(spool, OBSERVER, Process.current(), settings)
    try:
        if wishes.create:
            member_file.write({"create": True})
        sizes = event_files.sizes(spool.run, settings.allows)
        attached = attachments.sizes(spool.run, settings.allows, attachments.secrets())
        changes = waiting.progress.changes(attached)  # a request answers for what was there when it was made
        member_file.count(requests=1)
        if sizes:
            waiting.ensure()
        scan = EventFileScan(spool.run)
        lengths = {file.path: file.length for file in scan.files(settings.allows, tuple)}
        if any(length > sizes.get(path, 0) for path, length in lengths.items()):
            member_file.count(requests=1)
        lengths |= attached
        damaged = show_damage(scan.damage(time.time()))
        missing = waiting.wait(lengths, timeout, changes)
    finally:
        member_file.leave()
    progress = Progress(spool)
    asked = (ledger := progress.ledger()) is not None and ledger.checked > waiting.since
    return _Synced(lengths, missing if asked else progress.missing(lengths), asked, damaged)


class _Waiting:
    """The wait for what was requested."""

    def __init__(self, spool: Spool, destination: Destination, name: str, *, quiet: bool) -> None:
        self._spool, self.progress, self._election = spool, Progress(spool), Election(spool, destination, by_hand=True)
        self._mirror = MirrorElection(spool, by_hand=True)
        ledger = self.progress.ledger()
        self.since, self._name, self._is_drawn = ledger.checked if ledger else 0, name, not quiet
        self._at, self._before = time.time(), self.progress.refusals()

    def ensure(self) -> None:
        """Make sure that an uploader lives, and a mirror if the run is staged."""
        if not (self._spool.run.is_at_path() and self._spool.directory.is_at_path()):
            raise RemovedError(self._spool.run_dir)
        self._election.ensure_uploader()
        self._mirror.ensure_mirror()

    def wait(self, lengths: dict[str, int], timeout: float, asked: dict[str, int]) -> dict[str, int]:
        """Wait until these lengths are on the Hub; what is missing of them at the end."""
        total, lacking = sum(lengths.values()), sum(self.progress.missing(lengths).values())
        with closing(UploadBar(total, lacking, name=self._name, drawn=self._is_drawn, lines=self._is_drawn)) as bar:

            def show(missing: dict[str, int]) -> None:
                bar.update(sum(missing.values()))
                if self._is_drawn:
                    bar.show_failure(self.progress.uploader(), self._at)

            ours = partial(wait, since=self.since, asked=asked, before=self._before, began_at=self._at)
            missing = ours(self.progress, lengths, timeout, self.ensure, show)
            bar.update(sum(missing.values()))
        return missing
