"""A round of a live bucket: what has grown of event files goes there, beside the commits.

    visibility of the bucket -> what is there of runs that are new -> one batch -> Done, with what it holds

Invariants:
- Nothing goes to a bucket that is public while the repository is private. That is asked before the first byte, and
  again whenever the job says so.
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

from hf_mpwriter.base.verdicts import Cause, Done, Refused, Retry, Sent, Verdict
from hf_mpwriter.push.classify import plain, text_of
from hf_mpwriter.push.client import Hub
from hf_mpwriter.push.commit import Load, note, sources
from hf_mpwriter.push.job import Job
from hf_mpwriter.spool.layout import Spool

PUBLIC = "Make it private, or name another bucket: live='NAME'."


def carry_live(job: Job, spools: Sequence[Spool], hub: Hub, refused: Mapping[int, Verdict]) -> list[Verdict]:
    """Do a round; a verdict for each part."""
    loads = [
        Load(number, part, spool, refused.get(number), to_send=list(part.files))
        for number, (part, spool) in enumerate(zip(job.parts, spools, strict=True))
    ]
    try:
        verdict = _round(job, [load for load in loads if load.verdict is None], hub)
    except Exception as error:  # noqa: BLE001 - whatever the client raises has a verdict
        note(text_of(error))
        verdict = plain(error, dataclasses.replace(job.destination, repo_id=job.bucket), os.environ)
    return [load.verdict or verdict for load in loads]


def _round(job: Job, loads: Sequence[Load], hub: Hub) -> Verdict:
    if job.asks_bucket and (why := _unfit(job, hub)) is not None:
        return why
    for load in loads:
        if not load.part.is_trusted:
            _compare(job, load, hub)
    with contextlib.ExitStack() as opened:
        found = []
        for load in loads:
            try:
                found += [(load, source) for source in opened.enter_context(sources(load))]
            except OSError as error:
                load.verdict = Retry(text_of(error), cause=Cause.DISK)
        failed = hub.put_into_bucket(job.bucket, [source for _, source in found])
    for load, source in found:
        held = load.seen.found
        if source.target not in failed:
            held[source.file.path] = Sent(source.file.length, "")
    now_there = hub.bucket(job.bucket) if job.asks_bucket else None
    size = now_there.size if now_there else 0
    for load in loads:
        load.verdict = load.verdict or Done("", own=False, repo_id=job.bucket, files=load.seen.found, bucket_size=size)
    return Retry(next(iter(failed.values()), "nothing was sent"))


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
    """Find out what the bucket holds of a run; what is as long there is not sent."""
    held = hub.bucket_sizes(job.bucket, load.part.folder)
    load.seen.found.update({path: Sent(length, "") for path, length in held.items()})
    load.to_send = [file for file in load.to_send if file.length > held.get(file.path, 0)]
