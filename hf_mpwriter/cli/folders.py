"""Folders, and where they go: runs, and folders with event files of others, which become runs when they are synced.

    folder of this user             spool in it, as in every run directory
    folder of another user, or      spool in the staging directory of this user; nothing is written into the folder
    one that cannot be written

They can be followed, see `supervisor/drain`:

    run --follow DIR              until the program has ended, which a supervisor starts
    run --logdir --repo-id        as well, as long as no writer of ours keeps another run there; of the processes that a
                                  launcher starts on a host, only the first one does
    sync --follow DIR             beside training that cannot be changed, until its writers have gone

When writers have gone:

    a process of this host has an event file open for writing, as /proc tells    not yet, however long it is quiet
    those that had one have ended                                               after AFTER_CLOSE seconds of quiet
    one lives that had, or none was seen: on another host, of another user      after QUIET seconds of quiet

That one has no file open tells little: torch's writer, where TensorFlow is not installed, opens it for each record.
Quiet is that no event file appears or changes its size.

HF_MPWRITER_REPO_PRIVATE counts as for writers that name no repository. With HF_MPWRITER_DISABLED `run` follows nothing.

Invariant: nothing is created before it is known that there are event files, and where they go.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import click

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.job import is_first_of_host
from hf_mpwriter.base.settings import Destination, is_on
from hf_mpwriter.base.storage import is_url, normalised_logdir
from hf_mpwriter.base.words import command_line
from hf_mpwriter.cli.runs import (
    RepoPlace,
    existing_spool,
    has_event_files,
    recorded_destination,
    run_above,
    runs_below,
    spool_at,
)
from hf_mpwriter.snapshot import event_files
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.pulled import pulled_files
from hf_mpwriter.spool.storage import find
from hf_mpwriter.supervisor.drain import ABSENT, LOOK_EVERY, NOTHING_THERE, Drain, Followed, NotARunError
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.process import Process
from hf_mpwriter.system.redaction import printable
from hf_mpwriter.uploader import folders

AFTER_CLOSE = 60.0  # seconds; ranks of other hosts end about then, too
QUIET = 600.0  # seconds; a validation or a checkpoint may take minutes


@dataclass(frozen=True)
class Wishes:
    """What the user has asked for, the same for all runs of a call."""

    place: RepoPlace | None = None  # of runs that were local so far; None if none was named
    timeout: float | None = None  # seconds to wait for a run, None for as long as it takes
    endpoint: str | None = None  # Hub that the token may go to, see `runs.recorded_destination`
    create: bool = False  # whether a repository that is gone may be made anew
    again: bool = False  # whether what was deleted on the Hub is to be sent again
    names_runs: bool = False  # whether what is printed of a run names it, as there are several
    # whether the repository is for runs without a destination; the others go where they are recorded for
    only_new: bool = False

    def place_of(self, logdir: str) -> Destination | None:
        """Where a run goes that has no destination yet; None if no repository was named."""
        return self.place and self.place.of(logdir)


def spool_for(logdir: str, *, is_wanted: bool) -> Spool:
    """The spool of a run, or of a folder with event files of others, in which it is made."""
    path = normalised_logdir(logdir)
    if is_url(path) or not (has_event_files(path) or runs_below(path)):
        return existing_spool(logdir)
    spool = spool_at(logdir, becomes_run=True)
    if spool.exists():
        return existing_spool(logdir)
    if spool.run_dir != path:  # a run of ours would be staged
        text = f"{logdir} cannot become a run: {find(path).why}. Copy it to a local disk."
    elif below := runs_below(path):
        several = command_line("sync", logdir, "--all", *(["--repo-id", "NAME"] if is_wanted else []))
        text = f"{logdir} is not a run, but has {len(below)} below it: {several}"
    elif outer := run_above(path):
        text = f"{logdir} is a part of a run, which goes as a whole: {command_line('sync', outer)}"
    elif not is_wanted:
        text = f"{logdir} was not uploaded yet. Say where to: {command_line('sync', logdir, '--repo-id', 'NAME')}"
    else:
        spool.create()
        return spool
    raise click.ClickException(printable(text))


def recorded(name: str) -> Destination | None:
    """Where a run goes; None if it has no destination, or if that cannot be read: then `sync` says why."""
    try:
        return spool_at(name, becomes_run=True).destination()
    except (HfMpWriterError, OSError):
        return None


def clashes(names: Iterable[str], wishes: Wishes) -> dict[str, str]:
    """The runs that would go where an earlier one of these goes, each with what to tell.

    Where a folder is neither settled nor pulled, each gets one of its own, see `uploader/folders`.
    """
    taken, found, all_names = dict[Destination, str](), dict[str, str](), list(names)
    settled = {recorded(name) for name in all_names if _is_settled(name)}
    for name in all_names:
        there = recorded(name)
        place = there or wishes.place_of(name)
        if place is None or (place not in settled and folders.can_settle(place)):
            continue
        other = taken.setdefault(place, name)
        if normalised_logdir(other) != normalised_logdir(name):
            apart = "Sync only one of them" if there and recorded(other) else "Sync them apart, with --path-in-repo"
            found[name] = f"{other} and {name} would both go to {place}. {apart}."
    return found


def _is_settled(name: str) -> bool:
    try:
        spool = spool_at(name, becomes_run=True)
        record = spool.record()
    except (HfMpWriterError, OSError):
        return False
    return record is not None and (record.asked is not None or bool(pulled_files(spool)))


# followed folders


def followed(
    named: Sequence[str], logdir: str | None, repo_id: str | None, environ: Mapping[str, str]
) -> dict[str, Followed]:
    """What to follow, per absolute path."""
    if any(map(is_url, named)):
        raise click.UsageError("--follow takes folders on a disk of this host.")
    if is_on(environ.get("HF_MPWRITER_DISABLED", "")):
        return {}
    wanted = repo_id or environ.get("HF_MPWRITER_REPO_ID")
    wishes = Wishes(RepoPlace(wanted) if wanted else None)
    if not wanted and (homeless := [name for name in named if recorded(name) is None]):
        raise click.UsageError(printable(f"--follow {homeless[0]} needs --repo-id: where it goes."))
    for text in clashes(named, wishes).values():
        raise click.UsageError(printable(text))
    visibility = environ.get("HF_MPWRITER_REPO_PRIVATE")
    private = is_on(visibility) if visibility and wanted else None
    found = folders_of(named, wishes, is_chosen=repo_id is not None, private=private)
    if logdir is not None and repo_id is not None and not is_url(logdir) and is_first_of_host(environ):
        make = functools.partial(_unnamed, logdir, wishes)
        found.setdefault(normalised_logdir(logdir), Followed(make, is_named=False, private=private))
    return found


def folders_of(
    names: Iterable[str], wishes: Wishes, *, is_chosen: bool = False, private: bool | None = None
) -> dict[str, Followed]:
    """Folders that the user has named, per absolute path; `is_chosen`: for this call, and not by the environment."""
    return {
        normalised_logdir(name): Followed(
            functools.partial(_named, name, wishes, is_chosen=is_chosen), private=private, endpoint=wishes.endpoint
        )
        for name in names
    }


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Raise one kind of error for what waiting does not help."""
    try:
        yield
    except NotARunError:
        raise
    except click.ClickException as error:
        raise NotARunError(error.format_message()) from error
    except HfMpWriterError as error:
        raise NotARunError(str(error)) from error


