"""The ledger: what the Hub is known to hold.

    hosts/<host>/ledger.json
    {"destination": {...}, "repo_id": "me/run", "settings": {...},
     "files":  {"rank_00001/events.out...": {"length": 4711, "sha256": "...", "blob_id": "", "foreign": false,
                                             "commit": "...", "time": 1795236610.0, "stamp": []}},
     "uncertain": {"metadata.tsv": [{"length": ..., "sha256": "...", "blob_id": "..."}]},     outcome unknown
     "quarantined": {"events.out...": "reason"},
     "checked": 1795236610.0}                                    when all copies were last compared with the Hub's

Invariants:
- It claims only what a successful commit carried, or what the Hub was seen to hold.
- Acknowledged lengths of event files never decrease, except where a read-back of the Hub proved its copy shorter or
  gone.
- Of an attachment it knows every content that the Hub may have from us: what is at its path on the Hub is ours to
  replace only then. What a push has uncertain without a known outcome is written down before the next push starts; until
  a read-back has told the outcome, the path is not covered. What others have sent is never ours, even if it is equal
  to what this run has (`foreign`).
- Of an attachment it knows the stamp of the local file that had the content, so that whoever waits need not read it.
- It belongs to one destination; a ledger of another one is not read.
- Each host's uploader writes its own; all are read, and per path the newest record counts. A length of 0 is a record
  too: the Hub was seen not to have the file. Where clocks disagree the older record may win: so an attachment that a
  losing record holds counts as uncertain, and is read back.
- It remembers the settings of the last worker, so that `sync` uploads what that worker wanted uploaded.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hf_mpwriter.base import names
from hf_mpwriter.base.errors import DAMAGED
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk

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

    @classmethod
    def from_json(cls, data: Any) -> Held:
        """Check and read; raises ValueError, KeyError or TypeError for what is not one."""
        sent = _sent(data)
        stamp = tuple(map(int, data.get("stamp", ())))
        return cls(
            sent.length, sent.sha256, str(data["commit"]), _time(data["time"]), sent.blob_id, sent.foreign, stamp
        )

    @property
    def sent(self) -> Sent:
        """Without when and where."""
        return Sent(self.length, self.sha256, self.blob_id, self.foreign)


def _sent(data: Any) -> Sent:
    if not 0 <= int(data["length"]) < 1 << 63:
        raise ValueError(f"a length of {data['length']}")
    return Sent(int(data["length"]), str(data["sha256"]), str(data["blob_id"]), data.get("foreign") is True)


def _time(data: Any) -> float:
    if not math.isfinite(time := float(data)):
        raise ValueError(f"a time of {time}")
    return time


@dataclass
class Ledger:
    """What the Hub is known to hold of a run, for one destination."""

    destination: Destination
    repo_id: str = ""
    files: dict[str, Held] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    settings: Settings | None = None
    checked: float = 0.0
    uncertain: dict[str, list[Sent]] = field(default_factory=dict)

    @property
    def resolved(self) -> Destination:
        """The destination with the full name of the repository, once a push has told it."""
        return dataclasses.replace(self.destination, repo_id=self.repo_id or self.destination.repo_id)

    def check(self, now: float) -> None:
        """All copies were compared with the Hub's; who waits for that sees a later time, whatever the clock does."""
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
        """What the Hub holds of all paths that are not quarantined and not gone."""
        held = {path: held.sent for path, held in self.files.items() if path not in self.quarantined}
        return {path: sent for path, sent in held.items() if not sent.is_gone}

    def is_ahead(self, path: str, sent: Sent) -> bool:
        """Whether it claims more than the Hub was seen to hold: a longer event file, another attachment."""
        held = self.files.get(path)
        if held is None:
            return False
        return sent.sha256 != held.sha256 if names.is_attachment(path) else sent.length < held.length

    def acknowledge(self, sent: dict[str, Sent], commit: str, now: float) -> None:
        """Take over what a push found or made true of the Hub at `commit`, what is gone included."""
        for path, file in sent.items():
            before = self.files.get(path)
            stamp = before.stamp if before and before.sent == file else ()
            self.files[path] = Held(file.length, file.sha256, commit, now, file.blob_id, file.foreign, stamp)
            self.quarantined.pop(path, None)
            if not file.is_gone:
                self.uncertain.pop(path, None)

    def see(self, files: Iterable[LocalFile]) -> bool:
        """Note that these files were seen to have what the Hub holds; True if that is news."""
        news = False
        for file in files:
            held = self.files.get(file.path)
            if held is not None and file.stamp and self.covers(file) and held.stamp != file.stamp:
                self.files[file.path] = dataclasses.replace(held, stamp=file.stamp)
                news = True
        return news

    def mark_uncertain(self, files: Iterable[LocalFile]) -> bool:
        """Note the attachments of a push that may have arrived, or may arrive yet; True if that is news.

        Where others have a file, none of ours was sent.
        """
        news = False
        for file in files:
            offers, held = self.uncertain.get(file.path, []), self.files.get(file.path)
            theirs = held is not None and held.foreign
            if file.sha256 and not theirs and file.content not in offers:
                self._add_uncertain(file.path, [file.content])
                news = True
        return news

    def _add_uncertain(self, path: str, offers: Iterable[Sent]) -> None:
        self.uncertain[path] = list(dict.fromkeys([*self.uncertain.get(path, ()), *offers]))[-UNCERTAIN_LIMIT:]

    def merge(self, other: Ledger) -> None:
        """Take over what another host's ledger knows."""
        self.repo_id = self.repo_id or other.repo_id
        self.quarantined |= other.quarantined
        self.settings = self.settings or other.settings
        self.checked = max(self.checked, other.checked)
        for path, offers in other.uncertain.items():
            self._add_uncertain(path, offers)
        for path, held in other.files.items():
            known = self.files.setdefault(path, held)
            newer, older = (held, known) if (held.time, held.length) > (known.time, known.length) else (known, held)
            self.files[path] = newer
            differs = (newer.length, newer.sha256) != (older.length, older.sha256)
            if names.is_attachment(path) and differs and not older.sent.is_gone and not older.foreign:
                self._add_uncertain(path, [older.sent])

    def save(self, path: str) -> None:
        """Replace the ledger on disk, durably."""
        disk.replace(path, json.dumps(dataclasses.asdict(self)).encode(), "ledger.save")


