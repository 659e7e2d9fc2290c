"""The cards of the soak: one for each kind of fault, and when to undo what a card did."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

WEIGHTS = {  # other than 1; a late commit takes as long as ten other cards
    "SIGKILL worker": 4,
    "SIGKILL uploader": 2,
    "SIGKILL push": 3,
    "failpoints eio": 4,
    "failpoints enospc": 4,
    "power cut": 2,
    "wire late commit": 1,
    "wire late batch": 1,
}
ROUGH = (  # not in gentle runs: a rank that is killed has told what it lost until its last housekeeping, no more
    *(f"{signal} worker" for signal in ("SIGKILL", "SIGTERM")),
    *("all killed, started again", "rank with few descriptors", "rank with small files", "failpoints kill"),
    *("damaged member file", "spool removed", "continued elsewhere", "continued on another machine"),
    *("disk read-only", "power cut"),
)
WIRE_WEIGHT = 4  # a push that is killed meets no fault on the wire


@dataclass(frozen=True)
class Card:
    """One kind of fault."""

    name: str  # in the table
    play: Callable[[], object]  # inject it; false if there was no opportunity

    @property
    def weight(self) -> int:
        """How often it is in the deck."""
        return WEIGHTS.get(self.name, WIRE_WEIGHT if self.name.startswith("wire") else 1)


class Deck:
    """Deals all cards in random order, then shuffles them again: each kind comes as often as its weight says."""

    def __init__(self, cards: Iterable[Card], rng: random.Random, left: list[str]) -> None:
        self._cards, self._rng, self._left = {card.name: card for card in cards}, rng, left

    def names(self) -> list[str]:
        """Return the names of all cards."""
        return list(self._cards)

    def deal(self) -> Card:
        """Return the next card."""
        if not self._left:
            self._left += [card.name for card in self._cards.values() for _ in range(card.weight)]
            self._rng.shuffle(self._left)
        return self._cards[self._left.pop()]


class Schedule:
    """What to do later."""

    def __init__(self) -> None:
        self._later: list[tuple[float, Callable[[], object]]] = []

    def add(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something in so many seconds."""
        self._later.append((time.monotonic() + seconds, action))

    def run(self, now: float) -> None:
        """Do what is due."""
        due = [action for then, action in self._later if then <= now]
        self._later = [(then, action) for then, action in self._later if then > now]
        for action in due:
            action()

    def run_all(self) -> None:
        """Do everything now."""
        self.run(float("inf"))
