"""The display of the demo: events on stdout, progress on stderr.

[   7 s] killed rank 2 (pid 4711) after step 31              an event
rank 0  rate 0.02  loss 0.61 accuracy 0.88  48/80 |####  |   progress on a terminal: a bar per rank, one for the Hub
[  10 s]   steps 48, 50, 31, 49 of 80; ... on the Hub        progress elsewhere: a line every LINE_EVERY seconds
"""

from __future__ import annotations

import sys
import time
from typing import NoReturn

from tqdm import tqdm

from hf_mpwriter.demo.stage import Stage
from hf_mpwriter.demo.training import LEARNING_RATES
from hf_mpwriter.spool.progress import size_text

LINE_EVERY = 5.0  # seconds between two lines where there is no terminal
REFRESH_EVERY = 0.2  # seconds between two updates of the bars, which walk the run directory


class Display:
    """Shows events and progress."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._next_line = self._next_refresh = 0.0
        self._started_at = time.monotonic()
        self._bars = [_bar(stage.steps) for _ in LEARNING_RATES] if sys.stderr.isatty() else []
        self._bars += [_bar(0)] if self._bars else []

    def show(self, text: str) -> None:
        """Show an event."""
        stamped = f"[{time.monotonic() - self._started_at:4.0f} s] {text}"
        if self._bars:
            tqdm.write(stamped)
        else:
            print(stamped, flush=True)

    def update(self) -> None:
        """Show the progress if it is time to; call it often."""
        now = time.monotonic()
        if self._bars and now >= self._next_refresh:
            self._next_refresh = now + REFRESH_EVERY
            self._draw()
        elif not self._bars and now >= self._next_line:
            self._next_line = now + LINE_EVERY
            self._line()

    def _draw(self) -> None:
        *bars, hub = self._bars
        for bar, rank, rate in zip(bars, self._stage.ranks, LEARNING_RATES, strict=True):
            bar.n, training = rank.progress()
            state = ("killed" if rank.has_failed else "ended") if rank.is_over else f"{bar.n}/{bar.total}"
            bar.set_description_str(f"rank {rank.rank}  rate {rate:<4}  {training:<23} {state:>9}")
        hub.n, hub.total = self._stage.bytes()
        share = f"{size_text(hub.n)} of {size_text(hub.total)}"
        hub.set_description_str(f"on the Hub {share:>41}")

    def _line(self) -> None:
        steps = ", ".join(str(rank.progress()[0]) for rank in self._stage.ranks)
        there, size = self._stage.bytes()
        line = f"steps {steps} of {self._stage.steps}; {size_text(there)} of {size_text(size)} on the Hub"
        print(f"[{time.monotonic() - self._started_at:4.0f} s]   {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Draw the bars for the last time and leave them on the terminal."""
        if self._bars:
            self._draw()
        for bar in self._bars:
            bar.close()
        self._bars = []


def _bar(total: int) -> tqdm[NoReturn]:
    return tqdm(total=total, bar_format="{desc} |{bar}| {percentage:3.0f}%", dynamic_ncols=True)
