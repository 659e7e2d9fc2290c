"""The limits that the event files of a process share: memory is counted along, and counted right."""

from __future__ import annotations

import random

from hf_mpwriter.events.limits import Limits


def test_the_memory_is_that_of_all_backlogs():
    """Sizes go up and down, backlogs come and go: there is room exactly while their sum is within the limit."""
    rng = random.Random(4)
    print("seed 4")
    limits, sizes = Limits(memory=1000), dict[str, int]()
    for _ in range(5000):
        name = rng.choice("abcdefgh")
        if rng.random() < 0.3:
            sizes.pop(name, None)
            limits.clear(name)
        else:
            sizes[name] = rng.randint(1, 400)
            assert limits.has_room(name, sizes[name]) == (sum(sizes.values()) <= 1000)
        assert limits.is_calm == (not sizes)
    for name in list(sizes):
        limits._total += 10_000  # a report was interrupted
        limits.clear(name)
    assert limits.has_room("a", 1000)
