"""The limits that the event files of a process share: memory is counted along, and counted right."""

from __future__ import annotations

import builtins
import random

from hf_mpwriter.events import limits as limits_module
from hf_mpwriter.events.limits import Limits


def test_a_record_that_waits_costs_the_same_however_many_files_wait(monkeypatch):
    """Five thousand sub-writers on a full disk: a hundred thousand reports add up about as many numbers."""
    added = 0

    def counted(numbers):
        nonlocal added
        added += len(numbers)
        return builtins.sum(numbers)

    monkeypatch.setattr(limits_module, "sum", counted, raising=False)
    limits, backlogs = Limits(memory=10**9), [object() for _ in range(5000)]
    for size in range(1, 21):
        for backlog in backlogs:
            assert limits.has_room(backlog, size)
    assert added <= 2 * 20 * len(backlogs)


def test_the_memory_is_that_of_all_backlogs(monkeypatch):
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


def test_a_report_that_was_interrupted_is_corrected_by_later_ones():
    """A total that went wrong is counted again after as many reports as there are backlogs."""
    limits = Limits(memory=1000)
    for name in "abc":
        limits.has_room(name, 100)
    limits._total += 10_000
    assert [limits.has_room("a", 100) for _ in range(4)][-1]
