"""Gaps: event files of the logdir that a restore has not brought, as the uploader of a staged run sees them.

    in the logdir, not here, and        later files of the same writer
    not known to be on the Hub          wait: TensorBoard drops points of a later file when an earlier one comes
    on the Hub, all of it               are sent

The Hub is asked for what the ledger does not know. `sync` sends what waits: it is asked by a person, and at the end.

Invariant: only the spool is read, never the logdir.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.snapshot.event_files import writer_of
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.staging.restoration import Unrestored

_LOOK_EVERY = 5.0  # seconds between two looks at what is missing; a restore comes before the first member


class Gaps:
    """What is missing of a run; nothing of one that is not staged."""

    def __init__(self, spool: Spool, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool, self._ledger, self._clock = spool, ledger, clock
        self._next_look, self._were_unknown = -1.0, False
        self._found: dict[str, int] = {}
        self._of_writers: dict[tuple[str, str], list[str]] = {}  # what is missing of each, in order

    def _missing(self) -> dict[str, int]:
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + _LOOK_EVERY
            self._found, self._of_writers = Unrestored.read(self._spool).still_missing(self._spool), {}
            for path in sorted(self._found):
                self._of_writers.setdefault(writer_of(path), []).append(path)
        return self._found

    @property
    def unknown(self) -> dict[str, Sent]:
        """What the Hub has to be asked for, as a guess that it will correct: it may have all of it."""
        known = self._ledger.files
        found = {path: Sent(size, "") for path, size in self._missing().items() if path not in known}
        self._were_unknown = self._were_unknown or bool(found)
        return found

    def were_closed(self) -> bool:
        """Whether the Hub has answered since something was unknown; True once."""
        if not self._were_unknown or self.unknown:
            return False
        self._were_unknown = False
        return True

    def before(self, path: str) -> str:
        """The earliest missing file that a file has to wait for, "" if it may be sent."""
        missing = self._missing()
        if not missing:
            return ""
        others = self._of_writers.get(writer_of(path), ())
        return next((other for other in others if other < path and self._ledger.length(other) < missing[other]), "")
