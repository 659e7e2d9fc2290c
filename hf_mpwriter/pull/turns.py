"""Turns: which file of a bucket a follower reads on with, as far as it was told what the bucket has.

    listing, feed --told--> what the bucket has --turn--> one range of each file --came--> what is here

Invariants:
- A file appears only when all earlier ones of its directory, by their names, are here as far as the bucket had them
  when it was shown: TensorBoard never reads an earlier file again once a later one is there.
- What the bucket was once seen to have is waited for, as a late request may make a file shorter for a while. One that
  is gone holds nothing up: the repository has it.
- In a turn each file is read at most once. The ranks take turns, each with its newest file first, of those that were
  not read for longest.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from itertools import zip_longest

from hf_mpwriter.base.names import worker_of


class Turns:
    """What a bucket has of a run, what is here, and what comes next."""

    def __init__(self) -> None:
        self._there = dict[str, int]()  # bytes that the bucket has, as it was told last
        self._most = dict[str, int]()  # the most of them that it was seen to have
        self._goal = dict[str, int]()  # bytes that have to be here before a later file of the directory appears
        self._here = dict[str, int]()  # bytes; a file that is not here is not in it
        self._absent = set[str]()  # files that were looked for and are not here
        self._left = set[str]()  # files that cannot be here
        self._served, self._turn = dict[str, int](), 0  # the turn in which each file, and each rank, was read last

    def listed(self, there: Mapping[str, int]) -> None:
        """Take in a listing."""
        self.told(dict.fromkeys(self._there.keys() - there.keys()) | dict(there))

    def told(self, changed: Mapping[str, int | None]) -> None:
        """Take in what has changed: the bytes that a file has, None of one that is gone."""
        last_new = dict[str, str]()  # the last name of a file that was not known, per directory
        for path, size in changed.items():
            if size is None:
                for known in (self._there, self._most, self._goal):
                    known.pop(path, None)
                continue
            if path not in self._most:
                directory = os.path.dirname(path)
                last_new[directory] = max(path, last_new.get(directory, ""))
            self._there[path], self._most[path] = size, max(size, self._most.get(path, 0))
        for path, most in self._most.items() if last_new else ():
            if path < last_new.get(os.path.dirname(path), ""):
                self._goal[path] = most

    def came(self, path: str, length: int) -> None:
        """So many bytes of a file are here now; if that is no more than before, the next news is waited for."""
        if length <= self._here.get(path, 0):
            self._there[path] = min(length, self._there.get(path, 0))
        self._here[path] = length

    def leave(self, path: str) -> None:
        """A file cannot be here, and holds nothing up."""
        self._left.add(path)

    def unknown(self) -> list[str]:
        """The files that were not looked for here yet."""
        return sorted(self._there.keys() - self._here.keys() - self._absent - self._left)

    def is_not_here(self, path: str) -> None:
        """A file was looked for, and is not here."""
        self._absent.add(path)

    def is_new(self, path: str) -> bool:
        """Whether a file is not here."""
        return path not in self._here

    def here(self, path: str) -> int:
        """Bytes of a file that are here."""
        return self._here.get(path, 0)

    def there(self, path: str) -> int:
        """Bytes that the bucket has of a file, as it was told last."""
        return self._there.get(path, 0)

    @property
    def lacks(self) -> int:
        """Bytes that the bucket has and that are not here."""
        return sum(max(0, self._there[path] - self._here.get(path, 0)) for path in self._there.keys() - self._left)

    @property
    def has_next(self) -> bool:
        """Whether there is a file to read on with."""
        return bool(self._candidates())

    def turn(self) -> list[str]:
        """The files to read on with, in this order; each counts as read when `serve` is told of it."""
        self._turn += 1
        by_worker = defaultdict[str, list[str]](list)
        for path in sorted(self._candidates(), reverse=True):
            by_worker[worker_of(path)].append(path)
        for paths in by_worker.values():
            paths.sort(key=lambda path: self._served.get(path, 0))
        workers = sorted(by_worker, key=lambda worker: self._served.get(f"{worker}/", 0))
        layers = zip_longest(*(by_worker[worker] for worker in workers))
        return [path for layer in layers for path in layer if path is not None]

    def serve(self, path: str) -> None:
        """A file was read in this turn."""
        self._served[path] = self._served[f"{worker_of(path)}/"] = self._turn

    def _candidates(self) -> list[str]:
        found, waiting = list[str](), set[str]()  # directories in which nothing new may appear
        for path in sorted(self._there.keys() - self._left, key=os.path.split):
            directory, is_here = os.path.dirname(path), path in self._here
            here = self._here.get(path, 0)
            if here < self._there[path] and (is_here or directory not in waiting):
                found.append(path)
            if here < self._goal.get(path, self._most[path]):
                waiting.add(directory)
        return found
