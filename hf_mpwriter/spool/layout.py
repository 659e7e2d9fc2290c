"""The layout of the spool: every place in it, and every name, both ways.

    runs/exp1/                                        run directory
      events.out.tfevents.1795233002.<host>.<pid>.<8 hex><suffix>
      rank_00001/events.out.tfevents....
      .hf_mpwriter/                                   spool, mode 0700                   written by
        FORMAT                                        "hf-mpwriter 6"                    the first worker
        run.json                                      the destination                    see below
        <kind>.lock                                   that of the uploader, the mirror   no process (empty)
        claims/<worker>.lock                          claims; a note                     see worker/rewind
        members/<worker>.<host>.<pid>.<ticks>-<n>     member file: lines, appended       that worker
        reporter.lock                                 lock of who tells the user         no process (empty)
        told.json                                     what the user was told             the reporter
        ranks.lock                                    lock of `hf-mpwriter ranks`        no process (empty)
        pull.lock                                     lock of the pulls                  no process (empty)
        follow.lock                                   that of `pull --follow`            no process (empty)
        pulled.json                                   what came from the Hub             the holder of that lock
        pulling/                                      the file on its way from the Hub   the holder of that lock
        hosts/<host>/<kind>_status.json               heartbeat, starts, notices, deaths the holder of that lock
        hosts/<host>/<kind>.log                       rotating log                       that host's daemon
        hosts/<host>/sampler.lock                     that of the sampler of a host      no process (empty)
        hosts/<host>/told.json                        the same of a node without it      the node's first rank
        hosts/<host>/outbox/00000042.json             batches                            that host's uploader
        hosts/<host>/outbox/copies/<sha256>           copies of attachments              that host's uploader
        hosts/<host>/in_flight.json                   the batch that is being sent       that host's uploader
        hosts/<host>/ledger.json                      ledger                             that host's uploader
        hosts/<host>/cache/                           if the client's own is read-only   the pushes

    run.json    {"destination": {...}, "asked": "tensorboard/lr0.1", "inode": 131073}    of the spool

    the first with a destination    publishes it; `asked` is null
    the holder of the uploader lock settles the folder, see `uploader/folders`, and replaces it

Writers go on to ask for the folder that they name themselves; all others use the one that is recorded.

Invariants:
- To use a spool is to send a token to the endpoint in its `run.json`. So it is used only if it is this user's and no
  other user may write into it; see `ownership`.
- Run directory and spool are opened once, and all is reached beneath their descriptors: who may rename in the run
  directory, as its group often may, puts no other spool in place of this one.
- A run directory has the name of a spool before its first event file, also where the spool is elsewhere: so no run
  above takes it for a part of its own.
- Every file has one writing process. Lock files are never unlinked.
- FORMAT and run.json are published whole: of many racing workers one makes them, the others read. Either counts as not
  there while it is empty or ends too soon, as some filesystems leave it when the power fails. The inode in run.json is
  that of the spool, so a copy, or what was unpacked from an archive, has another one.
- No name in the spool contains `tfevents`: TensorBoard would open it.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from dataclasses import dataclass
from typing import NamedTuple

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import (
    DestinationError,
    ForeignSpoolError,
    HfMpWriterError,
    LogdirError,
    SpoolFormatError,
)
from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.storage import STAGING_VARIABLE, is_of_others
from hf_mpwriter.base.words import as_path, typed
from hf_mpwriter.spool import ownership
from hf_mpwriter.spool.ownership import check_descriptor, check_ownership
from hf_mpwriter.spool.workers.member_lines import MemberName
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Directory, Place, at
from hf_mpwriter.system.filesystem import nearest, reason_of
from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.system.process import host_id

FORMAT = "hf-mpwriter 6"
FORMAT_NAME, RUN_JSON = "FORMAT", "run.json"


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` holds."""

    destination: Destination  # where the run goes
    asked: str | None = None  # the folder in the repository that its writers ask for; None until it is settled
    inode: int = 0  # of the spool in which it was written; a copy has another one

    def __post_init__(self) -> None:
        if self.asked is not None and not _can_stand_for(self.destination.path_in_repo, self.asked):
            raise ValueError("the folder is neither beside the one that was asked for, nor of its name and below")

    @property
    def wanted(self) -> Destination:
        """What its writers ask for."""
        return (
            self.destination if self.asked is None else dataclasses.replace(self.destination, path_in_repo=self.asked)
        )

    def is_for(self, other: Destination) -> bool:
        """Whether a run goes where its record says that is asked to go somewhere."""
        return self.destination.is_same(other) or self.wanted.is_same(other)


