"""TODO push.job."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_mpwriter.base.files import LocalFile, parse_files
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.system import disk

if TYPE_CHECKING:
    pass


DEADLINE_BASE = 300.0  # seconds for a push, however small
DEADLINE_RATE = 250_000.0  # bytes per second that a slow line carries
FDS = os.path.isdir("/proc/self/fd")  # whether there are paths that lead to descriptors


@dataclass(frozen=True)
class Job:
    """What a push needs to know.

    Attributes:
        run_dir: absolute path.
        copies: where the copies of attachments are, absolute path.
        destination: where to.
        private: visibility for a repository that has to be created.
        squash: whether to squash the history after a commit.
        files: the entry.
        known: what the ledger says the Hub holds, per path.
        uncertain: what else it may hold of ours, per path of an attachment.
        own_head: this uploader's last commit, None if it has none or it may have been overtaken.
        fenced: whether commits name their parent.
        xet: whether content may go to the Xet storage; else by LFS.
    """

    run_dir: str
    copies: str
    destination: Destination
    private: bool | None
    squash: bool
    files: tuple[LocalFile, ...]
    known: dict[str, Sent]
    uncertain: dict[str, list[Sent]]
    own_head: str | None
    fenced: bool
    xet: bool

    def to_json(self) -> dict[str, Any]:
        """For in_flight.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Job:
        """From in_flight.json."""
        fields = dict(data)
        fields["destination"] = Destination(**data["destination"])
        fields["files"] = parse_files(data["files"])
        fields["known"] = {path: Sent(**sent) for path, sent in data["known"].items()}
        fields["uncertain"] = {path: [Sent(**one) for one in offers] for path, offers in data["uncertain"].items()}
        return cls(**fields)

    @contextlib.contextmanager
    def sources(self, files: list[LocalFile]) -> Iterator[list[tuple[LocalFile, str]]]:
        """Where the content of each file is: a path that leads to the very file that was opened.

        No part of the way below the run directory is a link then, and what becomes of names afterwards does not matter.
        """
        with contextlib.ExitStack() as stack:
            found = []
            for file in files:
                top, relative = (self.copies, file.sha256) if file.sha256 else (self.run_dir, file.path)
                fd = disk.open_beneath(top, relative)
                stack.callback(os.close, fd)
                found.append((file, f"/proc/self/fd/{fd}" if FDS else os.path.join(top, relative)))
            yield found


def deadline(job: Job) -> float:
    """Seconds after which a push is given up."""
    return DEADLINE_BASE + sum(file.length for file in job.files) / DEADLINE_RATE
