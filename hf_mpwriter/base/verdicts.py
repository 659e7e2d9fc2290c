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

CREATED = "created"  # the first word of a push's notice that it has created the repository


@dataclass(frozen=True)
class Sent:
    """What the Hub holds of one file.

    Attributes:
        length: bytes.
        sha256: of these bytes, hex; "" where it is not known.
        blob_id: git's id of these bytes, by which the Hub knows small regular files; "" where it is not needed.
        foreign: others sent these bytes. An attachment of others is not replaced.
    """

    length: int
    sha256: str
    blob_id: str = ""
    foreign: bool = False

    @property
    def is_gone(self) -> bool:
        """Whether the Hub was seen without the file. An empty attachment has a digest."""
        return not self.length and not self.sha256


@dataclass(frozen=True)
class Done:
    """The Hub holds the whole batch.

    Attributes:
        commit: the head of the branch at which that is true.
        own: whether this push made that commit.
        repo_id: full name of the repository.
        files: what is new about the Hub's copies, per path; see `Sent.is_gone`.
        checked: whether all known copies were read back.
        private: visibility of the repository, None if it was not seen.
    """

    commit: str
    own: bool
    repo_id: str
    files: dict[str, Sent]
    checked: bool = False
    private: bool | None = None


@dataclass(frozen=True)
class Retry:
    """Nothing was changed; try again.

    Attributes:
        reason: for people.
        after: seconds to wait at least, None if the Hub gave none.
        xet: "failing" if the Xet storage is to blame, "missing" if the Hub has none, else "".
        limited: whether the Hub has had too many commits or requests (HTTP 429).
    """

    reason: str
    after: float | None = None
    xet: str = ""
    limited: bool = False


@dataclass(frozen=True)
class Moved:
    """The branch moved before every commit (HTTP 412); nothing was changed.

    Attributes:
        reason: for people.
    """

    reason: str


@dataclass(frozen=True)
class Unknown:
    """The request may have been applied.

    Attributes:
        reason: for people.
        after: as in `Retry`.
        xet: as in `Retry`.
        too_slow: whether fewer files may be taken (HTTP 504, or the time for the push was over).
    """

    reason: str
    after: float | None = None
    xet: str = ""
    too_slow: bool = False


@dataclass(frozen=True)
class Split:
    """The commit was refused as a whole; smaller batches show which file is to blame.

    Attributes:
        reason: for people.
        too_large: whether less content, or fewer files, may be taken (HTTP 413).
    """

    reason: str
    too_large: bool = False


@dataclass(frozen=True)
class Refused:
    """The destination is refused: token, permission, quota or repository.

    Attributes:
        reason: for people.
        hint: what helps; it names a command where one does.
    """

    reason: str
    hint: str


@dataclass(frozen=True)
class Quarantine:
    """Some files are refused for their content.

    Attributes:
        paths: the reason per path.
        committed: whether the other files of the batch are on the Hub already.
    """

    paths: dict[str, str] = field(default_factory=dict)
    committed: bool = False


Verdict = Done | Retry | Moved | Unknown | Split | Refused | Quarantine
