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
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import NamedTuple

import click

from hf_mpwriter.base.names import is_ours, is_worker
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.words import command_line, counted, size_text
from hf_mpwriter.cli.destination import newest_settings, recorded_destination
from hf_mpwriter.cli.output import UploadBar, failure, show_damage
from hf_mpwriter.cli.syncing.folders import Wishes, spool_for
from hf_mpwriter.delivery.sentences import ProcessEnd, message, unsent
from hf_mpwriter.delivery.sinks import NEVER, Delivery, HubSink, LogdirSink, Question
from hf_mpwriter.delivery.wait import Wanted, ticks, wait_for
from hf_mpwriter.snapshot import attachments, event_files
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import OBSERVER, MemberFile, Members
from hf_mpwriter.system.process import Process
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.worker.election import MirrorElection, UploaderElection

STILL = 5.0  # seconds after which a mirror that stands is not waited for: one that was just started has said nothing


class RemovedError(click.ClickException):
    """The run directory was removed while it was uploaded; nothing of it can arrive any more."""

    def __init__(self, run_dir: str) -> None:
        super().__init__(printable(f"{run_dir} was removed, or replaced by another folder, while it was uploaded."))


def sync_one(logdir: str, wishes: Wishes) -> None:
    """Upload what is missing of a run on the Hub, and wait for it."""
    wanted = wishes.place_of(logdir)
    end = time.monotonic() + (math.inf if wishes.timeout is None else wishes.timeout)
    spool = spool_for(logdir, is_wanted=wanted is not None)
    destination = spool.destination()
    if wanted is not None and not (destination and wishes.only_new):
        spool.record_destination(wanted)
        destination = wanted
    is_staged = LogdirSink(spool).is_staged
    if destination is None and is_staged:
        _bring(spool, end)
        return
    if destination is None:
        command = command_line("sync", logdir, "--repo-id", "NAME")
        raise click.ClickException(f"{logdir} has no destination yet. Set it: {command}")
    options = ["--create"] * wishes.create + ([] if wishes.timeout is None else ["--timeout", f"{wishes.timeout:g}"])
    again = command_line("sync", logdir, *options)
    destination = recorded_destination(destination, wishes.endpoint, again)
    if is_staged:  # what only the logdir has goes to the Hub, too
        bring_back(spool, end)
    found = _upload(spool, destination, end, wishes, logdir * wishes.names_runs)
    lack = _not_there(spool, end) if is_staged else ""
    if found.delivery.missing or (found.delivery.total and not found.asked):
        text = unsent(found.delivery, again, found.since, asked=found.asked)
        raise failure(" ".join(filter(None, [text, lack])), damaged=found.damaged)
    if lack:
        raise failure(lack, damaged=found.damaged)
    size = size_text(found.delivery.total)
    if found.damaged:
        raise failure(f"What is whole of {spool.run_dir}, {size}, is on the Hub; what is damaged is not", damaged=True)
    click.echo(f"All {size} of {spool.run_dir} are on the Hub: {found.delivery.to}")


def _not_there(spool: Spool, end: float) -> str:
    """Bring to the logdir; what is to be told, beside what the Hub lacks; "" if nothing is."""
    try:
        _bring(spool, end)
    except click.ClickException as error:
        return error.message
    return ""


def bring_back(spool: Spool, end: float = math.inf) -> str:
    """Have a mirror bring back what is in the logdir of a staged run and not here, until then (monotonic seconds).

    Why not all came, "" if it did.
    """
    since, patient_until = time.time(), time.monotonic() + STILL
    logdir = LogdirSink(spool)
    with _asking(spool) as ensure_mirror:
        for is_due in ticks(end):
            if (why := logdir.has_come_back(since)) is not None:
                return why
            still = logdir.status().stillness(time.time())
            if still and time.monotonic() >= patient_until and logdir.is_alive():
                return still
            if is_due:
                ensure_mirror()
    if (why := logdir.has_come_back(since)) is not None:
        return why
    return logdir.status().stillness(time.time()) or "it takes longer than it may"


@contextmanager
def _asking(spool: Spool) -> Iterator[Callable[[], bool]]:
    """Ask the mirror of a staged run to trust no record; what makes sure that one lives."""
    member_file = MemberFile(spool, OBSERVER, Process.current(), newest_settings(Members(spool).all(), None))
    try:
        member_file.count(requests=1)
        yield MirrorElection(spool, by_hand=True).ensure
    finally:
        member_file.withdraw()


