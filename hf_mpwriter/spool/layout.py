"""The layout of the spool: every path in it, and every name, both ways.

    runs/exp1/                                        run directory
      events.out.tfevents.1795233002.<host>.<pid>.<8 hex><suffix>
      rank_00001/events.out.tfevents....
      .hf_mpwriter/                                   spool, mode 0700                   written by
        FORMAT                                        "hf-mpwriter 3"                    the first worker
        run.json                                      {"destination": {...}}             the first with a destination
        uploader.lock                                 the uploader lock                  no process (empty)
        claims/<worker>.lock                          claims                             no process (empty)
        members/<worker>.<host>.<pid>.<ticks>-<n>     member file: lines, appended       that worker
        hosts/<host>/status.json                      heartbeat, phase, last failure     that host's uploader
        hosts/<host>/notices.json                     what the user should know          that host's uploader
        hosts/<host>/uploader.log                     rotating log                       that host's uploader
        hosts/<host>/outbox/00000042.json             batches                            that host's uploader
        hosts/<host>/outbox/copies/<sha256>           copies of attachments              that host's uploader
        hosts/<host>/in_flight.json                   the batch that is being sent       that host's uploader
        hosts/<host>/ledger.json                      ledger                             that host's uploader
        hosts/<host>/cache/                           of the Hub's client, if its own    the pushes
                                                      cannot be written

Invariants:
- To use a spool is to send a token to the endpoint in its `run.json`. So it is used only if no other user may write
  into it, or, with HF_MPWRITER_GROUP=1 on both sides, no other group; see `ownership`.
- Every file has one writing process. Lock files are never unlinked.
- FORMAT and run.json are published whole: of many racing workers one wins, the others read.
- Names of event files sort in time order within their directory: the ten-digit second is strictly greater than that
  of every event file already there, whatever the clock does; see `base/names`.
- No name in the spool contains `tfevents`: TensorBoard would open it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tempfile
from dataclasses import dataclass

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import DestinationError, LogdirError, SpoolFormatError
from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.base.settings import Destination, group_access
from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.system import disk, sharing
from hf_mpwriter.system.process import Process

FORMAT = "hf-mpwriter 3"
_MEMBER_NAME = re.compile(r"(?P<worker>[\w~-]+)\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.(?P<ticks>\d+)-(?P<n>\d+)")


@dataclass(frozen=True)
class MemberName:
    """The name of a member file: it names the worker that writes it."""

    worker: str
    host: str
    pid: int
    ticks: int
    n: int

    def __str__(self) -> str:
        """The file name."""
        return f"{self.worker}.{self.host}.{self.pid}.{self.ticks}-{self.n}"

    @classmethod
    def parse(cls, name: str) -> MemberName | None:
        """The name of a file, None if it is not a member file."""
        match = _MEMBER_NAME.fullmatch(name)
        if match is None:
            return None
        return cls(match["worker"], match["host"], int(match["pid"]), int(match["ticks"]), int(match["n"]))

    @classmethod
    def of(cls, worker: str, process: Process, n: int) -> MemberName:
        """Name of the n-th member file of a process."""
        return cls(worker, process.host, process.pid, process.ticks, n)


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` holds."""

    destination: Destination


@dataclass(frozen=True)
class HostSpool:
    """The files of one host's uploader."""

    root: str

    @property
    def status(self) -> str:
        """The status of the uploader."""
        return os.path.join(self.root, "status.json")

    @property
    def notices(self) -> str:
        """What the user should know."""
        return os.path.join(self.root, "notices.json")

    @property
    def log(self) -> str:
        """Log of the uploader and its pushes."""
        return os.path.join(self.root, "uploader.log")

    @property
    def outbox(self) -> str:
        """Directory of the batches."""
        return os.path.join(self.root, "outbox")

    @property
    def copies(self) -> str:
        """Directory of the copies of attachments."""
        return os.path.join(self.outbox, "copies")

    @property
    def cache(self) -> str:
        """Directory for what the Hub's client cannot keep in the user's home."""
        return os.path.join(self.root, "cache")

    @property
    def in_flight(self) -> str:
        """The record of the batch that is being sent."""
        return os.path.join(self.root, "in_flight.json")

    @property
    def ledger(self) -> str:
        """The ledger."""
        return os.path.join(self.root, "ledger.json")