def _can_stand_for(folder: str, asked: str) -> bool:
    """Whether a run may go to a folder that asks for another: beside it, or of its name and deeper."""
    above, slash, name = asked.rpartition("/")
    is_below = folder.startswith(above + slash) and folder.endswith(f"/{name}")
    return folder.rpartition("/")[0] == above or is_below


def no_directory(run_dir: str, error: OSError) -> LogdirError:
    """The refusal of a run directory where something else is in the way: what an error names, or what is above it."""
    path = error.filename or ""
    while os.path.isabs(path) and not os.path.lexists(path):
        path = os.path.dirname(path)
    what = "a link" if os.path.islink(path) else "a file"
    text = f"The logdir {run_dir!r} cannot be a directory: {path!r} is {what}."
    return LogdirError(text, hint="Give another logdir, or move that file away.")


def without_locks(run_dir: str) -> LogdirError:
    """The refusal of a run directory on a filesystem without locks that is not known as one."""
    hint = f"Set {STAGING_VARIABLE} to a directory on a local disk, or mount it with locks."
    return LogdirError(f"The filesystem of {run_dir!r} has no file locks.", hint=hint)


def unwritable(run_dir: str, error: OSError) -> LogdirError:
    """The refusal of a run directory in which nothing can be made."""
    if error.errno in (errno.ENOLCK, errno.ENOSYS):
        return without_locks(run_dir)
    return LogdirError(f"The logdir {run_dir!r} cannot be written: {reason_of(error)}.", hint="Give another logdir.")


def unusable(place: Place, error: Exception) -> HfMpWriterError:
    """The refusal of a file of ours that cannot be read; it is to be removed only if something else is in its place."""
    if isinstance(error, OSError) and not (state.is_damage(error) and place.mode()):  # gone mounts answer as sockets do
        return LogdirError(f"{place} cannot be read: {reason_of(error)}.")
    return SpoolFormatError(f"{place} is damaged: {error}.", hint="Remove that file; the next start writes it again.")


@dataclass(frozen=True)
class RunPaths:
    """Where a run is, as a process is told that gets descriptors of its directories."""

    run_dir: str  # absolute path
    spool: str = ""  # absolute path of the spool, "" if it lies in the run directory
    logdir: str = ""  # path or URL by which its user names the run, "" for the run directory


class DaemonFiles(NamedTuple):
    """The files of the uploader, the mirror or the sampler of one host."""

    status: Place  # what it publishes about itself
    log: Place  # of it, and of what it starts


class HostSpool:
    """The files of one host."""

    def __init__(self, root: Place) -> None:
        self.root = root
        self.told = root / "told.json"  # by the first rank of this node, where the reporter is on another one
        self.outbox = root / "outbox"  # directory of the batches
        self.copies = self.outbox / "copies"  # directory of the copies of attachments
        self.cache = root / "cache"  # directory for what the Hub's client, which knows it by its path, cannot keep
        self.in_flight = root / "in_flight.json"  # the record of the batch that is being sent
        self.ledger = root / "ledger.json"

    def daemon(self, kind: str) -> DaemonFiles:
        """The files of its daemon of a kind, see `system/launch`."""
        return DaemonFiles(self.root / f"{kind}_status.json", self.root / f"{kind}.log")


