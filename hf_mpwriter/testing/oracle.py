"""The oracle: one function that compares a run directory with the Hub and names each broken promise.

For each event file:
- every version of the Hub's copy, over the commit history, is a whole-record prefix of the local file;
- it never shrank and never vanished;
- after a drain it equals the local file up to its last whole record.

What lies in the folder of another run is of no interest, even if the Hub has something of it from before.

A file that another machine writes is on the Hub and not here, or was pulled and goes on there. Of it, what is here is
compared, and that it never shrank and never vanished.

For each attachment that the user's patterns allow: after a drain the Hub's copy has the content of the local file.

For each call that returned, by the journals: its record is on the Hub exactly once, and before a drain in the local
file exactly once. A step of `log` is one record with all its values. No event file was written by two processes.

The oracle asks the Hub for sizes and digests only. A digest that equals that of the local prefix proves the content. It
computes its digests itself, because it is a witness against the code that uploads. An answer that breaks a promise may
be inconsistent in itself; where the caller can fetch contents, it counts only if the content says the same.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tensorboardX.proto import event_pb2

from hf_mpwriter.events import framing
from hf_mpwriter.snapshot import attachments as attachments_module
from hf_mpwriter.snapshot import event_files
from hf_mpwriter.snapshot.event_files import Damage
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.testing.journal import Returned

CHUNK = 1 << 20  # bytes read at once


class Copy(Protocol):
    """A file on the Hub at one commit."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def sha256(self) -> str | None:
        """Of the content, hex; None where the Hub has none."""

    @property
    def oid(self) -> str:
        """Git's id of the content where there is no sha256; else of the pointer."""


Fetch = Callable[[str, str], Copy]  # (path, commit) -> what the content is that a download gives; raises if none does


class HubView(Protocol):
    """What the oracle needs of the Hub. Paths are relative to the folder of the run."""

    def commits(self) -> list[str]:
        """The commits of the branch, newest first."""

    def tree(self, revision: str) -> Mapping[str, Copy]:
        """The files in the folder of the run at one commit."""


@dataclass
class FileReport:
    """What `check` found of one file."""

    path: str  # relative to the run directory
    local_bytes: int = 0  # bytes of the local file, up to the last whole record
    hub_bytes: int = 0  # bytes of the Hub's copy at the head
    local_events: int = 0  # summaries in the local file, 0 for an attachment
    hub_events: int = 0  # summaries in the Hub's copy, 0 for an attachment
    commits: int = 0  # number of commits that changed it
    differs: bool = False  # whether the Hub's copy at the head is no beginning of the local file
    is_elsewhere: bool = False  # whether another machine writes it, and has more of it


@dataclass
class Report:
    """What `check` found."""

    files: dict[str, FileReport] = field(default_factory=dict)  # the event files, per path
    attachments: dict[str, FileReport] = field(default_factory=dict)  # the attachments that are expected, per path
    commits: int = 0  # number of commits of the branch, those of others included
    changes: int = 0  # of these, commits that have changed something in the folder of the run
    returned: int = 0  # number of calls that returned, 0 without journals
    lost: int = 0  # number of their records that are missing
    duplicated: int = 0  # number of their records that are there once too often
    split: int = 0  # number of steps of `log` whose values are not in one record
    problems: list[str] = field(default_factory=list)  # broken promises, one sentence each; empty if all hold
    # ends of local files that no reader reaches. No promise is broken by it: what is before it is compared
    damage: list[Damage] = field(default_factory=list)


def keys(path: str, end: int | None = None) -> Counter[tuple[str, int]]:
    """How often each (tag, step) is in an event file, or in its first `end` bytes; a missing file has none."""
    found: Counter[tuple[str, int]] = Counter()
    if end == 0 or not os.path.exists(path):
        return found
    for payload in framing.payloads(path, end):
        event = event_pb2.Event.FromString(payload)
        found.update((value.tag, event.step) for value in event.summary.value)
    return found


