"""The ledger: what the Hub is known to hold.

    hosts/<host>/ledger.json
    {"destination": {...}, "repo_id": "me/run",
     "files":  {"rank_00001/events.out...": {"length": 4711, "sha256": "...", "commit": "...", "time": 1795236610.0,
                                             "blob_id": "", "foreign": false, "stamp": []}},
     "quarantined": {"events.out...": "reason"},
     "settings": {...},                                              of the last worker, for `sync`
     "checked": 1795236610.0,                                        when all copies were last compared with the Hub's
     "uncertain": {"metadata.tsv": [{"length": ..., "sha256": "...", "blob_id": "...", "foreign": false}]}}

Invariants:
- It claims only what a successful commit carried, or what the Hub was seen to hold.
- Acknowledged lengths of event files never decrease, except where a read-back proved that the Hub's copy is shorter or
  gone. The push keeps this: it sends only what is longer than the copy that it has read back.
- It knows every content of an attachment that the Hub may have from this run, but for the oldest of more than
  UNCERTAIN_LIMIT whose outcome is unknown: only such a content is replaced there. A
  content that a push sent without a known outcome is `uncertain` before the next push starts; until a read-back has
  told the outcome, the path is not covered. What others have sent is `foreign` and never ours, even if it is equal.
- It knows the stamp of the local attachment that had the content, so that waiting for it needs no reading of files.
- It belongs to one destination; a ledger of another one is not read.
- Each host's uploader writes its own. All are read, and per path the newest record counts. A length of 0 is a record
  too: the Hub was seen not to have the file. Clocks may disagree, so the older record may win: the attachment of a
  losing record becomes uncertain, and is read back.
"""

from __future__ import annotations

import dataclasses
import math
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

UNCERTAIN_LIMIT = 64  # contents per attachment whose outcome is unknown; older ones are forgotten


@dataclass(frozen=True)
class Held:
    """What the Hub holds of one path.

    Attributes:
        length: bytes.
        sha256: of these bytes, hex.
        commit: a head at which this was so.
        time: unix time of the acknowledgement.
        blob_id: of an attachment, git's id of these bytes.
        foreign: others have sent these bytes.
        stamp: inode, size, mtime and ctime (ns) of the attachment that was last seen to have them.
    """

    length: int
    sha256: str
    commit: str
    time: float
    blob_id: str = ""
    foreign: bool = False
    stamp: tuple[int, ...] = ()

    @property
    def sent(self) -> Sent:
        """Without when and where."""
        return Sent(self.length, self.sha256, self.blob_id, self.foreign)


