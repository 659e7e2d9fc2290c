"""Turns: a bucket as a model, of which a follower is told now and then; requests are late, files are deleted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.pull.turns import Turns

PATHS = [f"{directory}events.{number}" for directory in ("", "rank_00001/", "rank_00001/a/") for number in range(3)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["log", "log", "send", "send", "late", "delete", "list", "feed", "round"]),
        st.integers(0, len(PATHS) - 1),
        st.integers(1, 9),
    ),
    max_size=60,
)


class World:
    """A writer per directory, their bucket, and what a follower has of it."""

    def __init__(self) -> None:
        self.disk, self.bucket, self.old = dict[str, int](), dict[str, int](), dict[str, list[int]]()
        self.here, self.shown, self.turns = dict[str, int](), dict[str, int](), Turns()
        self.news = dict[str, int | None]()

    def earlier(self, path):
        """The earlier files of its directory."""
        return [one for one in PATHS if one.rpartition("/")[0] == path.rpartition("/")[0] and one < path]

    def step(self, kind, path, number):
        """Let one thing happen."""
        if kind == "log" and all(one in self.disk for one in self.earlier(path)):
            if not any(path in self.earlier(one) for one in self.disk):
                self.disk[path] = self.disk.get(path, 0) + number
        elif kind == "send" and self.disk.get(path, 0) > self.bucket.get(path, 0):
            if all(self.bucket.get(one) in (None, self.disk[one]) for one in self.earlier(path)):
                self.old.setdefault(path, []).append(self.bucket.get(path, 0))
                self._put(path, self.disk[path])
        elif kind == "late" and any(self.old.get(path, [])) and path in self.bucket:
            self._put(path, self.old[path][number % len(self.old[path])] or self.bucket[path])
        elif kind == "delete" and self.bucket.get(path) == self.disk.get(path) == self.here.get(path, 0) > 0:
            del self.bucket[path]
            self.news[path] = None
        elif kind == "list":
            self.turns.listed(self.bucket)
            self.told(self.bucket)
        elif kind == "feed":
            self.turns.told(self.news)
            self.told({path: size for path, size in self.news.items() if size is not None})
            self.news = {}
        elif kind == "round":
            self.read(number)

    def _put(self, path, size):
        self.bucket[path] = self.news[path] = size

    def told(self, sizes):
        """Note the most that the follower was told of."""
        for path, size in sizes.items():
            self.shown[path] = max(size, self.shown.get(path, 0))

    def read(self, most):
        """Read as many files as a round has time for."""
        order = self.turns.turn()
        assert len(set(order)) == len(order)
        for path in order[:most]:
            if path not in self.here:
                known = [one for one in self.earlier(path) if one in self.bucket]
                late = [one for one in known if self.here.get(one, 0) < self.shown.get(one, 0)]
                assert not late, f"{path} appears before all of {late} is here"
            self.turns.serve(path)
            length = max(self.here.get(path, 0), self.bucket.get(path, 0))
            if length:
                self.here[path] = length
            self.turns.came(path, length)


@given(STEPS)
def test_a_file_appears_after_all_earlier_ones_and_at_the_end_all_is_here(steps):
    """Whatever is late, repeated or deleted: nothing shrinks, no later file is early, and the end is the writer's."""
    world = World()
    for kind, index, number in steps:
        before = dict(world.here)
        world.step(kind, PATHS[index], number)
        assert all(world.here[path] >= length for path, length in before.items())
    for path in sorted(world.disk):  # the lane mends what a late request has spoiled
        if path in world.bucket or world.here.get(path, 0) < world.disk[path]:
            world._put(path, world.disk[path])
    world.step("list", PATHS[0], 1)
    for _ in PATHS:
        world.step("round", PATHS[0], len(PATHS))
    assert world.here == world.disk
    assert world.turns.turn() == []


def test_ranks_take_turns_newest_files_first():
    """Two ranks: the file of each that was not read for longest, of two new directories the newest name."""
    turns = Turns()
    turns.listed({"a/events.1": 5, "b/events.2": 5, "rank_00001/events.1": 5, "rank_00001/events.2": 5})
    assert turns.turn() == ["rank_00001/events.1", "b/events.2", "a/events.1"]
    turns.serve("b/events.2")
    turns.came("b/events.2", 3)
    assert turns.turn() == ["rank_00001/events.1", "a/events.1", "b/events.2"]
