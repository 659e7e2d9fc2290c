"""LOGDIR on the command line: the run that it names, the runs below a folder, and where a token may go.

Runs below a folder are directories with a spool, and staged runs whose logdir is there. Folders with event files of
other writers become runs when they are synced: of nested ones the topmost. Links are not followed, names with a dot in
front are passed over, and a folder is searched no deeper than DEEPEST.

A run directory may come from anywhere, so the endpoint in its `run.json` is only a claim. A token belongs to an
endpoint:

    recorded in the run    HF_ENDPOINT here    --endpoint    a token goes to
    E                      E                   none, or E    E
    E                      F                   E             E: the user has confirmed it
    E                      F                   none          no Hub: one line names the command that confirms it
    E                      E or F              F             no Hub: the option never overrides what is recorded

Invariant: this is decided before a command writes, starts or sends anything.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Collection, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

import click

from hf_mpwriter.base.names import SPOOL_NAME, is_event_file
from hf_mpwriter.base.settings import Destination, Environment, Settings, default_bucket, typed_repo_id
from hf_mpwriter.base.storage import (
    Storage,
    is_staged_path,
    is_url,
    normalised_logdir,
)
from hf_mpwriter.base.words import as_argument, command_line
from hf_mpwriter.snapshot.search import RunSearch
from hf_mpwriter.spool.layout import FORMAT_NAME, Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.spool.storage import beside, find, is_staged_here, spool_of, staged_places
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.system import hf_home
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.filesystem import reason_of
from hf_mpwriter.system.process import start_directory
from hf_mpwriter.system.redaction import printable

DEEPEST = 8  # folders below the first one
NAMED = 5  # runs that a message names
MOST = 50_000  # entries that are looked at: a folder of data sets is no place for runs

logdir_argument = click.argument("logdir")
endpoint_option = click.option(
    "--endpoint",
    metavar="URL",
    help="Confirm that a token may go to this Hub; the one that the run is recorded for. Default: HF_ENDPOINT.",
)


def runs_below(folder: str) -> list[str]:
    """The logdirs of the runs below a folder, relative to it, in the order of their paths."""
    direct = [found.path for found in _folders(folder) if found.has_spool]
    staged = [to for _, to in staged_runs() if os.path.isabs(to) and os.path.commonpath([folder, to]) == folder]
    return sorted({os.path.relpath(found, folder) for found in [*direct, *staged]})


def others_below(folder: str, runs: Collection[str]) -> list[str]:
    """The folders below a folder, or itself, with event files that belong to no run; as `runs_below` names them."""
    taken, found = set(runs), list[str]()
    for path in sorted(one.path for one in _folders(folder) if one.has_events):
        name = os.path.relpath(path, folder)
        if taken.isdisjoint(_with_parents(name)):
            found.append(name)
            if not has_one_of(name, runs):  # it can become a run, with what is below it
                taken.add(name)
    return found


def has_one_of(folder: str, runs: Collection[str]) -> bool:
    """Whether one of some runs is a folder or below it; all as `runs_below` names them."""
    return any(folder in _with_parents(run) for run in runs)


def named(names: Collection[str]) -> str:
    """The first names of some, and how many more there are."""
    shown = ", ".join(list(names)[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def nearest_first(name: str, names: Collection[str]) -> list[str]:
    """Names in the order in which a mistyped one, with as many of its last parts as they have, may mean them."""
    parts = name.split("/")

    def likeness(one: str) -> float:
        return SequenceMatcher(None, "/".join(parts[-1 - one.count("/") :]), one).ratio()

    return sorted(names, key=lambda one: (-likeness(one), one))


def _with_parents(name: str) -> Iterator[str]:
    """A relative path, the folders above it, and the first one."""
    while name not in ("", "."):
        yield name
        name = os.path.dirname(name)
    yield "."


def run_above(path: str) -> str:
    """The run directory that a folder lies in, "" if there is none."""
    above = os.path.dirname(path)
    while above != path:
        if os.path.exists(os.path.join(above, SPOOL_NAME, FORMAT_NAME)):
            return above
        path, above = above, os.path.dirname(above)
    return ""


def has_event_files(path: str) -> bool:
    """Whether there are event files in a folder or below it."""
    return any(is_event_file(os.path.basename(found)) for found in RunSearch(Directory(path)))


def no_run(logdir: str, *, is_elsewhere: bool) -> str:
    """What to say of a place where there is no run."""
    path = normalised_logdir(logdir)
    try:
        is_directory = is_url(path) or stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_directory = False
    except OSError as error:  # such as that of a dead mount
        return f"{logdir} cannot be read: {reason_of(error)}."
    if not is_directory:
        return f"{logdir} does not exist. Runs below this folder: hf-mpwriter status"
    if is_elsewhere or is_url(path):
        return (
            f"{logdir} has no run of this machine. A run that is kept beside its logdir is found on its machine only, "
            "by its user, or by the directory that was named at its start."
        )
    if below := runs_below(path):
        runs = named([as_argument(os.path.normpath(os.path.join(logdir, run))) for run in below])
        return f"{logdir} is not a run. Runs below it: {runs}"
    if has_event_files(path):
        upload = command_line("sync", logdir, "--repo-id", "NAME")
        return f"{logdir} has event files of another writer, and is not a run yet. To upload them: {upload}"
    return f"{logdir} has no event files, and no run below it."


class _Folder(NamedTuple):
    """A folder that was met."""

    path: str  # absolute
    has_spool: bool  # whether it has the spool of a run
    has_events: bool  # whether event files are in it


def _folders(folder: str) -> Iterator[_Folder]:
    pending, left = [(folder, 0)], MOST
    while pending and left > 0:
        path, depth = pending.pop()
        found, has_events = list[os.DirEntry[str]](), False
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        found.append(entry)
                    elif not has_events and is_event_file(entry.name):
                        has_events = entry.is_file(follow_symlinks=False)
        except OSError:  # of others, or gone
            continue
        left -= 1 + len(found)
        has_spool = any(entry.name == SPOOL_NAME for entry in found)
        has_spool = has_spool and os.path.exists(os.path.join(path, SPOOL_NAME, FORMAT_NAME))
        yield _Folder(path, has_spool, has_events)
        if depth < DEEPEST:
            pending += [(entry.path, depth + 1) for entry in found if not entry.name.startswith(".")]


def staged_runs() -> Iterator[tuple[str, str]]:
    """The run directory and the logdir of each run that this user has staged on this host.

    Those in a directory that is refused, too: they are told, and nothing is done to them.
    """
    for path in staged_places():
        record = MirrorRecord.read(Spool.of(path)) if is_staged_path(path, os.geteuid()) else None
        if record is not None:
            yield path, record.to


# from LOGDIR to a run


def storage_at(logdir: str, *, becomes_run: bool = False) -> Storage:
    """Where the run of a logdir is kept, which may not be there yet; nothing is written into a folder of another user.

    `becomes_run`: whether such a folder would become a run, as `sync` makes one of it.
    """
    path = normalised_logdir(logdir)
    if not is_own_folder(path):
        aside = beside(path)
        if becomes_run or spool_of(aside).exists():
            return aside
    return find(path)


def spool_at(logdir: str, *, becomes_run: bool = False) -> Spool:
    """The spool of the run of a logdir, see `storage_at`."""
    return spool_of(storage_at(logdir, becomes_run=becomes_run))


def is_own_folder(path: str) -> bool:
    """Whether this user may keep a spool in a folder: it is his, or there is one for it; or it is not there yet."""
    try:
        owner = -1 if is_url(path) else os.stat(path).st_uid
    except OSError:
        return True
    if owner == -1 or os.path.lexists(os.path.join(path, SPOOL_NAME)) or is_staged_here(path):
        return True
    return owner == os.geteuid() and os.access(path, os.W_OK | os.X_OK)


def existing_spool(logdir: str) -> Spool:
    """The spool of a run."""
    storage = storage_at(logdir)
    spool = spool_of(storage)
    check_ownership(spool.directory)
    spool.check_format()
    if not spool.exists():
        text = no_run(logdir, is_elsewhere=spool.run_dir != normalised_logdir(logdir))
        raise click.ClickException(printable(" ".join(filter(None, (text, storage.refused, storage.lost)))))
    return spool


def newest_settings(members: Collection[Member], ledger: Ledger | None) -> Settings:
    """The settings of the newest member; without members, those that the ledger remembers."""
    newest = max(members, key=lambda member: member.started_at, default=None)
    if newest is not None:
        return newest.settings
    return (ledger.settings if ledger else None) or Settings()


class RepoPlace(NamedTuple):
    """Where in a repository a run is, as it was typed."""

    repo_id: str
    revision: str = "main"
    path_in_repo: str = "tensorboard"  # to which the name of the run directory is appended

    def of(self, logdir: str, endpoint: str = "") -> Destination:
        """The destination of a run that has none yet; by default on the Hub of this environment."""
        kind, repo_id = typed_repo_id(self.repo_id)
        path = "/".join(filter(None, [self.path_in_repo.strip("/"), Path(normalised_logdir(logdir)).name]))
        return Destination(endpoint or Environment.read().endpoint, repo_id, kind, self.revision, path)

    @property
    def options(self) -> list[str]:
        """The same as options of a command."""
        given, default = self._asdict(), self._field_defaults
        options = {name: value for name, value in given.items() if value != default.get(name)}
        return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]


def recorded_destination(
    recorded: Destination, endpoint: str | None, command: str, logdir: str, *options: str
) -> Destination:
    """The destination of a run, if a token may go there: to the Hub of HF_ENDPOINT, or one that was confirmed.

    Command, logdir and options: what the user types, to which the option is appended that confirms it.
    """
    own, hub = Environment.read().endpoint, printable(recorded.endpoint)
    if endpoint is not None:
        if not recorded.is_at(endpoint):
            text = f"The run is recorded for {hub}. --endpoint confirms it, and cannot choose another Hub."
            raise click.UsageError(text)
    elif not recorded.is_at(own):
        confirming = command_line(command, logdir, *options, "--endpoint", hub)
        raise click.ClickException(
            f"The run is recorded for {hub}, but HF_ENDPOINT here is {printable(own)}. Nothing was sent. If your token "
            f"may go there: {confirming}"
        )
    return recorded


def named_bucket(destination: Destination) -> str:
    """The live bucket that the environment names, else that of a run that names none."""
    live = Environment.read().live
    return live if isinstance(live, str) else default_bucket(destination)


def prepare_client(endpoint: str) -> None:
    """Set what the Hub's client reads when it is imported, and keep it from telling of each of its tries."""
    os.environ["HF_ENDPOINT"] = endpoint
    if not click.get_current_context().find_root().params.get("debug"):
        os.environ["HF_HUB_VERBOSITY"] = "error"
    os.environ |= hf_home.settled(os.environ, start_directory(), hf_home.account_home())


