"""The order of the tests: the longest first, in each process, and beside each other those that differ.

xdist's `worksteal` gives each process a slice of the list of tests, and takes from the end of a slice what an idle
process runs for it. So a slice begins with tests that wait for processes, and ends with short ones that compute. A
module is run by one process, and so are all frameworks: their tests share what one of them has trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath

SECONDS = {  # that a test takes, about; a test of any other folder is a short one
    "integration/core": 6,
    "integration/documents": 1,
    "integration/face": 8,
    "integration/face_cli": 3,
    "integration/frameworks": 15,
    "integration/hazards": 4,
    "integration/host": 4,
    "integration/hub": 5,
    "integration/launchers": 10,
    "integration/mirror": 12,
    "integration/pages": 70,
    "integration/storage": 7,
    "proof": 9,
}
TOGETHER = "integration/frameworks"


def dealt(paths: Sequence[PurePath], processes: int) -> list[int]:
    """The order in which tests are to be listed; indices of `paths`."""
    packs: dict[PurePath, list[int]] = {}
    for index, path in enumerate(paths):
        packs.setdefault(path.parent if path.parent.as_posix() == TOGETHER else path, []).append(index)
    weights = {path: _seconds(path) * len(pack) for path, pack in packs.items()}
    hands: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for path in sorted((path for path in packs if weights[path]), key=lambda path: -weights[path]):
        least = loads.index(min(loads))
        hands[least] += packs[path]
        loads[least] += weights[path]
    return _filled(hands, [index for path, pack in packs.items() if not weights[path] for index in pack])


def _seconds(path: PurePath) -> int:
    return SECONDS.get(path.as_posix(), SECONDS.get(path.parent.as_posix(), 0))


def _filled(hands: Iterable[list[int]], short: list[int]) -> list[int]:
    """Slices of equal length, as xdist cuts them, of what each process begins with and of short tests."""
    hands = list(hands)
    left, found = sum(map(len, hands)) + len(short), []
    for number, hand in enumerate(hands):
        lacks = max(0, left // (len(hands) - number) - len(hand))
        found += [*hand, *short[:lacks]]
        short = short[lacks:]
        left -= len(hand) + lacks
    return found + short
