"""The exceptions that a user can meet.

    HfMpWriterError
      SettingsError        also a ValueError
      LogdirError          also an OSError
        ForeignSpoolError
      SpoolFormatError
      DestinationError     also a ValueError

Invariants:
- Constructors and the command line raise them. `add_*`, `flush` and `close` do not: nothing is raised into training.
- Message and hint hold no token of the environment, and nothing that a terminal obeys.
- A pool brings them from a child to its parent: `args` are what the constructor takes.
"""

from __future__ import annotations

import os

from hf_mpwriter.system.redaction import environment_tokens, printable, redact


class HfMpWriterError(Exception):
    """Something went wrong.

    Args:
        message: what went wrong; the first paragraph of the docstring of the class if not given.
        hint: what to do; it names a command where one helps.

    Attributes:
        message: as given, without secrets.
        hint: as given, without secrets.
    """

    def __init__(self, message: str = "", hint: str = "") -> None:
        secrets = environment_tokens(os.environ)
        self.message = printable(redact(message, secrets)) or (self.__doc__ or "").partition("\n\n")[0].strip()
        self.hint = printable(redact(hint, secrets))
        super().__init__(self.message, self.hint)

    def __str__(self) -> str:
        """Message and hint in one line."""
        return f"{self.message} {self.hint}".strip()


class SettingsError(HfMpWriterError, ValueError):
    """A setting is not valid."""


class LogdirError(HfMpWriterError, OSError):
    """The logdir cannot be used."""

    errno: int | None = None  # OSError would take message and hint for these two
    strerror: str | None = None


class ForeignSpoolError(LogdirError):
    """The spool is not this user's own, or others may write into it."""


class SpoolFormatError(HfMpWriterError):
    """The spool was written by another version of hf_mpwriter."""


class DestinationError(HfMpWriterError, ValueError):
    """The run directory already belongs to another destination."""