@dataclass
class Ledger:
    """What the Hub is known to hold of a run.

    Attributes:
        destination: that it is about.
        repo_id: full name of the repository, "" until a push has resolved it.
        files: what the Hub holds, per path.
        quarantined: refused paths, each with its reason.
        settings: of the last worker, None if there was none.
        checked: unix time when all copies were last compared with the Hub's.
        uncertain: contents that the Hub may hold besides, per path of an attachment.
    """

    destination: Destination
    repo_id: str = ""
    files: dict[str, Held] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    settings: Settings | None = None
    checked: float = 0.0
    uncertain: dict[str, list[Sent]] = field(default_factory=dict)

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

    def note_checked(self, now: float) -> None:
        """Note that all copies were compared with the Hub's; `checked` increases, whatever the clock does."""
        self.checked = max(now, math.nextafter(self.checked, math.inf))

    def length(self, path: str) -> int:
        """Acknowledged bytes of a path, 0 if it is unknown."""
        held = self.files.get(path)
        return held.length if held else 0

    def covers(self, file: LocalFile) -> bool:
        """Whether the Hub is known to hold what a local file has."""
        held = self.files.get(file.path)
        return held is not None and file.is_covered(held.sent) and file.path not in self.uncertain

    def known(self) -> dict[str, Sent]:
        """What the Hub holds of all paths that are neither quarantined nor gone."""
        held = {path: held.sent for path, held in self.files.items() if path not in self.quarantined}
        return {path: sent for path, sent in held.items() if not sent.is_gone}

    def is_ahead(self, path: str, sent: Sent) -> bool:
        """Whether it claims more than the Hub was seen to hold: a longer event file, another attachment."""
        held = self.files.get(path)
        if held is None:
            return False
        return sent.sha256 != held.sha256 if names.is_attachment(path) else sent.length < held.length

    def acknowledge(self, sent: dict[str, Sent], commit: str, now: float) -> None:
        """Take over what a push has found or made true of the Hub.

        Args:
            sent: what the Hub holds, per path; a length of 0 if it has the file no more.
            commit: the head at which this is so.
            now: unix time.
        """
        for path, file in sent.items():
            before = self.files.get(path)
            stamp = before.stamp if before and before.sent == file else ()
            self.files[path] = Held(file.length, file.sha256, commit, now, file.blob_id, file.foreign, stamp)
            self.quarantined.pop(path, None)
            if not file.is_gone:
                self.uncertain.pop(path, None)

    def note_stamps(self, files: Iterable[LocalFile]) -> bool:
        """Note the stamps of local attachments that have what the Hub holds; True if one is new."""
        news = False
        for file in files:
            held = self.files.get(file.path)
            if held is not None and file.stamp and self.covers(file) and held.stamp != file.stamp:
                self.files[file.path] = dataclasses.replace(held, stamp=file.stamp)
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
                news = True
        return news

    def _add_uncertain(self, path: str, contents: Iterable[Sent]) -> None:
        self.uncertain[path] = list(dict.fromkeys([*self.uncertain.get(path, ()), *contents]))[-UNCERTAIN_LIMIT:]

    def merge(self, other: Ledger) -> None:
        """Take over what another host's ledger knows."""
        self.repo_id = self.repo_id or other.repo_id
        self.quarantined |= other.quarantined
        self.settings = self.settings or other.settings
        self.checked = max(self.checked, other.checked)
        for path, contents in other.uncertain.items():
            self._add_uncertain(path, contents)
        for path, held in other.files.items():
            known = self.files.setdefault(path, held)
            newer, older = (held, known) if (held.time, held.length) > (known.time, known.length) else (known, held)
            self.files[path] = newer
            differs = (newer.length, newer.sha256) != (older.length, older.sha256)
            if names.is_attachment(path) and differs and not older.sent.is_gone and not older.foreign:
                self._add_uncertain(path, [older.sent])

    def save(self, path: Place) -> None:
        """Replace the ledger on disk, durably.

        Raises:
            OSError: the disk refuses; the older ledger is still there.
        """
        disk.replace(path, state.dump(self), "ledger.save")


def load(spool: Spool, destination: Destination) -> Ledger:
    """The newest records of the ledgers of all hosts; a ledger that cannot be read counts as empty."""
    merged = Ledger(destination)
    for host in spool.host_ids():
        try:
            ledger = state.load(Ledger, disk.read(spool.host(host).ledger) or b"")
        except (state.DamagedError, OSError):
            continue
        if ledger.destination == destination:
            merged.merge(ledger)
    return merged


def set_aside(spool: Spool, host_id: str) -> str | None:
    """Rename a ledger that cannot be read; its lengths are read back from the Hub.

    Returns:
        Where it is now, None if it can be read or if there is none.
    """
    path = spool.host(host_id).ledger
    try:
        data = disk.read(path)
        if data is not None:
            state.load(Ledger, data)
    except (state.DamagedError, OSError):
        aside = path.parent / f"{path.basename}.unreadable-{int(time.time())}-{os.urandom(2).hex()}"
        try:
            disk.rename(path, aside, "ledger.aside")
        except OSError:  # the next one that is saved takes its place
            return str(path)
        return str(aside)
    return None