# what commands have in common on the command line


def place_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say where in a repository a run is; the command gets a `RepoPlace`, None without one."""

    @functools.wraps(command)
    def with_place(repo_id: str | None, revision: str | None, path_in_repo: str | None, **others: Any) -> None:
        options = (("revision", revision), ("path_in_repo", path_in_repo))
        given = {name: value for name, value in options if value is not None}
        if repo_id is None and given:
            option = f"--{min(given).replace('_', '-')}"
            raise click.UsageError(f"{option} goes with --repo-id: where a run goes is recorded at its start.")
        command(place=None if repo_id is None else RepoPlace(repo_id, **given), **others)

    folder = "Folder in the repository, to which the name of LOGDIR is appended; with --repo-id. Default: tensorboard."
    named = "Repository, if none is recorded; of a dataset: datasets/NAME."
    for option in (
        click.option("--path-in-repo", metavar="FOLDER", help=folder),
        click.option("--revision", metavar="BRANCH", help="Of the repository; with --repo-id. Default: main."),
        click.option("--repo-id", metavar="NAME", help=named),
    ):
        option(with_place)
    return with_place


def examples(*lines: str) -> str:
    """What stands at the end of a help text: commands as they are typed."""
    return "\n".join(["\b", "Examples:", *(f"  hf-mpwriter {line}" for line in lines)])
