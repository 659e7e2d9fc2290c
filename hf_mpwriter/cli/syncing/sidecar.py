"""What `hf-mpwriter run` follows: folders into which the program logs with writers that are not ours.

    --follow DIR              as `sync --follow DIR`: a folder with event files becomes a run
    --logdir and --repo-id    as well, as long as no writer of ours keeps another run there

Of the processes that a launcher starts on a host, only the first one follows what was not named by --follow.

HF_MPWRITER_REPO_PRIVATE counts as for writers that name no repository. With HF_MPWRITER_DISABLED nothing is followed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import click

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.home import is_url, normalised_logdir
from hf_mpwriter.base.settings import Destination, Environment, is_on
from hf_mpwriter.cli.destination import check_endpoint, command_line
from hf_mpwriter.cli.status.finding import has_event_files
from hf_mpwriter.cli.sync import Wishes
from hf_mpwriter.cli.syncing.command import check_places, recorded
from hf_mpwriter.cli.syncing.folders import candidate, spool_for
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.supervisor.followed import ABSENT, NOTHING_THERE, Followed, NotARunError
from hf_mpwriter.system.redaction import printable

LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMIX_LOCAL_RANK")


def followed(
    named: Sequence[str], logdir: str | None, repo_id: str | None, environ: Mapping[str, str]
) -> dict[str, Followed]:
    """What to follow, per absolute path."""
    if any(map(is_url, named)):
        raise click.UsageError("--follow takes folders on a disk of this host.")
    if is_on(environ.get("HF_MPWRITER_DISABLED", "")):
        return {}
    kind = environ.get("HF_MPWRITER_REPO_TYPE") or "model"
    wishes = Wishes(repo_id or environ.get("HF_MPWRITER_REPO_ID") or None, kind, is_quiet=True)
    if wishes.repo_id is None and (homeless := [name for name in named if recorded(name) is None]):
        raise click.UsageError(printable(f"--follow {homeless[0]} needs --repo-id: where it goes."))
    if len(named) > 1:
        check_places(named, wishes)
    visibility = environ.get("HF_MPWRITER_REPO_PRIVATE")
    private = is_on(visibility) if visibility and wishes.repo_id else None
    found = {
        normalised_logdir(name): Followed(_named(name, wishes, is_chosen=repo_id is not None), private=private)
        for name in named
    }
    if logdir is not None and repo_id is not None and not is_url(logdir) and is_first_of_host(environ):
        found.setdefault(normalised_logdir(logdir), Followed(_unnamed(logdir, wishes), is_named=False, private=private))
    return found


def _named(name: str, wishes: Wishes, *, is_chosen: bool) -> Callable[[], Spool]:
    """What makes a folder a run that the user has named."""

    def make() -> Spool:
        _check_has_event_files(name)
        spool = spool_for(name, is_wanted=wishes.repo_id is not None)
        there = spool.destination()
        if there is None or (is_chosen and not there.can_be(str(wishes.repo_id))):
            spool.record_destination(_wanted(name, wishes))
        _check_hub(spool, name)
        return spool

    return _refusing(make)


def _unnamed(name: str, wishes: Wishes) -> Callable[[], Spool]:
    """What makes the run directory of writers without one a run, as long as no writer of ours has made it another
    one.
    """

    def make() -> Spool:
        _check_has_event_files(name)
        spool, wanted = candidate(name), _wanted(name, wishes)
        if spool.exists():
            there = spool.destination()
            if there is None or not there.is_same(wanted):
                raise NotARunError(NOTHING_THERE)
        else:
            spool = spool_for(name, is_wanted=True)
            spool.record_destination(wanted)
        return spool

    return _refusing(make)


def _refusing(make: Callable[[], Spool]) -> Callable[[], Spool]:
    """The same, with one kind of error for what waiting does not mend."""

    def checked() -> Spool:
        try:
            return make()
        except click.ClickException as error:
            raise NotARunError(error.format_message()) from error
        except HfMpWriterError as error:
            raise error if isinstance(error, NotARunError) else NotARunError(str(error)) from error

    return checked


def _check_has_event_files(name: str) -> None:
    folder = normalised_logdir(name)
    if not has_event_files(folder):
        raise NotARunError(NOTHING_THERE if is_url(folder) or os.path.isdir(folder) else ABSENT)


def _wanted(name: str, wishes: Wishes) -> Destination:
    """Where a folder goes."""
    place = wishes.place_of(name)
    if place is None:
        raise NotARunError("no repository is named for it")
    return place


def _check_hub(spool: Spool, name: str) -> None:
    """Refuse a run of another Hub than that of this environment, as its token may not go there."""
    if there := spool.destination():
        confirming = command_line("sync", name, "--endpoint", there.endpoint)
        check_endpoint(there.endpoint, Environment.read().endpoint, None, confirming)


def is_first_of_host(environ: Mapping[str, str]) -> bool:
    """Whether this is the first of the processes that a launcher has started on this host."""
    return next((environ[name] for name in LOCAL_RANKS if name in environ), "0") == "0"
