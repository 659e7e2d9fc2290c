"""What is followed: folders into which programs log with writers that are not ours, see `supervisor/drain`.

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
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import click

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.job import is_first_of_host
from hf_mpwriter.base.names import is_event_file
from hf_mpwriter.base.settings import Destination, Environment, is_on, typed_repo_id
from hf_mpwriter.base.storage import is_url, normalised_logdir
from hf_mpwriter.base.words import command_line
from hf_mpwriter.cli.destination import check_endpoint
from hf_mpwriter.cli.status.finding import has_event_files
from hf_mpwriter.cli.syncing.folders import Wishes, candidate, check_places, recorded, spool_for
from hf_mpwriter.snapshot import event_files
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.supervisor.drain import ABSENT, LOOK_EVERY, NOTHING_THERE, Drain, Followed, NotARunError
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.process import Process
from hf_mpwriter.system.redaction import printable

AFTER_CLOSE = 60.0  # seconds; ranks of other hosts end about then, too
QUIET = 600.0  # seconds; a validation or a checkpoint may take minutes


def followed(
    named: Sequence[str], logdir: str | None, repo_id: str | None, environ: Mapping[str, str]
) -> dict[str, Followed]:
    """What to follow, per absolute path."""
    if any(map(is_url, named)):
        raise click.UsageError("--follow takes folders on a disk of this host.")
    if is_on(environ.get("HF_MPWRITER_DISABLED", "")):
        return {}
    wishes = Wishes(repo_id or environ.get("HF_MPWRITER_REPO_ID") or None)
    if wishes.repo_id is None and (homeless := [name for name in named if recorded(name) is None]):
        raise click.UsageError(printable(f"--follow {homeless[0]} needs --repo-id: where it goes."))
    if len(named) > 1:
        check_places(named, wishes)
    visibility = environ.get("HF_MPWRITER_REPO_PRIVATE")
    private = is_on(visibility) if visibility and wishes.repo_id else None
    found = folders_of(named, wishes, is_chosen=repo_id is not None, private=private)
    if logdir is not None and repo_id is not None and not is_url(logdir) and is_first_of_host(environ):
        found.setdefault(normalised_logdir(logdir), Followed(_unnamed(logdir, wishes), is_named=False, private=private))
    return found


def folders_of(
    names: Iterable[str], wishes: Wishes, *, is_chosen: bool = False, private: bool | None = None
) -> dict[str, Followed]:
    """Folders that the user has named, per absolute path; `is_chosen`: for this call, and not by the environment."""
    return {
        normalised_logdir(name): Followed(
            _named(name, wishes, is_chosen=is_chosen), private=private, endpoint=wishes.endpoint
        )
        for name in names
    }


def _named(name: str, wishes: Wishes, *, is_chosen: bool) -> Callable[[], Spool]:
    """What makes a folder a run that the user has named."""

    def make() -> Spool:
        _check_has_event_files(name)
        spool = spool_for(name, is_wanted=wishes.repo_id is not None)
        there = spool.destination()
        if there is None or (is_chosen and not _is_named(there, str(wishes.repo_id))):
            spool.record_destination(_wanted(name, wishes))
        _check_hub(spool, name, wishes.endpoint)
        return spool

    return _refusing(make)


def _is_named(there: Destination, named: str) -> bool:
    kind, repo_id = typed_repo_id(named)
    return there.repo_type == kind and there.can_be(repo_id)


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


def _check_hub(spool: Spool, name: str, confirmed: str | None) -> None:
    """Refuse a run of another Hub than that of this environment, as its token may not go there."""
    if there := spool.destination():
        confirming = command_line("sync", name, "--endpoint", there.endpoint)
        check_endpoint(there.endpoint, Environment.read().endpoint, confirmed, confirming)


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
        names = {os.path.join(self._folder, path) for path in self._sizes}
        return {pid for pid, target in _open_for_writing() if target in names}


def _open_for_writing() -> Iterator[tuple[int, str]]:
    """Processes of this host and the event files that they have open for writing, as far as this user may see."""
    for pid in filter(str.isdecimal, _listed("/proc")):
        for fd in _listed(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if is_event_file(os.path.basename(target)) and _is_writable(f"/proc/{pid}/fdinfo/{fd}"):
                    yield int(pid), target
            except OSError:  # closed meanwhile
                continue


def _is_writable(info: str) -> bool:
    with open(info, encoding="ascii") as lines:
        flags = next((line.split()[1] for line in lines if line.startswith("flags:")), "0")
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:  # of another user, or gone
        return []


def tend(drain: Drain, writers: Sequence[Writers], sleep: Callable[[float], object] = time.sleep) -> None:
    """Have folders uploaded until their writers have gone."""
    left = list(writers)
    while left := [one for one in left if not one.have_gone()]:
        drain.turn()
        sleep(LOOK_EVERY)