def _split_steps(path: str, returned: Iterable[Returned], end: int | None = None) -> int:
    """How many steps of `log` are in an event file, or in its first `end` bytes, but not all of it in one record."""
    wanted = {(note.step, frozenset(note.together)) for note in returned if note.together}
    if not wanted or end == 0 or not os.path.exists(path):
        return 0
    events = map(event_pb2.Event.FromString, framing.payloads(path, end))
    records = {(event.step, frozenset(value.tag for value in event.summary.value)) for event in events}
    present = {(step, tag) for step, tags in records for tag in tags}
    return sum(any((step, tag) in present for tag in tags) for step, tags in wanted - records)


def _digests(path: str) -> tuple[int, str, str]:
    """Bytes of a file, their sha256, and git's id of them."""
    with open(path, "rb") as file:
        left = size = os.fstat(file.fileno()).st_size
        sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while left and (chunk := file.read(min(left, CHUNK))):
            sha256.update(chunk)
            blob.update(chunk)
            left -= len(chunk)
    return size, sha256.hexdigest(), blob.hexdigest()


def _not_a_prefix(path: str, copy: Copy) -> str:
    try:
        with open(path, "rb") as file:
            left, sha256 = copy.size, hashlib.sha256()
            while left and (chunk := file.read(min(left, CHUNK))):
                sha256.update(chunk)
                left -= len(chunk)
            whole = framing.whole_length(file.fileno(), 0, copy.size)
    except FileNotFoundError:
        return "has no local file"
    if left:
        return "is longer than the local file"
    if copy.sha256 is not None and sha256.hexdigest() != copy.sha256:
        return "is not the beginning of the local file"
    return "" if whole == copy.size else f"is cut inside a record (the last one ends at {whole})"


def _faults(local: str, before: Copy | None, copy: Copy, known: int | None) -> tuple[str, str]:
    """What is wrong with a version as the successor of `before`, and what with its content; "" for nothing."""
    shrank = before is not None and copy.size < before.size
    succession = f"shrank on the Hub from {before.size} to {copy.size} bytes" if before and shrank else ""
    reason = _not_a_prefix(local, copy) if known is None or copy.size <= known else ""
    return succession, f"the Hub's copy of {copy.size} bytes {reason}" if reason else ""


def _check_file(
    report: Report,
    run_dir: str,
    path: str,
    local: int,
    versions: list[Copy | None],
    *,
    drained: bool,
    elsewhere: bool,
    fetch: Callable[[int], Copy] | None,
) -> FileReport:
    found = FileReport(path, local_bytes=local)
    before: Copy | None = None
    for number, version in enumerate(versions):
        copy = version
        if copy is None:
            if before is not None:
                report.problems.append(f"{path}: vanished from the Hub")
            found.differs = False
        elif before is None or (copy.size, copy.sha256) != (before.size, before.sha256):
            found.commits += 1
            faults = _faults(os.path.join(run_dir, path), before, copy, local if elsewhere else None)
            if any(faults) and fetch is not None:
                copy = fetch(number)
                faults = _faults(os.path.join(run_dir, path), before, copy, local if elsewhere else None)
            report.problems.extend(f"{path}: {fault}" for fault in faults if fault)
            found.differs = bool(faults[1])
        before = copy
    found.hub_bytes = before.size if before else 0
    found.is_elsewhere = elsewhere and found.hub_bytes > local
    if drained and found.hub_bytes != local and not found.is_elsewhere:
        report.problems.append(f"{path}: {found.hub_bytes} of {local} bytes are on the Hub")
    return found


def _check_attachment(
    report: Report, run_dir: str, path: str, versions: list[Copy | None], *, drained: bool
) -> FileReport:
    contents = [(copy.size, copy.sha256, copy.oid) if copy else None for copy in versions]
    found = FileReport(path)
    found.commits = sum(copy is not None and copy != before for before, copy in itertools.pairwise([None, *contents]))
    head = versions[-1] if versions else None
    found.hub_bytes = head.size if head else 0
    try:
        found.local_bytes, sha256, oid = _digests(os.path.join(run_dir, path))
    except OSError as error:
        report.problems.append(f"{path}: cannot be read: {error.strerror or error}")
        return found
    if drained and (head is None or (head.oid != oid if head.sha256 is None else head.sha256 != sha256)):
        report.problems.append(f"{path}: {'not on the Hub' if head is None else 'another content is on the Hub'}")
    return found