def _parse(data: bytes, destination: Destination) -> Ledger | None:
    content = json.loads(data)
    if content["destination"] != dataclasses.asdict(destination):
        return None
    for path in (*content["files"], *content["quarantined"], *content["uncertain"]):
        if not names.is_run_path(path):
            raise ValueError(f"not a path of a run directory: {path!r}")
    files = {path: Held.from_json(held) for path, held in content["files"].items()}
    quarantined = {path: str(reason) for path, reason in content["quarantined"].items()}
    settings = content.get("settings")
    wanted = None if settings is None else Settings.from_json(settings)
    uncertain = {path: [_sent(one) for one in offers] for path, offers in content["uncertain"].items()}
    return Ledger(
        destination, str(content["repo_id"]), files, quarantined, wanted, _time(content["checked"]), uncertain
    )


def load(spool: Spool, destination: Destination) -> Ledger:
    """The newest records of the ledgers of all hosts; a ledger that cannot be read counts as empty."""
    merged = Ledger(destination)
    for host in spool.host_ids():
        try:
            ledger = _parse(disk.read(spool.host(host).ledger) or b"", destination)
        except (*DAMAGED, OSError):
            continue
        if ledger is not None:
            merged.merge(ledger)
    return merged


def set_aside(spool: Spool, host_id: str) -> str | None:
    """Move a ledger of ours that cannot be read out of the way; lengths are read back from the Hub.

    Returns:
        Where it is now, None if it is sound or there is none.
    """
    path = spool.host(host_id).ledger
    try:
        data = disk.read(path)
        if data is not None:
            content = json.loads(data)
            _parse(data, Destination(**content["destination"]))
    except (*DAMAGED, OSError):
        aside = f"{path}.unreadable-{int(time.time())}-{os.urandom(2).hex()}"
        try:
            disk.rename(path, aside, "ledger.aside")
        except OSError:  # the next one that is saved takes its place
            return path
        return aside
    return None
