"""The cache of step encoders: hits where names come back, and an end of its growth."""

from __future__ import annotations

import pytest

from hf_mpwriter.writer import encoder as module
from hf_mpwriter.writer.encoder import GENERATION, SET_COST, EncoderCache


def names(start: str, count: int) -> tuple[str, ...]:
    """A set of names."""
    return tuple([f"{start}/{number}" for number in range(count)])


def test_large_sets_that_alternate_all_stay():
    """Training and evaluation with 2,500 names each: every encoder is made once."""
    cache, sets = EncoderCache(), [names(start, 2500) for start in ("train", "eval", "test")]
    first = [cache[one] for one in sets]
    for _ in range(20):
        assert [cache[one] for one in sets] == first


def test_sets_that_fill_a_generation_stay_while_a_few_others_come():
    """What is used again moves on to the next generation."""
    cache, mine = EncoderCache(), names("mine", 10_000)
    encoder = cache[mine]
    for number in range(5):
        cache[names(f"other_{number}", 10_000)]
        assert cache[mine] is encoder


@pytest.mark.parametrize("size", [1, 20, 5000])
def test_names_that_never_come_back_are_forgotten(size):
    """A step in a name must not fill the memory: many sets, or large ones."""
    cache, sets = EncoderCache(), 4 * GENERATION // (size + SET_COST)
    for number in range(sets):
        cache[names(str(number), size)]
        if number % (sets // 8) == 0:
            assert cache.kept <= 2 * (GENERATION + size)
            assert len(cache) + len(cache._old) <= 2 * (GENERATION // (size + SET_COST) + 1)


def test_one_set_above_the_limit_is_still_made_once():
    """Its memory is that of the user's own mapping; no second one is kept beside it for long."""
    cache, huge = EncoderCache(), names("huge", GENERATION + 1)
    assert cache[huge] is cache[huge]
    cache[names("another", GENERATION + 1)]
    assert cache.kept == GENERATION + 1


def test_names_that_cannot_be_logged_leave_nothing(monkeypatch):
    """Refused each time."""
    cache = EncoderCache()
    for _ in range(2):
        with pytest.raises(ValueError, match="the same name"):
            cache["a b", "a_b"]
    assert len(cache) == 0
    monkeypatch.setattr(module, "tags_of", list)
    assert cache["a b", "a_b"] is cache["a b", "a_b"]
