"""The folder of a run in its repository: no two run directories of a user on a host share one by accident.

    <cache>/hf_mpwriter/folders/<24 hex>.json      of a repository, a branch and a host; see `system/user_cache`
    {"owners": {"tensorboard/lr0.1": "/home/me/sweepA/lr0.1",         the last one is the one that was used last
                "tensorboard/sweepB_lr0.1": "/home/me/sweepB/lr0.1"}}

A run is named by the real path of its run directory; a staged one by its logdir. When its uploader starts:

    the run                                                          goes to
    its folder was settled in this very spool, or it was pulled      the folder that is recorded
    something of it is on the Hub, or on its way there               the folder that is recorded; a copy of a run
                                                                     that is still there gets one of its own
    its nodes have spools of their own, so each decides alone        the folder that is recorded
    its directory is that of a run of before                         the folder of that one
    no other run has the folder that is asked for                    that folder
    another run has it                                               one of its own beside it: the last parts of its
                                                                     path, as many as tell it from all others

The folder is recorded in run.json, so a run that is resumed or moved keeps it. Across hosts nothing is known of each
other: there, the first push tells that others are in the folder (`push/commit`).

Invariants:
- Endpoint, repository and branch are those of the start record. Of what a file tells only a folder beside the one that
  is asked for counts, or one of its name and deeper, and only where the start record names one of the two.
- The folder is settled before anything is sent. Where there is no cache, it is the one that is recorded.
- An owner is in the registry before its folder is in run.json: who is killed in between finds it there.
- Of a directory on another mount than the run's, nothing is asked that might hang.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from hf_mpwriter.base import state
from hf_mpwriter.base.names import LONGEST_NAME, SPOOL_NAME, name_on_hub
from hf_mpwriter.base.settings import Destination, normalised_endpoint
from hf_mpwriter.base.storage import is_url
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.spool import ledger
from hf_mpwriter.spool.layout import RunRecord, Spool
from hf_mpwriter.spool.pulled import pulled_files
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.system import disk, filesystem, user_cache
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import host_id

FORGOTTEN_AFTER = 366 * 86400.0  # seconds without a new run, after which a repository is forgotten
MOST_OWNERS = 10_000  # of a branch, which take 20 ms of a start; those that were not used for longest are forgotten
LOCK_WAIT = 1.0  # seconds for the lock, which is held for milliseconds
LOCK_POLL = 0.01  # seconds
OWNED = "{} belongs to {}: this run goes to {}"


Owners = Mapping[str, str]  # the name of a run, by its folder in the repository


@dataclass(frozen=True)
class Registry:
    """The owners of the folders of a branch."""

    owners: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What decides where a run goes."""

    run: str  # its name
    recorded: str  # folder in run.json
    asked: str  # folder that its writers ask for
    is_pulled: bool = False  # whether it came from the Hub
    is_settled: bool = False  # whether it was settled in this very spool
    is_divided: bool = False  # whether other nodes of its job have spools of their own
    has_arrived: bool = False  # whether something of it may be on the Hub
    is_copy: bool = False  # whether it is a copy of a run that is still there


# the decision


def folder_for(facts: Facts, owners: Owners) -> str:
    """The folder of a run."""
    is_fixed = facts.is_pulled or facts.is_settled or facts.is_divided
    if is_fixed or (facts.has_arrived and not facts.is_copy):
        return facts.recorded
    own = own_folder(facts.run, facts.asked, owners)  # "" is a folder, too: the root of the repository
    return _free_folder(facts.run, facts.asked, owners) if own is None else own


def own_folder(run: str, asked: str, owners: Owners) -> str | None:
    """The folder that a run directory of this name has had where one is asked for, None if it has had none."""
    if owners.get(asked) == run:
        return asked
    beside = {folder_beside(asked, name) for name in names_of(run).values()}
    had = (folder for folder, owner in owners.items() if owner == run)
    return next((folder for folder in had if folder in beside or folder.startswith(f"{asked}-")), None)


def _free_folder(run: str, asked: str, owners: Owners) -> str:
    """The folder that is asked for, or the first one beside it that no other run has."""
    if (owner := owners.get(asked)) is None:
        return asked
    theirs = names_of(owner)
    beside = (folder_beside(asked, name) for count, name in names_of(run).items() if theirs.get(count) != name)
    numbered = (f"{asked}-{number}" for number in itertools.count(2))
    return next(folder for folder in itertools.chain(beside, numbered) if folder not in owners)


def names_of(run: str, between: str = "_") -> dict[int, str]:
    """The names that a run may have in a repository, by the number of parts of its path that they are made of."""
    parts = [part for part in (run.partition("://")[2] or run).split("/") if part]
    joined = {count: name_on_hub(between.join(parts[-count:])) for count in range(1, len(parts) + 1)}
    return {count: name for count, name in joined.items() if len(name.encode(errors="replace")) <= LONGEST_NAME}


def folder_beside(folder: str, name: str) -> str:
    """A folder of another name in the same place."""
    above, slash, _ = folder.rpartition("/")
    return f"{above}{slash}{name}"


# at the start of an uploader


