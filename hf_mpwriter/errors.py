"""Every exception a user can meet, and the verdicts of a push.

An exception carries a `hint`: what to do, naming a command where one helps. Nothing here is ever raised into a
training loop; constructors and the command line raise, `add_*`, `flush` and `close` do not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from hf_mpwriter.redaction import given, redact

# What reading damaged JSON of ours may raise; whoever reads a file of the spool expects all of them.
DAMAGED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


class HfMpWriterError(Exception):
    """Something went wrong; the hint says what to do."""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        secrets = given(os.environ)
        self.message = redact(message or (self.__doc__ or "").strip(), secrets)
        self.hint = redact(hint, secrets)
        super().__init__(self.message, self.hint)

    def __str__(self) -> str:
        """Message and hint in one line."""
        return f"{self.message} {self.hint}".strip()


class SettingsError(HfMpWriterError, ValueError):
    """A setting is not valid."""


class LogdirError(HfMpWriterError, OSError):
    """The logdir cannot be used."""


class ForeignSpoolError(LogdirError):
    """The spool is not this user's own, or others may write into it."""


class SpoolFormatError(HfMpWriterError):
    """The spool was written by another version of hf_mpwriter."""


class DestinationError(HfMpWriterError, ValueError):
    """The run directory already belongs to another destination."""


@dataclass(frozen=True)
class Sent:
    """What the Hub holds of one file: so many bytes.

    Attributes:
        length: bytes.
        sha256: of these bytes, hex; "" where the Hub does not tell it.
        blob_id: git's id of these bytes, by which the Hub knows small regular files; "" where nobody asks for it.
        adopted: others have sent these bytes: an attachment that is theirs is not replaced.
    """

    length: int
    sha256: str
    blob_id: str = ""
    adopted: bool = False

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
class Park:
    """These paths are refused, each with its reason; the others may go on, or are there already if it `committed`."""

    paths: dict[str, str] = field(default_factory=dict)
    committed: bool = False


Verdict = Done | Retry | Moved | Unknown | Split | Refused | Park
