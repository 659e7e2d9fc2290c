"""Losses: the records of a run that the disk has refused for good, until a person has seen it.

    members/<worker>.<host>.<pid>.<ticks>-<n>         a member file counts what its worker has lost, see `member_lines`
    members/<worker>.<host>.<pid>.<ticks>-<n>.lost    the same file, once nothing else needs it
    seen_losses.json    {"seen": {"main.<host>.<pid>.<ticks>-1": 209}}          how much of each a person has seen

Who removes a member file that counts a loss renames it instead. `hf-mpwriter status --seen` removes what has that name,
and writes `seen_losses.json` for what still is a member file.

Invariant: a count has one place at any time, so no kill between two steps loses it, and none makes it count twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_worker
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.member_lines import Member, MemberName, Reading
from hf_mpwriter.spool.workers.members import LOST, Members, lost_file
from hf_mpwriter.system import disk
from hf_mpwriter.system.interrupts import suppress


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


@dataclass(frozen=True)
class SeenLosses:
    """What a person has seen."""

    seen: dict[str, int] = field(default_factory=dict)  # records, per name of a member file


def losses(spool: Spool, members: Iterable[Member] | None = None) -> list[Loss]:
    """What was lost and nobody has seen; `members` as they were just read."""
    found = {str(one.name): one for one in (Members(spool).all() if members is None else members)}
    found |= {str(one.name): one for one in _kept(spool)}  # after them: a member file becomes one of these
    seen = _seen(spool)
    unseen = (_loss(one, one.lost - seen.get(name, 0)) for name, one in sorted(found.items()))
    return [loss for loss in unseen if loss.records > 0 and is_worker(loss.worker)]


def note_seen(spool: Spool, losses: Iterable[Loss]) -> None:
    """Note that a person has seen these; OSError if the disk refuses."""
    names, before, new = set(spool.members.names()), _seen(spool), dict[str, int]()
    for loss in losses:
        place = lost_file(spool.members / loss.file)
        if place.basename in names:
            disk.remove(place, "members.lost")
        else:
            new[loss.file] = before.get(loss.file, 0) + loss.records
    if new:
        known = {name: count for name, count in before.items() if {name, f"{name}{LOST}"} & names}
        disk.replace(spool.directory / "seen_losses.json", state.dump(SeenLosses(known | new)), "losses.seen")


def _seen(spool: Spool) -> dict[str, int]:
    return state.read(SeenLosses, spool.directory / "seen_losses.json").seen


def _loss(member: Member, records: int) -> Loss:
    name, is_exact = member.name, member.alive or not member.in_memory
    host = name.host.rpartition("-")[0]
    return Loss(str(name), name.worker, host, name.pid, records, is_exact, member.since, member.why)


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