def settle(spool: Spool, start: StartRecord, environ: Mapping[str, str] = os.environ) -> tuple[StartRecord, list[str]]:
    """Settle the folder of a run that is recorded for the destination of a start record, and record it.

    The start record of what is to be sent, and what the user has to know.
    """
    record = spool.record()
    if record is None:
        return start, []
    before, facts, settled = record.destination.path_in_repo, _facts(spool, start, record), list[str]()

    def register(owners: dict[str, str]) -> None:
        is_copy = _is_copy(spool, facts, owners.get(before))
        folder = folder_for(dataclasses.replace(facts, is_copy=is_copy), owners)
        if folder != before and (owner := owners.get(facts.asked)):
            settled.append(OWNED.format(facts.asked, owner, folder))
        settled.insert(0, folder)
        _take(folder, facts, owners)

    if not _change(start.destination, environ, register):
        return _with_folder(start, before), []
    folder, *notices = settled
    if (folder, facts.asked) != (before, record.asked):
        _record(spool, folder, facts.asked, is_needed=folder != before)
    return _with_folder(start, folder), notices


def _with_folder(start: StartRecord, folder: str) -> StartRecord:
    return dataclasses.replace(start, destination=dataclasses.replace(start.destination, path_in_repo=folder))


def _record(spool: Spool, folder: str, asked: str, *, is_needed: bool) -> None:
    try:
        spool.record_folder(folder, asked)
    except OSError:  # a full disk; without a record the next start asks again
        if is_needed:
            raise


def run_name(spool: Spool) -> str:
    """The name of a run, by which it is known to the others of this host; a logdir that may hang is not touched."""
    staged = MirrorRecord.read(spool)
    return staged.to if staged else os.path.realpath(spool.run_dir)


def _facts(spool: Spool, start: StartRecord, record: RunRecord) -> Facts:
    """What is known of a run; its ledger, which may be large, is not read where that changes nothing."""
    recorded = record.destination.path_in_repo
    asked = recorded if record.asked is None else record.asked
    is_divided = start.nodes.count > 1 and _is_local(spool)
    facts = Facts(run_name(spool), recorded, asked, bool(pulled_files(spool)), is_divided=is_divided)
    if record.asked is not None and spool.is_original():
        return dataclasses.replace(facts, is_settled=True)
    hosts = map(spool.host, spool.host_ids())
    has_arrived = any(host.in_flight.exists() for host in hosts) or ledger.load(spool, record.destination).has_arrived
    return dataclasses.replace(facts, has_arrived=has_arrived)


def _is_local(spool: Spool) -> bool:
    """Whether other hosts have no part in a spool, as far as its mount tells."""
    mount = filesystem.mount_of_descriptor(spool.directory.fd)
    return mount is not None and mount.is_local


def _is_copy(spool: Spool, facts: Facts, owner: str | None) -> bool:
    """Whether a run was copied from its owner's directory, which is still there: to move it would have kept it."""
    if owner in (None, facts.run) or not facts.has_arrived or spool.is_original():
        return False
    return owner is not None and stands(owner, spool.run_dir) is True


def _take(folder: str, facts: Facts, owners: dict[str, str]) -> None:
    """Note that a run goes to a folder; one that shares the folder on purpose does not become its owner."""
    owner = owners.get(folder, facts.run)
    if folder in list(owners)[: -MOST_OWNERS // 2]:  # so it is not among the next that are forgotten
        del owners[folder]
    owners[folder] = owner if facts.is_pulled or facts.is_divided else facts.run


def stands(run: str, beside: str) -> bool | None:
    """Whether there still is a run of this name; None if asking for it might hang: it is not on the mount of `beside`.

    That of a URL is not known either.
    """
    if is_url(run):
        return None
    table = filesystem.table()
    mount, ours = (filesystem.mount_unasked(path, table) for path in (run, beside))
    if mount is None or not (mount.is_local or (ours is not None and mount.point == ours.point)):
        return None
    return os.path.lexists(os.path.join(run, SPOOL_NAME))


# the registry


def owners_of(destination: Destination, environ: Mapping[str, str] = os.environ) -> Owners:
    """The owners of the folders of a branch, as far as they can be read; nothing is made, and no process waits."""
    folder, name = _place_of(destination, environ)
    return state.read(Registry, folder / name).owners


def can_settle(destination: Destination, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether there is a registry, so that two runs that begin now get a folder each."""
    return _change(destination, environ, lambda _: None)


def _place_of(destination: Destination, environ: Mapping[str, str]) -> tuple[Place, str]:
    where = normalised_endpoint(destination.endpoint), destination.repo_type, destination.repo_id, destination.revision
    return user_cache.folder_of("folders", environ), user_cache.name_of(*where, host_id())


def _change(destination: Destination, environ: Mapping[str, str], change: Callable[[dict[str, str]], None]) -> bool:
    """Change the owners of the folders of a branch; False if there is no cache, or its lock stays held."""
    folder, name = _place_of(destination, environ)
    for _ in _tries():
        try:
            with user_cache.locked(folder) as is_held:
                if is_held:
                    _rewrite(folder, name, change)
                    return True
        except OSError:
            return False
    return False


def _tries() -> Iterator[None]:
    end = time.monotonic() + LOCK_WAIT
    while True:
        yield
        if time.monotonic() > end:
            return
        time.sleep(LOCK_POLL)


def _rewrite(folder: Place, name: str, change: Callable[[dict[str, str]], None]) -> None:
    owners = state.read(Registry, folder / name).owners
    before = list(owners.items())
    change(owners)
    if list(owners.items()) == before:
        return
    newest = dict(list(owners.items())[-MOST_OWNERS:])
    disk.replace(folder / name, state.dump(Registry(newest)), "folders", durable=False)
    user_cache.forget(folder, before=time.time() - FORGOTTEN_AFTER)
