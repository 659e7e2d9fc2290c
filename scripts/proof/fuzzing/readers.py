"""Readers: the functions that read what is in a run directory, in this process, by the thousand.

Each may raise what its callers expect: an OSError, an error of ours. Anything else would end a training, a daemon or a
command in a way that nobody has thought of. `lane.py` shows what the whole processes make of the same files.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import click

from fuzzing.corpus import BESIDE, LOGDIR, PULLED, REPO, RUN, STAGED
from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.job import Nodes
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli.main import main
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink
from hf_mpwriter.events.last_step import last_step
from hf_mpwriter.mirror.posix import PosixTarget
from hf_mpwriter.snapshot import attachments, event_files
from hf_mpwriter.spool import ledger, outbox
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.pulled import pulled_files
from hf_mpwriter.spool.staging import Listing, MirrorRecord
from hf_mpwriter.spool.status import SamplerStatus, UploaderStatus
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.spool.workers.peers import Share, seen_from_here
from hf_mpwriter.system import redaction
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import host_id
from hf_mpwriter.uploader import folders, rate_limit, siblings
from hf_mpwriter.worker import holders

EXPECTED = (OSError, HfMpWriterError)
TAG = "loss"


class NoticedError(Exception):
    """A command has ended as none should."""


def all_of(value: str) -> bool:
    """Allow any path."""
    return bool(value)


def scan(spool: Spool) -> None:
    """Read the event files, as uploader, training and commands do."""
    found = event_files.EventFileScan(spool.run)
    files = found.files(all_of, Members(spool).growing)
    found.damage(time.time())
    event_files.bounded(event_files.pending(files, lambda _: False, ()))
    event_files.sizes(spool.run, all_of)
    HubSink(spool).look({file.path: file.length for file in files})
    LogdirSink(spool).look({file.path: file.length for file in files})
    shares = Share(spool)
    for file in files:
        shares.takes(file.path)


def attached(spool: Spool) -> None:
    """Read the attachments."""
    attachments.Attachments(spool.run).scan(all_of)
    attachments.sizes(spool.run, all_of)


def members(spool: Spool) -> None:
    """Read the member files."""
    found = Members(spool)
    for member in found.all():
        holders.describe(member)
        holders.command(member)
    found.sweep()
    for name in holders.living(spool):
        holders.is_below(name)
    holders.find(spool, "main")


def ledgers(spool: Spool) -> None:
    """Read what the Hub holds, and what is on its way."""
    if (destination := spool.destination()) is not None:
        merged = ledger.load(spool, destination)
        _ = merged.known(), merged.reasons, merged.has_grown(0.0), merged.resolved
    host = spool.host(host_id())
    outbox.interrupted(host)
    outbox.stamp(host)
    for batch in outbox.Outbox(host, spool.run).batches:
        for file in batch.files:
            with contextlib.suppress(OSError):
                (spool.run / file.path).stat()
    for name in spool.host_ids():
        ledger.set_aside(spool, name)


def statuses(spool: Spool) -> None:
    """Read what daemons say of themselves."""
    now = time.time()
    status = UploaderStatus.newest(spool).or_full(spool, now)
    for one in (status, LogdirSink(spool).status(), SamplerStatus.read(spool.host(host_id()))):
        one.stillness(now)
        one.starts.as_of(now, "").with_start(now)
        _ = one.starts.quiet_until, one.pid
    status.tries_until(now, now, now)
    _ = status.why, [notice.line for notice in status.notices]
    seen_from_here(spool)
    spool.is_unfinished("http://127.0.0.1:1")
    spool.is_original()


def staged(spool: Spool) -> None:
    """Read what is known of the logdir, and that itself."""
    record, sink = MirrorRecord.read(spool), LogdirSink(spool)
    Listing.read(spool).still_missing(spool)
    sink.missing({"events.out.tfevents.1.h.1.0": 5})
    pulled_files(spool)
    if record is not None:
        record.publish(spool)
    target = PosixTarget(str(Path(spool.run_dir).parent.parent / LOGDIR), "x")
    for path in itertools.islice(target.files(), 20):
        target.length(path)
        for _ in itertools.islice(target.pieces(path), 3):
            pass


def steps(spool: Spool) -> None:
    """Look for the last step."""
    for directory in ("", "rank_00001"):
        for tag in (None, TAG):
            last_step(Place(spool.run, directory), tag)


def joins(spool: Spool) -> None:
    """Join a run, as training does at its start."""
    spool.check_format()
    spool.create()
    destination = Destination(os.environ["HF_ENDPOINT"], REPO, path_in_repo="tensorboard/exp1")
    with contextlib.suppress(HfMpWriterError):
        spool.record_destination(destination)
    list(siblings.unfinished(spool.run_dir, destination.endpoint))


def cache(_: Spool) -> None:
    """Read the user's cache."""
    destination = Destination(os.environ["HF_ENDPOINT"], REPO, path_in_repo="tensorboard/exp1")
    owners = folders.owners_of(destination)
    folders.own_folder("/x/exp1", "tensorboard/exp1", owners)
    folders.can_settle(destination)
    bucket = rate_limit.RateLimit(destination, 100.0, rate_limit.folder_of(os.environ), nodes=Nodes(), host=host_id())
    bucket.take(urgent=True)
    bucket.give_back()
    redaction.known_tokens(os.environ)


def command(*words: str) -> Callable[[Spool], None]:
    """Return a reader that runs a command here."""

    def run(spool: Spool) -> None:
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                main.main([*words, spool.run_dir], standalone_mode=False)
            except click.ClickException as error:
                if "should not happen" in error.message:
                    raise NoticedError(error.message) from error.__cause__
        text = output.getvalue() + errors.getvalue()
        if any(not c.isprintable() and c not in "\n\t" for c in text):
            raise NoticedError(f"{words[0]} prints what a terminal obeys: {text!r:.300}")
        if "--json" in words and output.getvalue():
            json.loads(output.getvalue())

    return run


READERS: dict[str, Callable[[Spool], None]] = {
    "scan": scan,
    "attachments": attached,
    "members": members,
    "statuses": statuses,
    "staged": staged,
    "steps": steps,
    "cache": cache,
    "status": command("status"),
    "status --json": command("status", "--json"),
    "logs": command("logs"),
    "ledgers": ledgers,  # sets aside what it cannot read
    "joins": joins,  # writes what is missing
    "ranks": command("ranks"),  # writes an event file
}


def spool_of(place: Path, name: str) -> Spool:
    """Return the spool of a run of the corpus; nothing is known of it yet."""
    return Spool(str(place / name))


RUNS = (RUN, BESIDE, PULLED, STAGED)
