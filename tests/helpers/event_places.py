"""Directories of event files."""

from __future__ import annotations

import errno
import os

from support import keys

from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.system import directory as system_directory
from hf_mpwriter.system.directory import Directory

START = 1  # SessionLog.START


class Place:
    """A directory of event files, and what they reported about their segments."""

    def __init__(self, directory) -> None:
        self.path = str(directory)
        self.held = Directory(self.path)
        self.reported: list[tuple[str, str, int]] = []
        self.existed: list[bool] = []
        self.refuse = False
        self.now = 100.0
        self.after, self.mark = 0, ""
        self.segment_min = 16 << 20

    def directory(self) -> system_directory.Place:
        """The directory, unless the disk refuses."""
        if self.refuse:
            raise OSError(errno.ENOSPC, "refused")
        return system_directory.Place(self.held)

    def opened(self, path: system_directory.Place) -> None:
        """Remember the path."""
        self.existed.append(os.path.exists(path))
        self.reported.append(("open", str(path), 0))

    def sealed(self, path: system_directory.Place, length: int) -> None:
        """Remember the path and the length."""
        self.existed.append(os.path.exists(path))
        self.reported.append(("seal", str(path), length))

    def file(self, memory: int = 16 << 20, purge: int | None = None, **arguments) -> EventFile:
        """An event file here, with a clock that the test moves."""
        file = EventFile(self, limits=Limits(memory), clock=lambda: self.now, **arguments)
        if purge is not None:
            file.purge(purge)
        return file

    def paths(self) -> list[str]:
        """The event files, in the order of their names."""
        return [os.path.join(self.path, name) for name in sorted(os.listdir(self.path))]

    def steps(self) -> list[int]:
        """The steps of all scalars, in the order in which TensorBoard reads them."""
        return [step for path in self.paths() for _, step in keys(path)]