@dataclass(frozen=True)
class Spool:
    """The spool of one run directory.

    Attributes:
        run_dir: absolute path.
        place: absolute path of the spool if it is not in the run directory, else "".
    """

    run_dir: str
    place: str = ""

    @property
    def root(self) -> str:
        """Directory of the spool."""
        return self.place or os.path.join(self.run_dir, SPOOL_NAME)

    def aside(self) -> Spool:
        """A spool of this user's own for the same run directory, on this host; it has no destination."""
        own = os.path.join(tempfile.gettempdir(), f"{SPOOL_NAME.lstrip('.')}-{os.geteuid()}")
        disk.make_dirs(own, private=True)
        check_ownership(own)
        return Spool(self.run_dir, os.path.join(own, hashlib.sha256(os.fsencode(self.run_dir)).hexdigest()[:16]))

    @property
    def uploader_lock(self) -> str:
        """The lock of the uploader."""
        return os.path.join(self.root, "uploader.lock")

    @property
    def members(self) -> str:
        """Directory of the member files."""
        return os.path.join(self.root, "members")

    @property
    def hosts(self) -> str:
        """Directory of the hosts."""
        return os.path.join(self.root, "hosts")

    def claim(self, worker: str) -> str:
        """The lock of a worker's name."""
        return os.path.join(self.root, "claims", f"{worker}.lock")

    def member_file(self, name: MemberName) -> str:
        """Path of a member file."""
        return os.path.join(self.members, str(name))

    def host(self, host_id: str) -> HostSpool:
        """The files of a host's uploader."""
        return HostSpool(os.path.join(self.hosts, host_id))

    def host_ids(self) -> list[str]:
        """The hosts that have had an uploader here."""
        return sorted(os.listdir(self.hosts)) if os.path.isdir(self.hosts) else []

    def exists(self) -> bool:
        """Whether a worker has created it."""
        return os.path.exists(os.path.join(self.root, "FORMAT"))

    def is_unfinished(self, endpoint: str) -> bool:
        """Whether a worker lives here, or died before all its bytes were on the Hub.

        Args:
            endpoint: runs for another Hub do not count.
        """
        try:
            self.check_format()
            destination = self.destination()
            ours = destination is not None and destination.endpoint == endpoint
            return ours and any(map(MemberName.parse, os.listdir(self.members)))
        except (OSError, SpoolFormatError):
            return False

    def is_private(self) -> bool:
        """Whether run directory and spool belong to this user, and no other user may write into the spool."""
        try:
            places = [os.lstat(self.run_dir), os.lstat(self.root)]
        except OSError:
            return False
        owned = all(place.st_uid == os.geteuid() and stat.S_ISDIR(place.st_mode) for place in places)
        return owned and not places[1].st_mode & (stat.S_IWGRP | stat.S_IWOTH)

    def create(self) -> None:
        """Create the spool, or check its format; any number of processes may do so at once.

        Raises:
            LogdirError: the run directory cannot be created or written.
            ForeignSpoolError: see `check_ownership`.
            SpoolFormatError: the spool belongs to another version.
        """
        check_ownership(self.root)
        self.check_format()
        try:
            os.makedirs(self.run_dir, exist_ok=True)
            disk.make_dirs(self.root, private=True)  # the directories of projects are often setgid
            for directory in (os.path.join(self.root, "claims"), self.members, self.hosts):
                disk.make_dirs(directory, durable=False)  # they are together with FORMAT
            disk.publish(os.path.join(self.root, "FORMAT"), f"{FORMAT}\n".encode(), "spool.format")
            if group_access() and not sharing.is_shared(os.stat(self.root)):
                self._open_to_group()
        except (FileExistsError, NotADirectoryError) as error:
            raise LogdirError(
                f"The logdir {self.run_dir!r} cannot be a directory: {error.filename!r} is a file.",
                hint="Give another logdir, or move that file away.",
            ) from error
        except OSError as error:
            raise self._cannot_be_written(error) from error
        self.check_format()

    def _cannot_be_written(self, error: OSError) -> LogdirError:
        return LogdirError(
            f"The logdir {self.run_dir!r} cannot be written: {error.strerror}.", hint="Give another logdir."
        )

    def _open_to_group(self) -> None:
        """Let the group of the run directory log here and upload."""
        top = os.stat(self.run_dir)
        with contextlib.suppress(PermissionError):  # it belongs to another user, who has decided
            os.chmod(self.run_dir, stat.S_IMODE(top.st_mode) | sharing.SHARED_DIR)
        sharing.share_tree(self.root, top.st_gid)

    def check_format(self) -> None:
        """Refuse a spool that another version wrote.

        Raises:
            SpoolFormatError: it names the version that is needed.
        """
        try:
            found = disk.read(os.path.join(self.root, "FORMAT"))
        except OSError:  # a file in the place of a directory: `create` has the better message
            return
        if found is not None and found.decode(errors="replace").strip() != FORMAT:
            raise SpoolFormatError(
                f"{self.root} has the format {found[:40].decode(errors='replace').strip()!r}, not {FORMAT!r}.",
                hint="Use the version of hf_mpwriter that wrote it, or another logdir.",
            )

    def record_destination(self, destination: Destination) -> None:
        """Write the destination into run.json; if one is recorded, check that it is the same.

        Raises:
            LogdirError: the disk refuses it.
            DestinationError: the run directory belongs to another destination.
        """
        try:
            disk.publish(self._run_json, state.dump(RunRecord(destination)), "spool.run")
        except OSError as error:
            raise self._cannot_be_written(error) from error
        recorded = self.destination()
        if recorded != destination:
            raise DestinationError(
                f"{self.run_dir} is recorded for {recorded}, not for {destination}.",
                hint="Use another logdir for another destination, or the recorded one: hf-mpwriter status LOGDIR.",
            )

    @property
    def _run_json(self) -> str:
        return os.path.join(self.root, "run.json")

    def has_destination(self) -> bool:
        """Whether a destination is recorded, even if it cannot be read."""
        return os.path.lexists(self._run_json)

    def destination(self) -> Destination | None:
        """The recorded destination, None for a local run.

        Raises:
            ForeignSpoolError: see `check_ownership`.
            SpoolFormatError: run.json is damaged.
        """
        check_ownership(self.root)
        try:
            data = disk.read(self._run_json)
            return None if data is None else state.load(RunRecord, data).destination
        except (state.DamagedError, OSError) as error:
            raise SpoolFormatError(
                f"{self._run_json} is damaged: {error}.", hint="Remove that file; the next start writes it again."
            ) from error
