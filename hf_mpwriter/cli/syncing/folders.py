"""Folders with event files of others, such as torch, Lightning, the Trainer. They become runs when they are synced.

    folder of this user             spool in it, as in every run directory
    folder of another user, or      spool in the staging directory of this user; nothing is written into the folder
    one that cannot be written

Invariant: nothing is created before it is known that there are event files, and where they go.
"""

from __future__ import annotations

import click

from hf_mpwriter.base.storage import is_url, normalised_logdir
from hf_mpwriter.cli.destination import command_line, existing_spool, is_own_folder, spool_at
from hf_mpwriter.cli.status.finding import has_event_files, run_above, runs_below
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.storage import beside, find, spool_of
from hf_mpwriter.system.redaction import printable


def spool_for(logdir: str, *, is_wanted: bool) -> Spool:
    """The spool of a run, or of a folder with event files of others, in which it is made."""
    path = normalised_logdir(logdir)
    if is_url(path) or not (has_event_files(path) or runs_below(path)):
        return existing_spool(logdir)
    spool = candidate(logdir)
    if spool.exists():
        return existing_spool(logdir)
    if spool.run_dir != path:  # a run of ours would be staged
        why = find(path).why
        raise click.ClickException(f"{printable(logdir)} cannot become a run: {why}. Copy it to a local disk.")
    if below := runs_below(path):
        several = command_line("sync", logdir, "--all", *(["--repo-id", "NAME"] if is_wanted else []))
        raise click.ClickException(f"{printable(logdir)} is no run, but has {len(below)} below it: {several}")
    if outer := run_above(path):
        command = command_line("sync", outer)
        raise click.ClickException(f"{printable(logdir)} is a part of a run, which goes as a whole: {command}")
    if not is_wanted:
        named = command_line("sync", logdir, "--repo-id", "NAME")
        raise click.ClickException(f"{printable(logdir)} was not uploaded yet. Say where to: {named}")
    spool.create()
    return spool


def candidate(logdir: str) -> Spool:
    """The spool that a folder has, or would have. Nothing is written into a folder of another user."""
    path = normalised_logdir(logdir)
    return spool_at(logdir) if is_own_folder(path) else spool_of(beside(path))