def _bring(spool: Spool, end: float) -> None:
    """Have what is final brought to the logdir of a staged run, and what is only there here; wait for both.

    What a live worker has open is left out: it comes there when it is sealed.
    """
    logdir, asked_at = LogdirSink(spool), time.time()
    wanted = Wanted(logdir, _final(spool, logdir), Question(asked_at, compared=asked_at))
    with (
        _asking(spool) as ensure_mirror,
        closing(_bar(wanted.look(), f"in {logdir.to}")) as bar,
    ):
        ensure_mirror()
        for look in wait_for([wanted], end):
            bar.update(sum(look.deliveries[0].missing.values()))
            if look.is_due:
                ensure_mirror()
        found = wanted.look()
        bar.update(sum(found.missing.values()))
    if found.missing:
        raise failure(message(ProcessEnd(logdir.to, spool.run_dir, (found,), time.time())), damaged=False)
    if unread := logdir.status().unread:
        path, reason = min(unread.items())
        what = f"{counted(len(unread), 'file')} of {logdir.to} cannot be read"
        raise failure(f"{what}, such as {path}: {reason}", damaged=False)
    if not found.is_compared:
        why = found.carrier.reason
        raise failure(f"{logdir.to} could not be compared{f': {why}' if why else ''}.", damaged=False)
    click.echo(printable(f"All {size_text(found.total)} of {spool.run_dir} are in {logdir.to}"))


def _final(spool: Spool, logdir: LogdirSink) -> dict[str, int]:
    """Bytes per path of the files to which nothing comes any more."""
    members, known = Members(spool), logdir.mirrored().files
    alone = not any(member.alive and is_worker(member.name.worker) for member in members.all())
    files = EventFileScan(spool.run, lambda path: known.get(path, 0)).files(lambda _: True, members.growing)
    return {
        file.path: file.length
        for file in files
        if not file.growing or (alone and not is_ours(os.path.basename(file.path)))
    }


def _bar(delivery: Delivery, what: str, name: str = "") -> UploadBar:
    return UploadBar(delivery.total, sum(delivery.missing.values()), what, name)


class _Uploaded(NamedTuple):
    """What a request has led to."""

    delivery: Delivery  # if the Hub has not answered what it holds, by its last answer
    asked: bool  # whether it has answered
    damaged: bool  # whether a local file is
    since: float  # unix time of the request


def _upload(spool: Spool, destination: Destination, end: float, wishes: Wishes, name: str) -> _Uploaded:
    """Request a push of all files and wait for it, until then (monotonic seconds)."""
    hub, ensure = HubSink(spool), _ensuring(spool, destination)
    settings = newest_settings(Members(spool).all(), hub.ledger())
    member_file = MemberFile(spool, OBSERVER, Process.current(), settings)
    try:
        if wishes.create:
            member_file.write({"create": True})
        sizes = event_files.sizes(spool.run, settings.allows)
        attached = attachments.sizes(spool.run, settings.allows, attachments.secrets())
        compared = ledger.checked if (ledger := hub.ledger()) else 0
        question = replace(hub.question(attached), compared=compared)  # it answers for what was there when it was made
        member_file.count(requests=1)
        if sizes:
            ensure()
        scan = EventFileScan(spool.run)
        lengths = {file.path: file.length for file in scan.files(settings.allows, tuple)}
        if any(length > sizes.get(path, 0) for path, length in lengths.items()):
            member_file.count(requests=1)
        damaged = show_damage(scan.damage(time.time()))
        wanted = Wanted(hub, lengths | attached, question)
        _wait(wanted, end, ensure, name)
    finally:
        member_file.leave()
    asked, found = HubSink(spool).has_compared(question), wanted._replace(sink=HubSink(spool))
    delivery = found.result()
    if not asked:
        known = found._replace(question=replace(question, compared=NEVER)).result()
        delivery = replace(known, carrier=delivery.carrier)  # which tells why it did not answer
    return _Uploaded(delivery, asked, damaged, question.at)


def _ensuring(spool: Spool, destination: Destination) -> Callable[[], None]:
    """What makes sure that an uploader lives, and a mirror if the run is staged."""
    elections = UploaderElection(spool, destination, by_hand=True), MirrorElection(spool, by_hand=True)

    def ensure() -> None:
        if not (spool.run.is_at_path() and spool.directory.is_at_path()):
            raise RemovedError(spool.run_dir)
        for election in elections:
            election.ensure()

    return ensure


def _wait(wanted: Wanted, end: float, ensure: Callable[[], None], name: str) -> None:
    """Wait until the Hub has all that is wanted."""
    known = wanted.sink.look(wanted.lengths)  # by its last answer
    with closing(_bar(known, "on the Hub", name)) as bar:
        for look in wait_for([wanted], end):
            (delivery,) = look.deliveries
            bar.update(sum(delivery.missing.values()))
            bar.show_failure(delivery.carrier, wanted.question.at)
            if look.is_due:
                ensure()
        bar.update(sum(wanted.missing().values()))
