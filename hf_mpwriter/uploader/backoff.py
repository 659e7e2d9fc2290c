"""Verdict x attempts -> when to try again: a pure decision, with time and randomness as arguments.

Done                      now, if more is waiting
Moved                     seconds; after several in a row without a parent (a busy repository, a stale head), and if
                          even that does not help, as Retry
Retry, Unknown            full jitter under a ceiling that doubles from 5 s to 5 min; the Hub's own wish counts
Split                     soon, in smaller entries
Quarantine                      at once, without those paths
Refused                   slowly: 5 min, doubling to an hour; a new token or a request ends the wait
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from hf_mpwriter.base.verdicts import Done, Moved, Quarantine, Refused, Split, Verdict

FIRST_WAIT = 5.0  # seconds
LONGEST_WAIT = 300.0  # seconds
SHORTEST_WAIT = 0.5  # seconds; full jitter may draw 0, which would hammer
LONGEST_WISH = 3600.0  # seconds; a Retry-After beyond this is not believed
REFUSED_WAIT = 300.0  # seconds
LONGEST_REFUSED_WAIT = 3600.0  # seconds
MOVED_WAIT = 3.0  # seconds
MOVED_LIMIT = 5  # pushes in a row with nothing but 412, before one goes without a parent


@dataclass(frozen=True)
class Step:
    """What happens next.

    Attributes:
        wait: seconds until the next push.
        patient: whether a request of the user may end the wait (the Hub did not ask for it).
    """

    wait: float
    patient: bool = True


def next_step(verdict: Verdict, attempts: int, rng: random.Random) -> Step:
    """Decide.

    Args:
        verdict: of the push.
        attempts: verdicts of this sort (Moved, or any other but Done) in a row, this one included.
        rng: source of the jitter.
    """
    if isinstance(verdict, (Done, Quarantine)):
        return Step(0.0)
    if isinstance(verdict, Split):
        return Step(rng.uniform(SHORTEST_WAIT, FIRST_WAIT))
    if isinstance(verdict, Refused):
        return Step(min(LONGEST_REFUSED_WAIT, REFUSED_WAIT * 2 ** min(attempts - 1, 10)))
    if isinstance(verdict, Moved):
        if attempts <= MOVED_LIMIT:
            return Step(rng.uniform(SHORTEST_WAIT, MOVED_WAIT))
        attempts -= MOVED_LIMIT
    ceiling = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempts - 1, 10))
    wait = rng.uniform(SHORTEST_WAIT, ceiling)
    if not isinstance(verdict, Moved) and verdict.after is not None:
        return Step(max(wait, min(verdict.after, LONGEST_WISH)), patient=False)
    return Step(wait)
