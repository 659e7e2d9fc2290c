"""Verdicts: what a push reports of one batch, and what the Hub is known to hold of a file.

    verdict       changed on the Hub    what the uploader does next
    Done          all of the batch      enters it into the ledger
    Retry         nothing               tries again later
    Moved         nothing               tries again; reads the branch anew
    Unknown       all or nothing        tries again; if no parent was named, waits for the settle time and reads back
    Split         nothing               sends smaller batches, to find the file that is to blame
    Refused       nothing               tries again slowly; keeps the batches
    Quarantine    other files at most   leaves these files out; tries them again slowly, sooner if it is asked to

A push ends with exactly one verdict. A push that ends without one counts as Unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

CREATED = "created"  # the first word of a push's notice that it has created the repository


class Cause(StrEnum):
    """Why something failed; the words for each, and its cure, are in `spool/causes`."""

    OTHER = "other"
    DNS = "dns"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    BROKEN = "broken"  # the connection
    CERTIFICATE = "certificate"
    PROXY = "proxy"
    CLIENT = "client"  # it cannot be made with the proxies and certificates of the environment
    OFFLINE = "offline"  # HF_HUB_OFFLINE
    NOT_A_HUB = "not_a_hub"  # an answer that no Hub gives
    ENDPOINT = "endpoint"  # it refuses what any Hub takes
    HUB = "hub"  # it fails
    XET = "xet"
    BUSY = "busy"
    LIMITED = "limited"
    MOVED = "moved"
    NOT_FOUND = "not_found"
    REPOSITORY = "repository"  # of a name or type that the Hub does not take
    NO_TOKEN = "no_token"  # noqa: S105 - a cause
    TOKEN = "token"  # noqa: S105 - it is refused
    RIGHTS = "rights"
    STORAGE = "storage"  # of the account
    VISIBILITY = "visibility"  # of the repository, which is not the one that was asked for
    CONTENT = "content"  # of a file
    TOO_LARGE = "too_large"
    DISK_FULL = "disk_full"
    DISK_QUOTA = "disk_quota"
    DISK = "disk"


@dataclass(frozen=True)
class Sent:
    """What the Hub holds of one file."""

    length: int  # bytes
    sha256: str  # of these bytes, hex; "" where it is not known
    blob_id: str = ""  # git's id of these bytes, by which the Hub knows small regular files; "" where it is not needed
    foreign: bool = False  # others sent these bytes. An attachment of others is not replaced
    deleted: bool = False  # others have deleted it there, from a repository that lives on: it is not sent again

    @property
    def is_gone(self) -> bool:
        """Whether the Hub was seen without the file. An empty attachment has a digest."""
        return not self.length and not self.sha256


@dataclass(frozen=True)
class Done:
    """The Hub holds the whole batch."""

    commit: str  # the head of the branch at which that is true
    own: bool  # whether this push made that commit
    repo_id: str  # full name of the repository
    files: dict[str, Sent]  # what is new about the Hub's copies, per path; see `Sent.is_gone`
    left: dict[str, str] = field(default_factory=dict)  # why a bucket refused a file, per path
    checked: bool = False  # whether all known copies were read back
    asked: bool = False  # whether the Hub was asked for the head, or took a commit that names it: no other one is there
    private: bool | None = None  # visibility of the repository, None if it was not seen
    parent: str = ""  # the head of the branch at which the copies were compared
    created_at: str = ""  # when the repository was created, as the Hub tells it; "" if it was not seen
    bucket_size: int = 0  # bytes of a live bucket after this round, 0 if it was not asked


@dataclass(frozen=True)
class Retry:
    """Nothing was changed; try again."""

    reason: str  # for people
    after: float | None = None  # seconds to wait at least, None if the Hub gave none
    xet: str = ""  # "failing" if the Xet storage is to blame, "missing" if the Hub has none, else ""
    cause: Cause = Cause.OTHER
    hint: str = ""  # what helps, "" if only time does


@dataclass(frozen=True)
class Moved:
    """The branch moved before every commit (HTTP 412); nothing was changed."""

    reason: str  # for people
    cause: Cause = Cause.MOVED


@dataclass(frozen=True)
class Unknown:
    """The request may have been applied."""

    reason: str  # for people
    after: float | None = None  # as in `Retry`
    xet: str = ""  # as in `Retry`
    too_slow: bool = False  # whether fewer files may be taken (HTTP 504, or the time for the push was over)
    cause: Cause = Cause.OTHER
    hint: str = ""  # as in `Retry`


@dataclass(frozen=True)
class Split:
    """The commit was refused as a whole; smaller batches show which file is to blame."""

    reason: str  # for people
    too_large: bool = False  # whether less content, or fewer files, may be taken (HTTP 413)
    cause: Cause = Cause.CONTENT


@dataclass(frozen=True)
class Refused:
    """The destination is refused: token, permission, quota or repository."""

    reason: str  # for people
    hint: str = ""  # what helps; it names a command where one does
    cause: Cause = Cause.OTHER


@dataclass(frozen=True)
class Quarantine:
    """Some files are refused for their content."""

    paths: dict[str, str] = field(default_factory=dict)  # the reason per path
    committed: bool = False  # whether the other files of the batch are on the Hub already


Verdict = Done | Retry | Moved | Unknown | Split | Refused | Quarantine
