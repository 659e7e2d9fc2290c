"""A round of a live bucket: what has grown of event files goes there, beside the commits.

    visibility of the bucket -> what is there of runs that are new -> one batch -> Done, with what it holds
                                                                                   Quarantine of a run that may not go

Invariants:
- Nothing goes to a bucket that is public while the repository is private. That is asked before the first byte, and
  again whenever the job says so.
- Where event files are that neither the run directory nor its ledger knows, nothing of ours goes: they are of another
  run, or of an attempt on another disk, and readers would take both for one.
- A file that cannot be read, or that the bucket refuses, holds up no other one.
- What is sent are bytes of an event file from its beginning to the end of a whole record, and never fewer than the
  bucket was seen to hold.
- The names of event files are unique, so a shorter file of the same name is a beginning of it.

Facts (huggingface_hub 2.4.0): a batch is not transactional, and names no parent: a late one may make a file shorter for
a while. A part of it may fail with status 200, which the client raises as BucketBatchError. A bucket has no branches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence

from hf_mpwriter.base.names import is_event_file
from hf_mpwriter.base.verdicts import Cause, Done, Quarantine, Refused, Sent, Verdict
from hf_mpwriter.base.words import command_line
from hf_mpwriter.push.classify import plain, text_of
from hf_mpwriter.push.client import Hub
from hf_mpwriter.push.commit import Load, note, sources
from hf_mpwriter.push.job import Job
from hf_mpwriter.spool.layout import Spool

STRANGE = "the bucket {} has event files of another run in {}, or of an attempt on another disk (bring those here: {})"
PUBLIC = "Make it private, or name another bucket: live='NAME'."


def carry_live(job: Job, spools: Sequence[Spool], hub: Hub, refused: Mapping[int, Verdict]) -> list[Verdict]:
    """Do a round; a verdict for each part."""
    loads = [
        Load(number, part, spool, refused.get(number), to_send=list(part.files))
        for number, (part, spool) in enumerate(zip(job.parts, spools, strict=True))
    ]
    try:
        why = _unfit(job, hub) if job.asks_bucket else None
        if why is None:
            _round(job, [load for load in loads if load.verdict is None], hub)
    except Exception as error:  # noqa: BLE001 - whatever the client raises has a verdict
        note(text_of(error))
        why = plain(error, dataclasses.replace(job.destination, repo_id=job.bucket), os.environ)
    return [load.verdict or why or Done("", own=False, repo_id=job.bucket, files={}) for load in loads]


def _round(job: Job, loads: Sequence[Load], hub: Hub) -> None:
    for load in loads:
        if not load.part.is_trusted:
            _compare(job, load, hub)
    going, left = [load for load in loads if load.verdict is None], dict[Load, dict[str, str]]()
    with contextlib.ExitStack() as opened:
        for load in going:
            try:
                load.sources = opened.enter_context(sources(load))
            except OSError as error:
                left[load] = dict.fromkeys((file.path for file in load.to_send), text_of(error))
        failed = hub.put_into_bucket(job.bucket, [source for load in going for source in load.sources])
    now_there = hub.bucket(job.bucket) if job.asks_bucket else None
    size = now_there.size if now_there else 0
    for load in going:
        sent = {one.file.path: Sent(one.file.length, "") for one in load.sources if one.target not in failed}
        refused = {one.file.path: failed[one.target] for one in load.sources if one.target in failed}
        found, why = load.seen.found | sent, left.get(load, refused)
        load.verdict = Done("", own=False, repo_id=job.bucket, files=found, left=why, bucket_size=size)


def _unfit(job: Job, hub: Hub) -> Verdict | None:
    """Why nothing may go to a bucket, which is made if it is missing; None if it is fit."""
    found = hub.bucket(job.bucket)
    if found is None:
        hub.create_bucket(job.bucket, private=job.was_private)
        found = hub.bucket(job.bucket)
    if job.was_private and not (found and found.private):
        reason = f"the bucket {job.bucket} is public, and {job.destination.typed_repo_id} is private"
        return Refused(reason, PUBLIC, Cause.VISIBILITY)
    return None


def _compare(job: Job, load: Load, hub: Hub) -> None:
    """Find out what the bucket holds of a run, and whether another one is there; what is as long is not sent."""
    held, part = hub.bucket_sizes(job.bucket, load.part.folder), load.part
    ways = {os.path.dirname(file.path) for file in load.to_send}
    there = [path for path in held if os.path.dirname(path) in ways and is_event_file(os.path.basename(path))]
    if any(path not in part.known and not (load.spool.run / path).exists() for path in there):
        pull = command_line("pull", load.spool.logdir)
        why = STRANGE.format(job.bucket, part.folder or "its root", pull)
        load.verdict = Quarantine(dict.fromkeys((file.path for file in load.to_send), why))
    load.seen.found.update({path: Sent(length, "") for path, length in held.items()})
    load.to_send = [file for file in load.to_send if file.length > held.get(file.path, 0)]