class Spool:
    """The spool of one run directory. Both are opened at the first use and held from then on."""

    def __init__(self, run_dir: str, run: Directory | None = None, aside: Place | None = None) -> None:
        self.run_dir = self.logdir = run_dir
        self.run = run or Directory(run_dir)  # the run directory, if it is held already
        path, above = (str(aside), aside.directory) if aside else (os.path.join(run_dir, SPOOL_NAME), self.run)
        # of the spool; opened only if it passes `check_ownership`
        self.directory = Directory(path, above=above, check=check_descriptor)
        self.uploader_lock = self.directory / "uploader.lock"
        self.reporter_lock = self.directory / "reporter.lock"  # of the process that tells what becomes of the run
        self.told = self.directory / "told.json"  # what was told
        self.members = self.directory / "members"  # directory of the member files
        self.hosts = self.directory / "hosts"  # directory of the hosts
        self.claims = self.directory / "claims"  # directory of the claims

    def __reduce__(self) -> tuple[object, tuple[str, str, str]]:
        """Travel as the paths; the directories are opened again on arrival."""
        return Spool.of, (self.run_dir, self.root, self.logdir)

    @property
    def paths(self) -> RunPaths:
        """What leads another process to this run."""
        return RunPaths(self.run_dir, self.root, self.logdir)

    @classmethod
    def of(cls, run_dir: str, root: str = "", logdir: str = "") -> Spool:
        """The spool of a run by its paths."""
        spool = cls(run_dir, aside=at(root) if root not in ("", os.path.join(run_dir, SPOOL_NAME)) else None)
        spool.logdir = logdir or run_dir
        return spool

    @classmethod
    def adopt(cls, paths: RunPaths, run_fd: int, spool_fd: int) -> Spool:
        """The spool of inherited descriptors of run directory and spool, which become ours."""
        spool = cls.of(paths.run_dir, paths.spool, paths.logdir)
        spool.run.adopt(run_fd)
        spool.directory.adopt(spool_fd)
        return spool

    @property
    def root(self) -> str:
        """Path of the spool, for messages and for what is started from it."""
        return self.directory.path

    def refresh(self) -> None:
        """Let go of a run directory or spool that was deleted, moved or replaced; the next use opens what is there.

        While its mount is away it is none of that, and what is beneath is not opened in its place.
        """
        gone = [held for held in (self.run, self.directory) if held.is_held and not held.is_at_path()]
        for directory in gone if gone and not self.is_away() else ():
            directory.release()

    def is_away(self) -> bool:
        """Whether the run directory's mount was taken away: another filesystem is at its path, and no spool on it."""
        try:
            return self.run.device not in (None, nearest(self.run_dir)[1].st_dev) and not os.path.lexists(self.root)
        except ours(OSError):
            return False

    def release(self) -> None:
        """Let go of both directories; the next use opens them again."""
        self.directory.release()
        self.run.release()

    def lock_of(self, kind: str) -> Place:
        """The lock of a daemon: a run has one uploader and one mirror, each host a sampler of its own."""
        return (self.host(host_id()).root if kind == "sampler" else Place(self.directory)) / f"{kind}.lock"

    def claim(self, worker: str) -> Place:
        """The lock of a worker's name."""
        return self.claims / f"{worker}.lock"

    def host(self, host_id: str) -> HostSpool:
        """The files of a host's uploader."""
        return HostSpool(self.hosts / host_id)

    def host_ids(self) -> list[str]:
        """The hosts that have had an uploader here."""
        try:
            return sorted(self.hosts.names())
        except ours(FileNotFoundError, NotADirectoryError):
            return []

    def exists(self) -> bool:
        """Whether a worker has created it."""
        return (self.directory / FORMAT_NAME).exists()

    def is_unfinished(self, endpoint: str) -> bool:
        """Whether a worker lives here, or died before all its bytes were on the Hub."""
        try:
            self.check_format()
            destination = self.destination()
            is_here = destination is not None and destination.is_at(endpoint)
            return is_here and any(map(MemberName.parse, self.members.names()))
        except ours(OSError, SpoolFormatError):
            return False

    def is_original(self) -> bool:
        """Whether it is where its destination was recorded; False for what was copied, or unpacked from an archive."""
        record = self.record()
        return record is not None and record.inode == os.fstat(self.directory.fd).st_ino

    def is_private(self) -> bool:
        """Whether run directory and spool belong to this user, and no other user may write into the spool."""
        run = self.run if self.directory.above is self.run else self.directory  # elsewhere, owners may tell nothing
        return ownership.is_private(run, self.directory)

    def create(self) -> bool:
        """Create the spool, or check its format; any number of processes may do so at once.

        Whether it was not there, and so this call has had a lock there.
        """
        self.refresh()
        check_ownership(self.directory)
        was_made = self.directory.is_held and self._has_format()
        makes = False
        try:
            if not self.run.is_held:
                os.makedirs(self.run_dir, exist_ok=True)
            self._mark_run()
            disk.make_dirs(Place(self.directory))
            with Place(self.directory).entered() as spool:
                for name in ("claims", "members", "hosts"):
                    disk.make_dirs(spool / name, durable=False)  # they are together with FORMAT
                if not was_made:
                    if not locks.work_in(spool):
                        raise without_locks(self.run_dir)
                    makes = disk.publish(spool / FORMAT_NAME, f"{FORMAT}\n".encode(), "spool.format", _is_format)
        except LogdirError:
            raise
        except ours(OSError) as error:
            is_file = isinstance(error, FileExistsError | NotADirectoryError)
            if ownership.others_may_write(self.run) and (is_file or error.errno in (errno.ELOOP, errno.ENOENT)):
                text = f"{self.root} cannot be used: {error.strerror}. Other users may write into {self.run_dir}."
                hint = f"Remove what is there; to keep others out: {typed('chmod', 'go-w', as_path(self.run_dir))}"
                raise ForeignSpoolError(text, hint=hint) from error
            if is_file:
                raise no_directory(self.run_dir, error) from error
            raise unwritable(self.run_dir, error) from error
        if not was_made and not makes:  # another process was faster
            self.check_format()
        return not was_made

    def _mark_run(self) -> None:
        """Leave the name of a spool, an empty directory, where the spool is elsewhere; in no folder of another user."""
        if self.directory.above is not self.run and not is_of_others(self.root):
            disk.make_dirs(self.run / SPOOL_NAME)

    def check_format(self) -> None:
        """Refuse a spool that another version wrote."""
        self._has_format()

    def _has_format(self) -> bool:
        """Whether FORMAT is there, and ours. Of one that was torn the rest is written by the next worker."""
        try:
            found = disk.read(self.directory / FORMAT_NAME)
        except ForeignSpoolError:
            raise
        except ours(OSError):  # a file in the place of a directory: `create` has the better message
            return False
        if found is None or not _is_format(found):
            return False
        if found.decode(errors="replace").strip() != FORMAT:
            raise SpoolFormatError(
                f"{self.root} has the format {found[:40].decode(errors='replace').strip()!r}, not {FORMAT!r}.",
                hint="Use the version of hf_mpwriter that wrote it, or another logdir.",
            )
        return True

    def record_destination(self, destination: Destination, asked: str | None = None) -> Destination:
        """Write the destination into run.json, unless one is recorded: then check that it is the same.

        Where the run goes: its folder may be another one than is asked for. `asked`: see `RunRecord`.
        """
        recorded = self.record()
        if recorded is None:
            try:
                with Place(self.directory).entered() as inside:
                    record = state.dump(RunRecord(destination, asked, inside.stat().st_ino))
                    disk.publish(inside / RUN_JSON, record, "spool.run", _is_whole)
            except ours(OSError) as error:
                raise unwritable(self.run_dir, error) from error
            recorded = self.record()
        if recorded is None or destination not in (recorded.destination, recorded.wanted):
            hint = "Use another logdir. Or let this run begin there anew, with all that was logged, when its processes "
            hint += f"have ended: {typed('rm', '-r', as_path(self.root))}"
            there = recorded and recorded.destination
            raise DestinationError(f"{self.run_dir} is recorded for {there}, not for {destination}.", hint=hint)
        return recorded.destination

    def record_folder(self, folder: str, asked: str) -> None:
        """Record where the run goes whose writers ask for a folder; the holder of the uploader lock does."""
        if (recorded := self.record()) is not None:
            destination = dataclasses.replace(recorded.destination, path_in_repo=folder)
            settled = dataclasses.replace(recorded, destination=destination, asked=asked)
            for name in Place(self.directory).names():  # of killed uploaders; a worker that is late needs none
                if name.startswith(f".{RUN_JSON}.") and name.endswith(".tmp"):
                    with suppress(FileNotFoundError):
                        (self.directory / name).unlink()
            disk.replace(self.directory / RUN_JSON, state.dump(settled), "spool.folder")

    def has_destination(self) -> bool:
        """Whether a destination is recorded, even if it cannot be read."""
        return (self.directory / RUN_JSON).exists()

    def destination(self) -> Destination | None:
        """Where the run goes, None for a local run."""
        record = self.record()
        return None if record is None else record.destination

    def destination_of(self, asked: Destination) -> Destination:
        """Where the run goes whose writers ask for a destination, as far as that can be read."""
        try:
            record = self.record()
        except ours(HfMpWriterError, OSError):
            return asked
        return record.destination if record is not None and asked == record.wanted else asked

    def record(self) -> RunRecord | None:
        """What is recorded, None for a local run."""
        check_ownership(self.directory)
        try:
            data = disk.read(self.directory / RUN_JSON)
            return state.load(RunRecord, data) if data is not None and _is_whole(data) else None
        except ours(state.DamagedError, OSError) as error:
            raise unusable(self.directory / RUN_JSON, error) from error


def _is_format(found: bytes) -> bool:
    """Whether what was found is a FORMAT, of whatever version, and not the beginning of ours."""
    return found == FORMAT.encode() or not FORMAT.encode().startswith(found)


def _is_whole(found: bytes) -> bool:
    """Whether what was found in the place of run.json is neither empty nor ends too soon."""
    try:
        json.loads(found)
    except ours(ValueError, RecursionError):
        return bool(found) and not found.startswith(b"{")
    return True
