"""The order of the tests: which process begins with what, as xdist cuts the list."""

from __future__ import annotations

from pathlib import PurePath

import pytest
from dealing import TOGETHER, dealt

HUB = [PurePath(f"integration/hub/test_{n}.py") for n in range(12)]
FRAMEWORKS = [PurePath(TOGETHER, f"test_{n}.py") for n in range(3)]
UNIT = [PurePath(f"unit/base/test_{n}.py") for n in range(20)]


def slices(paths: list[PurePath], processes: int) -> list[list[PurePath]]:
    """What each process gets first."""
    pending, found = [paths[index] for index in dealt(paths, processes)], []
    for number in range(processes):
        count = len(pending) // (processes - number)
        found.append(pending[:count])
        pending = pending[count:]
    return found


@pytest.mark.parametrize("processes", [1, 2, 5, 7])
def test_each_process_begins_with_long_tests_and_ends_with_short_ones(processes):
    """As many of each as the others, and no test is lost or comes twice."""
    paths = [path for path in UNIT for _ in range(50)] + [path for path in HUB for _ in range(3)]
    found = slices(paths, processes)
    assert sorted(path for part in found for path in part) == sorted(paths)
    longs = [sum(path in HUB for path in part) for part in found]
    assert max(longs) - min(longs) <= 3
    assert all(path in HUB for part, long in zip(found, longs, strict=True) for path in part[:long])
    assert min(longs) > 0


def test_a_module_and_all_frameworks_are_of_one_process():
    """They share what one of their tests has made."""
    paths = [path for path in UNIT + HUB + FRAMEWORKS for _ in range(20)]
    found = slices(paths, 5)
    for together in (FRAMEWORKS, *([path] for path in HUB)):
        assert len([part for part in found if set(together) & set(part)]) == 1


@pytest.mark.parametrize("paths", [[], HUB[:1], UNIT[:2], HUB + HUB[:1] * 30])
def test_few_tests_are_all_there(paths):
    """Fewer than processes, none short, one module that is longer than a slice."""
    assert sorted(dealt(paths, 7)) == list(range(len(paths)))
