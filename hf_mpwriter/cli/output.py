"""Lines of text about files and uploaders, and the progress bar."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from hf_mpwriter.base.settings import is_on
from hf_mpwriter.base.words import size_text, span
from hf_mpwriter.delivery.sinks import Carrier
from hf_mpwriter.snapshot.event_files import Damage
from hf_mpwriter.system.redaction import printable

if TYPE_CHECKING:
    from hf_mpwriter.testing import Report


LINE_EVERY = 60.0  # seconds between two lines of progress where no bar is drawn
SELDOM = 3600.0  # the same, at most, while nothing comes: the time between two lines doubles
DAMAGED = 3  # exit code of `sync` and `verify`: damage in the middle of a local event file, which no upload mends


class DamageError(click.ClickException):
    """A local event file is damaged."""

    exit_code = DAMAGED


def failure(text: str, *, damaged: bool) -> click.ClickException:
    """Return the error that ends a command whose run is not complete, or damaged."""
    return (DamageError if damaged else click.ClickException)(printable(text))


def show_damage(damage: Iterable[Damage]) -> bool:
    """Print a line for each end of an event file that no reader reaches.

    Whether one of them is damage: an incomplete last record is ordinary after a kill.
    """
    found = list(damage)
    for one in found:
        click.echo(f"{printable(one.path)} {one}", err=True)
    return any(not one.is_incomplete for one in found)


def comparison_lines(report: Report) -> Iterator[str]:
    """Return a line for each file that the oracle compared with the Hub's copy."""
    for file in report.files.values():
        events = f"{file.hub_events:>8} of {file.local_events:>8} events"
        if file.is_elsewhere:
            events = f"{'written by another machine':>27}"
        yield f"  {_sizes(file.hub_bytes, file.local_bytes)} {events}  {printable(file.path)}"
    for file in report.attachments.values():
        yield f"  {_sizes(file.hub_bytes, file.local_bytes)} {'':27}  {printable(file.path)}"


def _sizes(part: int, total: int) -> str:
    return f"{size_text(part):>9} of {size_text(total):>9}"


class UploadBar:
    """A progress bar of bytes that are where they should be; above it, the reason of a failed push, once each.

    A refusal is left to the error that ends the command: it comes at once.

    Where the output is no terminal, there is a line a minute instead, and fewer while nothing comes.
    HF_HUB_DISABLE_PROGRESS_BARS=1 switches off both.
    """

    def __init__(
        self,
        total: int,
        missing: int,
        what: str = "on the Hub",
        name: str = "",
        *,
        drawn: bool = True,
        lines: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = f"{printable(name)}: " if name else ""
        is_off = is_on(os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", ""))
        self._is_drawn = drawn and not is_off and sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            unit="B",
            unit_scale=True,
            desc=f"{self._name}{what}",
            initial=total - missing,
            file=sys.stderr,
            disable=not self._is_drawn,
        )
        self._total, self._held, self._what = total, total - missing, what
        self._clock, self._began_at, self._told = clock, clock(), -1
        self._next_line = self._next_repeat = -math.inf if lines and not is_off else math.inf
        self._pause = LINE_EVERY
        self._last_failure = ""

    def show(self, total: int, missing: int) -> None:
        """Show what is missing of a total that was not known before."""
        self._total = self._bar.total = total
        self.update(missing)

    def update(self, missing: int) -> None:
        """Show what is missing now; the bar never goes back."""
        self._held = max(self._held, self._total - missing)
        if self._is_drawn:
            self._bar.n = self._held
            self._bar.refresh()
        elif (now := self._clock()) >= (self._next_line if self._held > self._told else self._next_repeat):
            self._print_line(now)

    def _print_line(self, now: float) -> None:
        self._pause = LINE_EVERY if self._held > self._told else min(2 * self._pause, SELDOM)
        self._told, self._next_line, self._next_repeat = self._held, now + LINE_EVERY, now + self._pause
        spent = now - self._began_at
        so_far = f", after {span(spent)}" if spent >= LINE_EVERY else ""
        text = f"{self._name}{self._what}: {size_text(self._held)} of {size_text(self._total)}{so_far}"
        print(text, file=sys.stderr, flush=True)

    def show_failure(self, uploader: Carrier, since: float) -> None:
        """Print why the last push failed, unless that was printed last time."""
        if uploader.is_news(since) and not uploader.is_refused and uploader.reason != self._last_failure:
            self._last_failure = uploader.reason
            self._bar.write(printable(f"{self._name}not yet: {uploader.why}"), file=sys.stderr)

    def close(self) -> None:
        """Leave the bar on the screen as it is."""
        self._bar.close()
