"""The ledger: what the Hub is known to hold.

    hosts/<host>/ledger.json
    {"destination": {...}, "repo_id": "me/run", "private": true,    visibility; null until a push has seen it
     "files":  {"rank_00001/events.out...": {"length": 4711, "sha256": "...", "commit": "...", "time": 1795236610.0,
                                             "blob_id": "", "foreign": false, "stamp": [], "generation": 0,
                                             "deleted": false}},       there, by others: it is not sent again
     "created_at": "2026-11-24 22:13:09+00:00",                     the repository; a new one of its name differs
     "quarantined": {"events.out...": {"reason": "...", "refusals": 1, "tried": 1795236610.0}},
     "settings": {...},                                             of the last worker, for `sync`
     "checks": {"<host>": 1795236610123}, "commits": {"<host>": 3}, "saves": 17,      grow: a comparison, commit, save
     "asks": {"<host>": 1795236610123},                                               the same: the Hub was asked
     "uncertain": {"metadata.tsv": [{"length": ..., "sha256": "...", "blob_id": "...", "foreign": false}]},
     "taken_over": ["<host> <inode> <mtime>"]}                      records of other hosts that need no more care

Each host's uploader writes its own, and all are read. Clocks differ, so none decides: per path the highest generation
counts, then the greatest length; of the rest, what was saved most often. A generation is raised when something of a
path is over: its length, content or stamp, a refusal, an uncertainty. So a record of before does not come back.

Invariants:
- It claims only what a successful commit carried, or what the Hub was seen to hold.
- Acknowledged lengths of event files never decrease, except where a read-back proved that the Hub's copy is shorter or
  gone. The push keeps this: it sends only what is longer than the copy that it has read back.
- It knows every content of an attachment that the Hub may have from this run, but for the oldest of more than
  UNCERTAIN_LIMIT whose outcome is unknown: only such a content is replaced there. A content that a push sent without a
  known outcome is `uncertain` before the next push starts; until a read-back has told the outcome, the path is not
  covered. What others have sent is `foreign` and never ours, even if it is equal.
- It knows the stamp of the local attachment that had the content, so that waiting for it needs no reading of files.
- It belongs to one destination; a ledger of another one is not read.
- Merging is commutative, associative and idempotent. A length of 0 is a record too: the Hub was seen not to have the
  file. Where records of one generation differ about an attachment, it is uncertain, and is read back.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from hf_mpwriter.base import names, state
from hf_mpwriter.base.files import LONGEST, LocalFile
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours

UNCERTAIN_LIMIT = 64  # contents per attachment whose outcome is unknown; older ones are forgotten


@dataclass(frozen=True)
class Held:
    """What the Hub holds of one path."""

    length: int  # bytes
    sha256: str  # of these bytes, hex
    commit: str  # a head at which this was so; "" if nothing of the path was ever there
    time: float  # unix time of the acknowledgement, by the clock of one host
    blob_id: str = ""  # of an attachment, git's id of these bytes
    foreign: bool = False  # others have sent these bytes
    stamp: tuple[int, ...] = ()  # inode, size, mtime and ctime (ns) of the attachment that was last seen to have them
    generation: int = 0  # how often the path has lost or replaced something
    deleted: bool = False  # others have deleted it there

    @property
    def sent(self) -> Sent:
        """Without when and where."""
        return Sent(self.length, self.sha256, self.blob_id, self.foreign, self.deleted)

    @property
    def order(self) -> tuple[object, ...]:
        """Of two records the one that counts has the greater one."""
        return self.generation, self.length, self.sha256, self.blob_id, self.foreign, self.commit, self.time, self.stamp


@dataclass(frozen=True, order=True)
class Quarantined:
    """Why a path is left out."""

    refusals: int  # times that the Hub has refused it since it took something of it; 0 if it cannot be sent from here
    tried: float  # when that was found the last time, by the filesystem's clock
    reason: str  # for people


NOWHERE = Held(0, "", "", 0.0)  # what is known of a path of which nothing is known


@dataclass
class Ledger:
    """What the Hub is known to hold of a run."""

    destination: Destination  # that it is about
    repo_id: str = ""  # full name of the repository, "" until a push has resolved it
    files: dict[str, Held] = field(default_factory=dict)  # what the Hub holds, per path
    quarantined: dict[str, Quarantined] = field(default_factory=dict)  # paths that are left out
    settings: Settings | None = None  # of the last worker, None if there was none
    # per host, a number that grows when it compares all copies with the Hub's
    checks: dict[str, int] = field(default_factory=dict)
    # contents that the Hub may hold besides, per path of an attachment
    uncertain: dict[str, list[Sent]] = field(default_factory=dict)
    private: bool | None = None  # visibility of the repository, None until a push has seen it
    saves: int = 0  # how often it was saved, its predecessors included
    # stamps of records of other hosts whose pushes can change nothing any more
    taken_over: frozenset[str] = frozenset()
    commits: dict[str, int] = field(default_factory=dict)  # per host, the commits that its uploaders have made
    created_at: str = ""  # when the repository was created, "" until a push has seen it
    # per host, a number that grows when the Hub was asked and has all of this: unix time in ms, if clocks only go on
    asks: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in (*self.files, *self.quarantined, *self.uncertain):
            if not names.is_run_path(path):
                raise ValueError(f"not a path of a run directory: {path!r:.200}")
        lengths = [held.length for held in self.files.values()]
        lengths += [content.length for contents in self.uncertain.values() for content in contents]
        if not all(0 <= length <= LONGEST for length in lengths):
            raise ValueError("a length that no file has")

    @property
    def resolved(self) -> Destination:
        """The destination, with the full name of the repository if that is known."""
        return dataclasses.replace(self.destination, repo_id=self.repo_id or self.destination.repo_id)

    @property
    def checked(self) -> int:
        """A number that grows when any host has compared all copies with the Hub's."""
        return sum(self.checks.values())

    @property
    def asked(self) -> int:
        """A number that grows when any host has asked the Hub whether it has all of this."""
        return sum(self.asks.values())

    def was_asked_at(self, now: float, within: float) -> bool:
        """Whether the Hub was asked about now, so many seconds before at most; by the clocks of the hosts."""
        return any(abs(now - at / 1000) < within for at in self.asks.values())

    @property
    def reasons(self) -> dict[str, str]:
        """Why each quarantined path is left out."""
        return {path: quarantined.reason for path, quarantined in self.quarantined.items()}

    @property
    def has_arrived(self) -> bool:
        """Whether the repository was seen to have something of this run."""
        return any(held.commit for held in self.files.values())

    def note_checked(self, host_id: str, now: float) -> None:
        """Note that a host has compared all copies with the Hub's."""
        self.checks[host_id] = max(int(now * 1000), self.checks.get(host_id, 0) + 1)

    def note_asked(self, host_id: str, now: float) -> None:
        """Note that the Hub was asked by a host, and has all of this."""
        self.asks[host_id] = max(int(now * 1000), self.asks.get(host_id, 0) + 1)

    def length(self, path: str) -> int:
        """Acknowledged bytes of a path, 0 if it is unknown."""
        return self.files.get(path, NOWHERE).length

    def has_grown(self, since: float) -> bool:
        """Whether the Hub has got something since then, a unix time."""
        return any(held.time >= since for held in self.files.values())

    def covers(self, file: LocalFile) -> bool:
        """Whether the Hub is known to hold what a local file has."""
        held = self.files.get(file.path)
        return held is not None and file.is_covered(held.sent) and file.path not in self.uncertain

    def known(self) -> dict[str, Sent]:
        """What the Hub holds of all paths that are neither quarantined nor gone, and those that were deleted there."""
        held = {path: held.sent for path, held in self.files.items() if path not in self.quarantined}
        return {path: sent for path, sent in held.items() if sent.deleted or not sent.is_gone}

    @property
    def deleted(self) -> set[str]:
        """What others have deleted from the Hub: it is not sent again unasked."""
        return {path for path, held in self.files.items() if held.deleted}

    def send_again(self) -> bool:
        """Take what was deleted for what the Hub lacks; True if there is something."""
        deleted = self.deleted
        for path in deleted:
            held = self.files[path]
            self.files[path] = dataclasses.replace(held, deleted=False, generation=held.generation + 1)
        return bool(deleted)

    def is_ahead(self, path: str, sent: Sent) -> bool:
        """Whether it claims more than the Hub was seen to hold: a longer event file, another attachment."""
        held = self.files.get(path)
        if held is None:
            return False
        return sent.sha256 != held.sha256 if names.is_attachment(path) else sent.length < held.length

    def acknowledge(self, sent: dict[str, Sent], commit: str, now: float) -> None:
        """Take over what a push has found or made true of the Hub."""
        for path, file in sent.items():
            before = self.files.get(path, NOWHERE)
            stamp = before.stamp if before.sent == file else ()
            over = path in self.quarantined or (path in self.uncertain and not file.is_gone)
            over = over or (path in self.files and _replaces(path, before.sent, file))
            self.files[path] = Held(
                file.length,
                file.sha256,
                commit,
                now,
                file.blob_id,
                file.foreign,
                stamp,
                before.generation + over,
                file.deleted,
            )
            self.quarantined.pop(path, None)
            if file.deleted or not file.is_gone:
                self.uncertain.pop(path, None)

    def quarantine(self, path: str, reason: str, refusals: int = 0, tried: float = 0.0) -> None:
        """Leave a path out, see `Quarantined`."""
        self.quarantined[path] = Quarantined(refusals, tried, reason)

    def release(self, path: str) -> None:
        """Leave a path out no more, though the Hub has nothing new of it."""
        if self.quarantined.pop(path, None) is not None:
            held = self.files.get(path, NOWHERE)
            self.files[path] = dataclasses.replace(held, generation=held.generation + 1)

    def note_stamps(self, files: Iterable[LocalFile]) -> bool:
        """Note the stamps of local attachments that have what the Hub holds; True if one is new."""
        news = False
        for file in files:
            held = self.files.get(file.path)
            if held is not None and file.stamp and self.covers(file) and held.stamp != file.stamp:
                generation = held.generation + bool(held.stamp)
                self.files[file.path] = dataclasses.replace(held, stamp=file.stamp, generation=generation)
                news = True
        return news

    def mark_uncertain(self, files: Iterable[LocalFile]) -> bool:
        """Note the attachments of a push whose outcome is unknown; True if one is new.

        Where others have a file, none of ours was sent.
        """
        news = False
        for file in files:
            contents, held = self.uncertain.get(file.path, []), self.files.get(file.path)
            theirs = held is not None and held.foreign
            if file.sha256 and not theirs and file.content not in contents:
                self._add_uncertain(file.path, [file.content])
                del self.uncertain[file.path][:-UNCERTAIN_LIMIT]
                news = True
        return news

    def _add_uncertain(self, path: str, contents: Iterable[Sent]) -> None:
        self.uncertain[path] = list(dict.fromkeys([*self.uncertain.get(path, ()), *contents]))

    def merge(self, other: Ledger) -> None:
        """Take over what another host's ledger knows."""
        if other._edition > self._edition:
            self.repo_id, self.private, self.settings = other.repo_id, other.private, other.settings
            self.created_at = other.created_at
            self.saves = other.saves
        for mine, theirs in ((self.checks, other.checks), (self.commits, other.commits), (self.asks, other.asks)):
            mine |= {host: max(number, mine.get(host, 0)) for host, number in theirs.items()}
        self.taken_over |= other.taken_over
        for path in {*other.files, *other.quarantined, *other.uncertain}:
            self._merge_path(path, other)

    @property
    def _edition(self) -> tuple[int, str]:
        return self.saves, repr((self.repo_id, self.private, self.settings, self.created_at))

    def _merge_path(self, path: str, other: Ledger) -> None:
        mine, theirs = self.files.get(path, NOWHERE), other.files.get(path, NOWHERE)
        if theirs.generation < mine.generation:
            return
        if theirs.generation > mine.generation:
            self.quarantined.pop(path, None)
            self.uncertain.pop(path, None)
        elif names.is_attachment(path) and path in self.files and path in other.files and mine.sent != theirs.sent:
            own = (held.sent for held in (mine, theirs) if not held.sent.is_gone and not held.foreign)
            self._add_uncertain(path, own)
        if path in other.files and (path not in self.files or theirs.order > mine.order):
            self.files[path] = theirs
        if (entry := other.quarantined.get(path)) is not None:
            self.quarantined[path] = max(entry, self.quarantined.get(path, entry))
        if path in other.uncertain:
            self._add_uncertain(path, other.uncertain[path])

    def save(self, path: Place) -> None:
        """Replace the ledger on disk, durably."""
        self.saves += 1
        disk.replace(path, state.dump(self), "ledger.save")


