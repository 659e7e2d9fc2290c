"""Losses: the records of a run that the disk has refused for good, until a person has seen it.

    members/<worker>.<host>.<pid>.<ticks>-<n>         a member file counts what its worker has lost, see `member_lines`
    members/<worker>.<host>.<pid>.<ticks>-<n>.lost    the same file, once nothing else needs it
    seen_losses.json    {"seen": {"main.<host>.<pid>.<ticks>-1": 209}}          how much of each a person has seen

    runs/exp1/_lost/<worker>.<host>.<pid>.<ticks>-<n>.<records>.json            a `Loss`, for those who pull the run
    {"file": "main.<host>.<pid>.<ticks>-1", "worker": "main", "host": ..., "records": 209, ...}

Who removes a member file that counts a loss renames it instead. The uploader, or `hf-mpwriter status --seen`, writes
what is counted into the run directory, and then removes what was kept. From there it is sent like an attachment. A
count that has grown is another file: an attachment that changes does not come where it was pulled before.

Of a worker that lives, a count that has doubled is written down, and the last one when it has ended: a disk may refuse
a record at each step of a long run.

Invariant: a count is known by the name of its member file, or of the first of those that it says again. So it counts
once however often it is found, no kill between two steps loses it, and what a person has seen stays seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from hf_mpwriter.base import state
from hf_mpwriter.base.names import LOSS_DIRECTORY, is_loss, is_worker
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.member_lines import WHY_LENGTH, Member, MemberName, Reading
from hf_mpwriter.spool.workers.members import LOST, Members, lost_file
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import suppress
from hf_mpwriter.system.process import Process
from hf_mpwriter.system.redaction import printable

MOST = 1000  # files of a run directory that are read: those of the greatest counts
MOST_NAMES = 100_000  # that are listed of that folder
LARGEST = 1 << 12  # bytes of one
LAST_SECOND = 1 << 40  # unix time, of a loss, which can be printed


@dataclass(frozen=True)
class Loss:
    """What one worker has lost, and no person has seen."""

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
    """What was lost and no person has seen; `members` as they were just read."""
    seen = _seen(spool)
    found = _all(spool, Members(spool).all() if members is None else members)
    unseen = (replace(loss, records=loss.records - seen.get(name, 0)) for name, loss in sorted(found.items()))
    return [loss for loss in unseen if loss.records > 0]


def note_seen(spool: Spool) -> None:
    """Note that a person has seen what was lost so far; OSError if the disk refuses."""
    members = Members(spool).all()
    write_down(spool, members)
    seen = _seen(spool)
    if found := _all(spool, members):
        seen |= {name: max(loss.records, seen.get(name, 0)) for name, loss in found.items()}
        disk.replace(spool.directory / "seen_losses.json", state.dump(SeenLosses(seen)), "losses.seen")


def write_down(spool: Spool, members: Iterable[Member]) -> None:
    """Write what was lost into the run directory; OSError if the disk refuses."""
    kept, members = (list(filter(_is_settled, found)) for found in (_kept(spool), members))
    living = {_name(one) for one in members if one.alive} - {_name(one) for one in kept}  # the look may be an old one
    lost = _counted([*members, *kept])
    known = _written(spool) if lost else {}
    for name, loss in lost.items():
        least = known[name].records * (2 if name in living else 1) if name in known else 0
        if loss.is_beyond(known) and loss.records >= least:
            place = spool.run / loss.path
            disk.make_dirs(place.parent, 0o777)
            disk.replace(place, state.dump(loss), "losses.written")
    for one in kept:
        disk.remove(lost_file(spool.members / str(one.name)), "members.lost")


def _all(spool: Spool, members: Iterable[Member]) -> dict[str, Loss]:
    """What is counted, and what is written down, which is read behind what may become it."""
    counted = _counted([*members, *_kept(spool)])
    found = _written(spool)
    return found | {name: loss for name, loss in counted.items() if loss.is_beyond(found)}


def _seen(spool: Spool) -> dict[str, int]:
    return state.read(SeenLosses, spool.directory / "seen_losses.json").seen


def _counted(members: Iterable[Member]) -> dict[str, Loss]:
    """What member files count: the most of those that say the same."""
    found = dict[str, Loss]()
    for one in members:
        if one.lost and is_worker(one.name.worker) and (loss := _loss(one)).is_beyond(found):
            found[loss.file] = loss
    return found


def _is_settled(member: Member) -> bool:
    """Whether its count can only grow: what waits in memory is not lost if its process goes on under another name."""
    return member.alive or not member.in_memory or member.process != Process.of(member.process.pid)


def _name(member: Member) -> str:
    """By which its count is known."""
    return member.says_again if MemberName.parse(member.says_again) else str(member.name)


def _loss(member: Member) -> Loss:
    name, is_exact = member.name, member.alive or not member.in_memory
    host = name.host.rpartition("-")[0]
    return Loss(_name(member), name.worker, host, name.pid, member.lost, is_exact, member.since, member.why)


def _written(spool: Spool) -> dict[str, Loss]:
    """What was written down here, or on a machine from which the run was pulled: the most per member file."""
    names, most, found = list[str](), dict[str, int](), dict[str, Loss]()
    with suppress(OSError):
        names = (spool.run / LOSS_DIRECTORY).scan(most=MOST_NAMES)[1]
    for name in names:
        if is_loss(f"{LOSS_DIRECTORY}/{name}"):
            member_file, records, _ = name.rsplit(".", 2)
            most[member_file] = max(int(records), most.get(member_file, 0))
    for member_file in sorted(most, key=most.__getitem__, reverse=True)[:MOST]:
        with suppress(OSError, state.DamagedError):
            loss = _read(spool.run / LOSS_DIRECTORY / f"{member_file}.{most[member_file]}.json")
            if (loss.file, loss.records) == (member_file, most[member_file]) and 0 <= loss.since < LAST_SECOND:
                found[member_file] = loss
    return found


def _read(place: Place) -> Loss:
    """What anybody may have written; OSError or DamagedError if it is not a loss."""
    (data,) = disk.read_ranges(place, (0, LARGEST))
    loss, name = state.load(Loss, data), MemberName.parse(place.basename.rsplit(".", 2)[0])
    if name is None:
        raise state.DamagedError(place.basename)
    why = printable(loss.why)[:WHY_LENGTH]
    return replace(loss, worker=name.worker, host=name.host.rpartition("-")[0], pid=name.pid, why=why)


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
