"""`hf-mpwriter clean --live`: delete from a live bucket what the repository has.

    a file of the bucket                       what becomes of it
    a process here logs to its run             kept
    the repository has less of it, or nothing  kept: the next push, or a pull elsewhere, may need it
    anything else                              deleted

The names of event files are unique, so of two files of one name the shorter one is a beginning of the other.
"""

from __future__ import annotations

import os
from dataclasses import replace

import click

from hf_mpwriter.base.settings import Destination, Environment, full_bucket, typed_repo_id
from hf_mpwriter.base.words import counted, sentence, size_text
from hf_mpwriter.cli.pull import LIMIT
from hf_mpwriter.cli.runs import named_bucket, prepare_client
from hf_mpwriter.spool.storage import find, spool_of
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.uploader import folders


def clean_bucket(repository: str, *, dry_run: bool) -> None:
    """Delete what a repository has from its live bucket, and say what stays."""
    kind, repo_id = typed_repo_id(repository)
    destination = Destination(Environment.read().endpoint, repo_id, kind)
    prepare_client(destination.endpoint)
    from hf_mpwriter.push.classify import explained
    from hf_mpwriter.push.client import Hub
    from hf_mpwriter.push.clock import Clock

    hub = Hub(destination, Clock(LIMIT, is_patient=True))
    try:
        head = hub.head()
        destination = destination.resolved(hub.repo_id)
        bucket = full_bucket(named_bucket(destination), hub.repo_id)
        there, live = hub.tree(head) if head else {}, hub.bucket_sizes(bucket, "")
        used = tuple(f"{folder}/" for folder in _folders_in_use(destination, repo_id))
        whole = {path for path, size in live.items() if path in there and there[path].size >= size}
        gone = sorted(path for path in whole if not path.startswith(used))
        if not dry_run:
            hub.delete_from_bucket(bucket, gone)
    except Exception as error:
        why, helps = explained(error, destination, os.environ)
        text = f"Nothing was deleted: {why.rstrip('.')}. {sentence(helps) if helps else ''}"
        raise click.ClickException(printable(text.rstrip())) from error
    verb = "Would delete" if dry_run else "Deleted"
    deleted, size = counted(len(gone), "file"), size_text(sum(live[path] for path in gone))
    what = f"{deleted} ({size}) of {bucket}, which {destination.typed_repo_id} has" if gone else f"nothing of {bucket}"
    click.echo(printable(f"{verb} {what}."))
    if kept := live.keys() - gone:
        busy = len(whole - set(gone))
        reasons = [f"{busy} of runs that are logged here"] * bool(busy)
        reasons += [f"{len(kept) - busy} of which {destination.typed_repo_id} has less"] * (len(kept) > busy)
        click.echo(printable(f"Kept {counted(len(kept), 'file')}: {', '.join(reasons)}."))


def _folders_in_use(destination: Destination, asked: str) -> list[str]:
    """The folders of the runs of this host to which a process logs; they may have been recorded by the short name."""
    names = {destination.repo_id, asked, asked.rpartition("/")[2]}
    owners = [one for name in names for one in folders.owners_of(replace(destination, repo_id=name)).items()]
    return [folder for folder, run in owners if any(one.alive for one in Members(spool_of(find(run))).all())]