def _replaces(path: str, before: Sent, now: Sent) -> bool:
    """Whether the Hub's copy of a path is neither what it was, nor a longer one."""
    if names.is_attachment(path):
        return before != now
    return now.length < before.length or (now.length == before.length and now.sha256 != before.sha256)


def load(spool: Spool, destination: Destination) -> Ledger:
    """The ledgers of all hosts, merged; a ledger that cannot be read counts as empty."""
    merged = Ledger(destination)
    for host in spool.host_ids():
        try:
            ledger = state.load(Ledger, disk.read(spool.host(host).ledger) or b"")
        except ours(state.DamagedError, OSError):
            continue
        if ledger.destination == destination:
            merged.merge(ledger)
    return merged


def set_aside(spool: Spool, host_id: str) -> str | None:
    """Rename a ledger that cannot be read; its lengths are read back from the Hub.

    Where it is now, None if it can be read or if there is none.
    """
    path = spool.host(host_id).ledger
    try:
        if (data := disk.read(path)) is not None:
            state.load(Ledger, data)
    except ours(state.DamagedError, OSError):
        aside = path.parent / f"{path.basename}.unreadable-{int(time.time())}-{os.urandom(2).hex()}"
        try:
            disk.rename(path, aside, "ledger.aside")
        except ours(OSError):  # the next one that is saved takes its place
            return str(path)
        return str(aside)
    return None
