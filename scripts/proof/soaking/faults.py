"""What the soak does to a run: every kind of fault, in seeded order, undone before the run is checked.

The tally counts processes that were hit, requests that were struck (the Hub counts them), failpoints that failed (the
processes write them down), disks that were filled, cut or read-only, files that were damaged.
"""

from __future__ import annotations

import random
import time
from collections import Counter

from soaking.deck import ROUGH, Deck, Schedule
from soaking.run import Place, Run
from soaking.storage import Storage
from soaking.victims import Victims
from soaking.wire import Wire

BETWEEN = (0.05, 0.4)  # seconds between two cards
TICK = 0.03  # seconds
COUNTED_ELSEWHERE = ("wire", "SIGKILL", "failpoints")  # when they strike, not when they are prepared


class Chaos:
    """All faults of one run."""

    def __init__(self, run: Run, place: Place, rng: random.Random, left: list[str], tally: Counter[str]) -> None:
        self._run, self._rng, self.tally, self._schedule = run, rng, tally, Schedule()
        victims = Victims(run, rng, tally, self._schedule)
        self._wire = Wire(run, rng, tally, self._schedule)
        self._storage = Storage(run, place, rng, tally, self._schedule, victims, self._wire)
        cards = [*self._wire.cards(), *victims.cards(), *self._storage.cards()]
        self._deck = Deck([card for card in cards if not (run.is_gentle and card.name in ROUGH)], rng, left)

    def kinds(self) -> list[str]:
        """Return the names of all kinds of faults."""
        return self._deck.names()

    def storm(self, seconds: float) -> None:
        """Play cards for so long, then undo everything."""
        end = time.monotonic() + seconds
        next_card = 0.0
        while (now := time.monotonic()) < end:
            self._run.revive()
            self._schedule.run(now)
            self._wire.tick(now)
            if now >= next_card:
                card = self._deck.deal()
                if card.play() and not card.name.startswith(COUNTED_ELSEWHERE):
                    self.tally[card.name] += 1
                next_card = time.monotonic() + self._rng.uniform(*BETWEEN)
            time.sleep(TICK)
        self.calm()

    def calm(self) -> None:
        """Undo everything; no fault strikes any more."""
        self._schedule.run_all()
        self._wire.calm()
        self._storage.calm()
