"""Losses: the records of a run that the disk has refused for good, until a person has seen it.

    members/<worker>.<host>.<pid>.<ticks>-<n>         a member file counts what its worker has lost, see `member_lines`
    members/<worker>.<host>.<pid>.<ticks>-<n>.lost    the same file, once nothing else needs it
    seen_losses.json    {"seen": {"main.<host>.<pid>.<ticks>-1": 209}}          how much of each a person has seen

    runs/exp1/_lost/<worker>.<host>.<pid>.<ticks>-<n>.<records>.json            a `Loss`, for those who pull the run
    {"file": "main.<host>.<pid>.<ticks>-1", "worker": "main", "host": ..., "records": 209, ...}

Who removes a member file that counts a loss renames it instead. The uploader, or `hf-mpwriter status --seen`, writes
what is counted into the run directory, and then removes what was kept. From there it is sent like an attachment. A
count that has grown is another file: an attachment that changes does not come where it was pulled before.

Invariant: a count is known by the name of its member file. So it counts once however often it is found, no kill between
two steps loses it, and what a person has seen stays seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from hf_mpwriter.base import state
from hf_mpwriter.base.names import LOSS_DIRECTORY, is_worker
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.member_lines import Member, MemberName, Reading
from hf_mpwriter.spool.workers.members import LOST, Members, lost_file
from hf_mpwriter.system import disk
from hf_mpwriter.system.interrupts import suppress
from hf_mpwriter.system.redaction import printable

MOST = 1000  # files of a run directory that are read
LAST_SECOND = 1 << 40  # unix time, of a loss, which can be printed


@dataclass(frozen=True)
class Loss:
    """What one worker has lost, and nobody has seen."""

    file: str  # name of its member file
    worker: str
    host: str  # id of its host, without the digits of the machine
    pid: int
    records: int
    is_exact: bool  # False if some waited in memory when it was killed: these may have been written
    since: float  # unix time
    why: str  # what the disk said, "" if that is not known

    @property
    def path(self) -> str:
        """Its file in the run directory."""
        return f"{LOSS_DIRECTORY}/{self.file}.{self.records}.json"

    def is_beyond(self, known: Mapping[str, Loss]) -> bool:
        """Whether it is more than is known of its worker."""
        return self.file not in known or known[self.file].records < self.records


@dataclass(frozen=True)
class SeenLosses:
    """What a person has seen."""

    seen: dict[str, int] = field(default_factory=dict)  # records, per name of a member file


def losses(spool: Spool, members: Iterable[Member] | None = None) -> list[Loss]:
    """What was lost and nobody has seen; `members` as they were just read."""
    counted = _counted([*(Members(spool).all() if members is None else members), *_kept(spool)])
    found = _written(spool)  # which is read behind what may become it
    found |= {loss.file: loss for loss in counted if loss.is_beyond(found)}
    seen = _seen(spool)
    unseen = (replace(loss, records=loss.records - seen.get(name, 0)) for name, loss in sorted(found.items()))
    return [loss for loss in unseen if loss.records > 0]


def note_seen(spool: Spool) -> None:
    """Note that a person has seen what was lost so far; OSError if the disk refuses."""
    write_down(spool, Members(spool).all())
    if seen := {name: loss.records for name, loss in _written(spool).items()}:
        disk.replace(spool.directory / "seen_losses.json", state.dump(SeenLosses(seen)), "losses.seen")


def write_down(spool: Spool, members: Iterable[Member]) -> None:
    """Write what was lost into the run directory; OSError if the disk refuses."""
    kept = list(_kept(spool))
    lost = _counted([*members, *kept])
    known = _written(spool) if lost else {}
    for loss in lost:
        if loss.is_beyond(known):
            place = spool.run / loss.path
            disk.make_dirs(place.parent, 0o777)
            disk.replace(place, state.dump(loss), "losses.written")
    for one in kept:
        disk.remove(lost_file(spool.members / str(one.name)), "members.lost")


def _seen(spool: Spool) -> dict[str, int]:
    return state.read(SeenLosses, spool.directory / "seen_losses.json").seen


def _counted(members: Iterable[Member]) -> list[Loss]:
    """What member files count; the last one of a name is what has become of the others."""
    return list({str(one.name): _loss(one) for one in members if one.lost and is_worker(one.name.worker)}.values())


def _loss(member: Member) -> Loss:
    name, is_exact = member.name, member.alive or not member.in_memory
    host = name.host.rpartition("-")[0]
    return Loss(str(name), name.worker, host, name.pid, member.lost, is_exact, member.since, member.why)


def _written(spool: Spool) -> dict[str, Loss]:
    """What was written down here, or on a machine from which the run was pulled: the most per member file."""
    names, found = list[str](), dict[str, Loss]()
    with suppress(OSError):
        names = (spool.run / LOSS_DIRECTORY).scan(most=MOST)[1]
    for path in (f"{LOSS_DIRECTORY}/{name}" for name in names):
        with suppress(OSError, state.DamagedError):
            loss = state.load(Loss, disk.read(spool.run / path) or b"")
            name, is_whole = MemberName.parse(loss.file), path == loss.path and 0 <= loss.since < LAST_SECOND
            if name is not None and is_whole and loss.is_beyond(found):
                host = name.host.rpartition("-")[0]
                found[loss.file] = replace(loss, worker=name.worker, host=host, pid=name.pid, why=printable(loss.why))
    return found


def _kept(spool: Spool) -> Iterator[Member]:
    """The member files that were kept for their counts."""
    names = list[str]()
    with suppress(FileNotFoundError, NotADirectoryError):
        names = spool.members.names()
    for name in names:
        if name.endswith(LOST) and (parsed := MemberName.parse(name.removesuffix(LOST))) is not None:
            found, path = Reading(parsed), spool.members / name
            with suppress(OSError):
                found.read(path)
            if found.member is not None:
                yield found.member