def _check_records(report: Report, run_dir: str, returned: list[Returned], *, drained: bool) -> None:
    """Count the records of returned calls: on the Hub after a drain, in the local files before."""
    on_hub: Counter[tuple[str, str, int]] = Counter()
    notes: dict[str, list[Returned]] = {}
    for note in returned:
        notes.setdefault(note.path, []).append(note)
    for found in report.files.values():
        path = os.path.join(run_dir, found.path)
        local = keys(path, found.local_bytes)
        there = keys(path, min(found.hub_bytes, found.local_bytes))
        found.local_events, found.hub_events = sum(local.values()), sum(there.values())
        counts = there if drained else local
        on_hub.update({(found.path, tag, step): count for (tag, step), count in counts.items()})
        report.split += _split_steps(path, notes.get(found.path, ()), found.local_bytes)
    report.returned = len(returned)
    writers: dict[str, set[int]] = {}
    for key, calls in Counter((note.path, note.tag, note.step) for note in returned).items():
        report.lost += max(0, calls - on_hub[key])
        report.duplicated += max(0, on_hub[key] - calls)
    for note in returned:
        writers.setdefault(note.path, set()).add(note.pid)
    if report.lost:
        report.problems.append(f"{report.lost} returned records are not on the Hub")
    if report.duplicated:
        report.problems.append(f"{report.duplicated} returned records are on the Hub more than once")
    if report.split:
        report.problems.append(f"{report.split} steps are not in one record each")
    report.problems.extend(
        f"{path}: written by {len(pids)} processes" for path, pids in writers.items() if len(pids) > 1
    )


def check(
    run_dir: str,
    hub: HubView,
    returned: Iterable[Returned] = (),
    *,
    drained: bool = True,
    attachments: Callable[[str], bool] | None = None,
    now: float | None = None,
    fetch: Fetch | None = None,
    elsewhere: Callable[[str, int], bool] = lambda _path, _size: False,
) -> Report:
    """Compare a run directory with the Hub.

    Args:
        run_dir: path of the run directory.
        hub: the repository of the run.
        returned: calls that returned, from `read_journals`.
        drained: whether everything has to be on the Hub by now.
        attachments: whether an attachment, by its relative path, has to be on the Hub; by default none has.
        now: unix time, to tell damage from what is being written; None for the clock.
        fetch: downloads a version whose size or digest breaks a promise; by default the answer of the tree counts.
        elsewhere: whether another machine writes an event file, by its relative path and its bytes here; by default
            none does.

    Raises:
        OSError: the run directory cannot be read.
    """
    report = Report()
    commits = list(reversed(hub.commits()))
    history = [hub.tree(commit) for commit in commits]
    report.commits = len(history)
    report.changes = sum(after != before for before, after in itertools.pairwise([{}, *history]))
    run = Directory(run_dir)
    scan = event_files.EventFileScan(run, foreign_bytes=math.inf, seconds=math.inf)
    local = {file.path: file.length for file in scan.files(lambda _: True, tuple)}
    report.damage = scan.damage(time.time() if now is None else now)
    there = {path for tree in history for path in tree if "tfevents" in path}
    others = tuple(f"{folder}/" for folder in scan.other_runs)
    for path in sorted({*local, *(path for path in there if not path.startswith(others))}):
        versions = [tree.get(path) for tree in history]
        content = None if fetch is None else (lambda number, path=path: fetch(path, commits[number]))
        report.files[path] = _check_file(
            report,
            run_dir,
            path,
            local.get(path, 0),
            versions,
            drained=drained,
            elsewhere=elsewhere(path, local.get(path, 0)),
            fetch=content,
        )
    for path in sorted(attachments_module.sizes(run, attachments)) if attachments else ():
        report.attachments[path] = _check_attachment(
            report, run_dir, path, [tree.get(path) for tree in history], drained=drained
        )
    _check_records(report, run_dir, list(returned), drained=drained)
    return report
