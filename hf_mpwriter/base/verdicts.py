"""TODO base.verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sent:
    """What the Hub holds of one file: so many bytes.

    Attributes:
        length: bytes.
        sha256: of these bytes, hex; "" where the Hub does not tell it.
        blob_id: git's id of these bytes, by which the Hub knows small regular files; "" where nobody asks for it.
        foreign: others have sent these bytes: an attachment that is theirs is not replaced.
    """

    length: int
    sha256: str
    blob_id: str = ""
    foreign: bool = False

    @property
    def is_gone(self) -> bool:
        """Whether the Hub was seen not to have the file; an attachment may be there and empty."""
        return not self.length and not self.sha256


@dataclass(frozen=True)
class Done:
    """The Hub holds the whole entry.

    `commit` is the head at which that is true, `own` whether this push made it, `repo_id` the full name of the
    repository, `files` what is new about the Hub's copies (a length of 0: gone), `checked` whether all known copies
    were read back.
    """

    commit: str
    own: bool
    repo_id: str
    files: dict[str, Sent]
    checked: bool = False


@dataclass(frozen=True)
class Retry:
    """Nothing was changed; try again, not before `after` seconds if that is given.

    `xet` tells whether the storage of the content is to blame: it is "failing", or "missing" where a Hub has none.
    """

    reason: str
    after: float | None = None
    xet: str = ""


@dataclass(frozen=True)
class Moved:
    """The branch moved under the commit every time (HTTP 412): nothing was changed."""

    reason: str


@dataclass(frozen=True)
class Unknown:
    """The request may or may not have been applied; `xet` as in `Retry`."""

    reason: str
    after: float | None = None
    xet: str = ""


@dataclass(frozen=True)
class Split:
    """The commit as a whole was refused; smaller entries will tell which file is to blame."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """The destination is refused (token, permission, quota, repository); `hint` names what helps."""

    reason: str
    hint: str


@dataclass(frozen=True)
class Quarantine:
    """These paths are refused, each with its reason; the others may go on, or are there already if it `committed`."""

    paths: dict[str, str] = field(default_factory=dict)
    committed: bool = False


Verdict = Done | Retry | Moved | Unknown | Split | Refused | Quarantine
