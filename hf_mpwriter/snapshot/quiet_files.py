"""Quiet files: event files of other writers that have not changed for long go as they are, by their paths.

    lane   QuietFiles.marked    LocalFile(growing=False) of a file that is whole and quiet; any other as it is
    push   Unchanged.check      raises NotQuietError if a file is not any more what it was when it was handed over

No other writer says that it has closed a file. What may still grow is held in memory while it is sent, so a commit has
little of it; what goes by its path costs no memory.

Invariants:
- A file that ends with anything but a whole record is never quiet.
- A file that grows after all is not committed as it was read: the request for the commit is not sent, and the push
  sends the length of its snapshot instead. A later batch sends the rest.
- Clocks decide nothing but the way. The age of a file is that by the clock of the filesystem; a file that was seen to
  change is not quiet any more for as long as this uploader lives, whatever the clocks say.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.names import is_ours
from hf_mpwriter.snapshot.event_files import UNCHANGED


class QuietFiles:
    """Which files of other writers are quiet."""

    def __init__(self, time_there: Callable[[], float]) -> None:
        self._time_there = time_there
        self._stamps: Mapping[str, tuple[int, int]] = {}
        self._live: set[str] = set()  # seen to change

    def marked(
        self, files: Iterable[LocalFile], stamps: Mapping[str, tuple[int, int]], covers: Callable[[LocalFile], bool]
    ) -> list[LocalFile]:
        """The files of a scan, those that are quiet without `growing`."""
        files, before = list(files), self._stamps
        self._live |= {path for path, stamp in stamps.items() if before.get(path, stamp) != stamp}
        self._live &= stamps.keys()
        self._stamps = stamps
        theirs = [file for file in files if file.growing and self._may_be(file, stamps) and not covers(file)]
        if not theirs or not (now := self._time_there()):
            return files
        quiet = {file.path for file in theirs if now - stamps[file.path][1] / 1e9 >= UNCHANGED}
        return [dataclasses.replace(file, growing=False) if file.path in quiet else file for file in files]

    def _may_be(self, file: LocalFile, stamps: Mapping[str, tuple[int, int]]) -> bool:
        is_whole = stamps[file.path][0] == file.length
        return is_whole and file.path not in self._live and not is_ours(os.path.basename(file.path))


class NotQuietError(OSError):
    """Files have changed while they were sent by their paths."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = frozenset(paths)
        super().__init__(f"changed while it was sent: {', '.join(sorted(self.paths))}")


@dataclass(frozen=True)
class Source:
    """A local file that is sent."""

    file: LocalFile  # as it was at the snapshot
    path: str  # where its content is read: it leads to one file, whatever becomes of names


class Unchanged:
    """The files of a commit that are handed over by their paths."""

    def __init__(self) -> None:
        self._files: list[tuple[Source, tuple[int, int]]] = []

    def add(self, source: Source, status: os.stat_result) -> None:
        """Note a file, with the status that it had before it was read."""
        self._files.append((source, _stamp(status)))

    def check(self) -> None:
        """Raise NotQuietError if the size or the modification time of a file is another one than it was."""
        if changed := [source.file.path for source, stamp in self._files if _stamp(os.stat(source.path)) != stamp]:
            raise NotQuietError(changed)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
