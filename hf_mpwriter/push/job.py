"""What travels between uploader and push: jobs one way, notices and verdicts the other way.

    uploader  --Job, and descriptors of its runs-->    push      by a socket, one message for each job
    uploader  <--lines, on the standard output--       push      Contact {"answered": false}          any number
                                                                 Quota {"left": 998, ...}             before the last
                                                                 Notice {"text": "created ..."}       any number
                                                                 Done {"commit": "...", ...}          last, of a part

A line is the name of a dataclass and its JSON, see `base/state`.

Invariants:
- Any other line is ignored. The start of Python may print, too (`sitecustomize`, a .pth file).
- The destination comes with the job and never from a file. Run directories and spools come as descriptors.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Collection
from dataclasses import dataclass

from hf_mpwriter.base import state
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent, Verdict
from hf_mpwriter.spool.layout import RunPaths

LARGE = 1 << 20  # bytes of a file, on average: what hf_xet has read of eight such files waits in memory
SCRATCH = "read_back"  # in the cache
DEADLINE_BASE = 300.0  # seconds for a push, however small
DEADLINE_RATE = 250_000.0  # bytes per second that a slow line carries


@dataclass(frozen=True, kw_only=True)
class Part(RunPaths):
    """What is sent of one run."""

    folder: str  # in the repository, "" for its root
    copies: str  # directory of the copies of attachments, relative to the spool
    cache: str  # directory for what the Hub's client cannot keep in the user's home, relative to the spool
    private: bool | None  # visibility of the repository that the run asks for, None if it does not
    files: tuple[LocalFile, ...]  # to be sent
    known: dict[str, Sent]  # what the ledger says the Hub holds, per path
    uncertain: dict[str, list[Sent]]  # what the Hub may hold of this run besides, per path of an attachment
    is_trusted: bool  # whether what is known was compared with the Hub, at `Job.own_head` or before it
    # the last commit of this run, None if it is not known; others may have committed since
    last_commit: str | None = None
    of_others: str = ""  # the event files of other writers, before anything of the run is there; "" for none
    created_at: str = ""  # when the repository was created that the ledger tells of, "" if that is not known

    def target(self, path: str) -> str:
        """The path in the repository of a file of the run directory."""
        return f"{self.folder}/{path}" if self.folder else path

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.length for file in self.files)

    def with_growing(self, targets: Collection[str]) -> Part:
        """The part with these of its files cut at the lengths of their snapshots, as their writers go on."""
        return dataclasses.replace(
            self,
            files=tuple(
                dataclasses.replace(file, growing=True) if self.target(file.path) in targets else file
                for file in self.files
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a push has to know: it makes one commit of what several runs send to one branch."""

    destination: Destination  # the root of the branch
    parts: tuple[Part, ...]
    private: bool | None  # visibility of a repository that has to be created; None leaves it to the Hub's default
    squash: bool  # whether to squash the history after the commit
    own_head: str | None  # this uploader's last commit, None if it has none or it may have been overtaken
    fenced: bool  # whether commits name their parent
    xet: bool  # whether content may go to the Xet storage; else it goes by LFS
    create: bool = True  # whether repository and branch may be created
    was_private: bool | None = None  # visibility of the repository when it was seen last, None if it never was
    linger: int = 0  # seconds that its process waits for another job; it takes none if that is 0
    bucket: str = ""  # the bucket that gets this instead of a commit, "" for a commit; see `push/live`
    asks_bucket: bool = False  # whether its visibility is compared first
    prepares: bool = False  # whether nothing is done but to import the client; the job that is meant comes next

    @property
    def files(self) -> list[LocalFile]:
        """All files that are sent."""
        return [file for part in self.parts for file in part.files]

    @property
    def is_large(self) -> bool:
        """Whether its files are, on average: few of them are read at once then."""
        return sum(part.size for part in self.parts) > LARGE * len(self.files)


@dataclass(frozen=True)
class Notice:
    """What the user should know."""

    text: str
    part: int = 0  # of the job: whose user


@dataclass(frozen=True)
class Contact:
    """The push has sent its first request, the Hub has answered one, or takes content: its time begins anew."""

    answered: bool


@dataclass(frozen=True)
class Quota:
    """The requests that the account may make, as the last answer has told."""

    left: int = 1000  # as of `at`; these defaults are the smallest limit of an account
    seconds: float = 300.0  # from `at` until all are allowed again
    limit: int = 1000
    window: float = 300.0  # seconds
    at: float = -math.inf  # monotonic seconds, which all processes of a host count alike


Message = Contact | Notice | Quota | Verdict
_KINDS: tuple[type[Message], ...] = typing.get_args(Message)


def deadline(job: Job) -> float:
    """Seconds after which a push is given up: since its begin, or since content went to the Hub, but for Xet."""
    return DEADLINE_BASE + sum(part.size for part in job.parts) / DEADLINE_RATE


def from_line(line: bytes) -> Message | None:
    """What a line says, None if it is not from a push."""
    return state.from_line(_KINDS, line)