@_refusing()
def _named(name: str, wishes: Wishes, *, is_chosen: bool) -> Spool:
    """Make a folder that the user has named a run."""
    _check_has_event_files(name)
    wanted = wishes.place_of(name)
    spool = spool_for(name, is_wanted=wanted is not None)
    there = spool.destination()
    if there is None or (is_chosen and wanted and not _is_named(there, wanted)):
        if wanted is None:
            raise NotARunError("no repository is named for it")
        spool.record_destination(wanted)
    if there := spool.destination():  # a token may go to the Hub of this environment only
        recorded_destination(there, wishes.endpoint, "sync", name)
    return spool


def _is_named(there: Destination, wanted: Destination) -> bool:
    return there.repo_type == wanted.repo_type and there.can_be(wanted.repo_id)


@_refusing()
def _unnamed(name: str, wishes: Wishes) -> Spool:
    """Make the run directory of writers without one a run, unless a writer of ours has made it another one."""
    _check_has_event_files(name)
    wanted, spool = wishes.place_of(name), spool_at(name, becomes_run=True)
    if not spool.exists() and wanted is not None:
        spool = spool_for(name, is_wanted=True)
        spool.record_destination(wanted)
    there = spool.record()
    if there is None or wanted is None or not there.is_for(wanted):
        raise NotARunError(NOTHING_THERE)
    return spool


def _check_has_event_files(name: str) -> None:
    folder = normalised_logdir(name)
    if not has_event_files(folder):
        raise NotARunError(NOTHING_THERE if os.path.isdir(folder) else ABSENT)


# when their writers have gone


class Writers:
    """Who writes event files below a folder."""

    def __init__(self, folder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = os.path.realpath(folder), clock
        self._sizes, self._quiet_since = self._all_sizes(), clock()
        self._seen: set[Process] = set()

    def have_gone(self) -> bool:
        """Look; whether nothing more is to be expected."""
        now, sizes = self._clock(), self._all_sizes()
        if sizes != self._sizes:
            self._sizes, self._quiet_since = sizes, now
        if writing := self._writing():
            self._seen |= set(map(Process.of, writing))
            return False
        have_ended = bool(self._seen) and not any(Process.of(one.pid) == one for one in self._seen)
        return now - self._quiet_since >= (AFTER_CLOSE if have_ended else QUIET)

    def _all_sizes(self) -> dict[str, int]:
        run = Directory(self._folder)
        found = event_files.sizes(run, lambda _: True)
        run.release()
        return found

    def _writing(self) -> set[int]:
        """The processes that have one of the files open for writing, as far as this user may see."""
        names, found = {os.path.join(self._folder, path) for path in self._sizes}, set[int]()
        for link in glob.iglob("/proc/[0-9]*/fd/*"):
            with contextlib.suppress(OSError):  # closed meanwhile, or of another user
                if os.readlink(link) in names and _is_writable(link.replace("/fd/", "/fdinfo/")):
                    found.add(int(link.split("/")[2]))
        return found


def _is_writable(info: str) -> bool:
    with open(info, encoding="ascii") as lines:
        flags = next((line.split()[1] for line in lines if line.startswith("flags:")), "0")
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


def tend(drain: Drain, writers: Sequence[Writers], sleep: Callable[[float], object] = time.sleep) -> None:
    """Have folders uploaded until their writers have gone."""
    left = list(writers)
    while left := [one for one in left if not one.have_gone()]:
        drain.turn()
        sleep(LOOK_EVERY)
