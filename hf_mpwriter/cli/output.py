"""Lines of text about files and uploaders, and the progress bar."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable

import click
from tqdm import tqdm

from hf_mpwriter.base.settings import is_on
from hf_mpwriter.base.words import size_text, span
from hf_mpwriter.delivery.sinks import Carrier
from hf_mpwriter.snapshot.event_files import Damage
from hf_mpwriter.system.redaction import printable

LINE_EVERY = 60.0  # seconds between two lines of progress where no bar is drawn
SELDOM = 3600.0  # the same, at most, while nothing comes: the time between two lines doubles
DAMAGED = 3  # exit code of `sync` and `verify`: damage in the middle of a local event file, which no upload mends


class DamageError(click.ClickException):
    """A local event file is damaged."""

    exit_code = DAMAGED


def failure(text: str, *, damaged: bool = False) -> click.ClickException:
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


def _is_shown() -> bool:
    """Whether progress is shown at all."""
    return not is_on(os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", ""))


class _Lines:
    """When the next line of progress may be printed: one a minute, and fewer while nothing is new."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._pause, self._at = clock, LINE_EVERY, -math.inf

    def is_due(self, *, is_new: bool) -> bool:
        """Whether one is printed now."""
        now = self._clock()
        if now - self._at < (LINE_EVERY if is_new else self._pause):
            return False
        self._pause, self._at = LINE_EVERY if is_new else min(2 * self._pause, SELDOM), now
        return True


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
        is_shown = _is_shown()
        self._is_drawn = drawn and is_shown and sys.stderr.isatty()
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
        self._has_lines, self._lines = lines and is_shown, _Lines(clock)
        self._clock, self._began_at, self._told = clock, clock(), -1
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
        elif self._has_lines:
            self._print_line()

    def _print_line(self) -> None:
        if not self._lines.is_due(is_new=self._held > self._told):
            return
        self._told = self._held
        spent = self._clock() - self._began_at
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


class LiveLine:
    """One line on a terminal that says what is now; elsewhere a line a minute, and fewer while it stays the same."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._has_lines, self._lines, self._shown = _is_shown(), _Lines(clock), ""
        self._is_drawn = self._has_lines and sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Show what is now."""
        text = printable(text)
        if self._is_drawn:
            print(
                f"\r{text[: os.get_terminal_size(sys.stderr.fileno()).columns - 1]}\x1b[K",
                end="",
                file=sys.stderr,
                flush=True,
            )
        elif self._has_lines and self._lines.is_due(is_new=text != self._shown):
            print(text, file=sys.stderr, flush=True)
            self._shown = text

    def say(self, text: str) -> None:
        """Print a line of its own."""
        print(f"\r{printable(text)}\x1b[K" if self._is_drawn else printable(text), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave what is shown."""
        if self._is_drawn:
            print(file=sys.stderr, flush=True)
