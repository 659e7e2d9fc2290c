"""Folders, and where they go: runs, and folders with event files of others, which become runs when they are synced.

    folder of this user             spool in it, as in every run directory
    folder of another user, or      spool in the staging directory of this user; nothing is written into the folder
    one that cannot be written

Invariant: nothing is created before it is known that there are event files, and where they go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import click

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import Destination, Environment, typed_repo_id
from hf_mpwriter.base.storage import is_url, normalised_logdir
from hf_mpwriter.base.words import command_line
from hf_mpwriter.cli.destination import existing_spool, is_own_folder, path_of_run, spool_at
from hf_mpwriter.cli.status.finding import has_event_files, run_above, runs_below
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.storage import beside, find, spool_of
from hf_mpwriter.system.redaction import printable


@dataclass(frozen=True)
class Wishes:
    """What the user has asked for, the same for all runs of a call."""

    repo_id: str | None = None  # repository of runs that were local so far, as it was typed; None if none was named
    revision: str = "main"  # branch of it, see `place_options`
    folder: str = "tensorboard"  # directory there, see `place_options`
    timeout: float | None = None  # seconds to wait for a run, None for as long as it takes
    endpoint: str | None = None  # Hub that the token may go to, see `destination`
    create: bool = False  # whether a repository that is gone may be made anew
    names_runs: bool = False  # whether what is printed of a run names it, as there are several
    # whether the repository is for runs without a destination; the others go where they are recorded for
    only_new: bool = False

    def place_of(self, logdir: str) -> Destination | None:
        """Where a run goes that has no destination yet; None if no repository was named."""
        if self.repo_id is None:
            return None
        path = path_of_run(self.folder, normalised_logdir(logdir))
        kind, repo_id = typed_repo_id(self.repo_id)
        return Destination(Environment.read().endpoint, repo_id, kind, self.revision, path)


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


def recorded(name: str) -> Destination | None:
    """Where a run goes; None if it has no destination, or if that cannot be read: then `sync_one` says why."""
    try:
        return candidate(name).destination()
    except (HfMpWriterError, OSError):
        return None


def check_places(names: Iterable[str], wishes: Wishes) -> None:
    """Refuse runs that would go to the same folder of a repository, such as two of one name."""
    if clash := next(clashes(names, wishes), None):
        raise click.UsageError(printable(clash.text))


class Clash(NamedTuple):
    """A run whose place in a repository is that of another one; what to tell."""

    name: str
    text: str


def clashes(names: Iterable[str], wishes: Wishes) -> Iterator[Clash]:
    """The runs that would go where another one of these goes."""
    taken: dict[Destination, str] = {}
    for name in names:
        there = recorded(name)
        place = there or wishes.place_of(name)
        if place is None:
            continue
        other = taken.setdefault(place, name)
        if normalised_logdir(other) != normalised_logdir(name):
            apart = "Sync only one of them" if there and recorded(other) else "Sync them apart, with --path-in-repo"
            yield Clash(name, f"{other} and {name} would both go to {place}. {apart}.")
