"""TensorBoard's readers on what we write: the default one (data server) and both Python ones."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forks import Staged, in_child
from hazards import event_paths
from programs import wait_for
from support import scalar
from tensorboard_server import tensorboard

from hf_mpwriter import SummaryWriter
from hf_mpwriter.base import names
from hf_mpwriter.events import framing, series

# Scenarios: launchers, crashes and clocks on one run directory. Each is a generator that runs in a process of
# its own and yields once: TensorBoard has read what was there then before it goes on.


def be_rank(number: int, world: int = 1) -> None:
    """Make this process a rank of a launcher."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world)}


def attempt(run: Path, first: int, last: int, purge_step: int | None = None, value: float = 0.0) -> None:
    """Start a training in one process that logs `value` at each of these steps."""

    def train() -> None:
        be_rank(0)
        with SummaryWriter(str(run), purge_step=purge_step) as writer:
            for step in range(first, last):
                writer.add_scalar("loss", value, step)
                writer.add_scalars("sub", {"run": value}, step)

    assert in_child(train) == 0


def stop_clock(at: float) -> None:
    """Stop the wall clock of this process and of its children."""
    time.time = lambda: at


def rotated(run: Path) -> Iterator[None]:
    """A writer seals many segments, also while TensorBoard watches."""
    be_rank(0)
    series.SEGMENT_MIN = 500
    with SummaryWriter(str(run)) as writer:
        for step in range(60):
            writer.add_scalar("loss", 0.0, step)
        yield
        for step in range(60, 120):
            writer.add_scalar("loss", 0.0, step)
    assert len(event_paths(run)) > 6


def resumed(run: Path) -> Iterator[None]:
    """A second attempt resumes at step 50 with purge_step, a third one at 90."""
    attempt(run, 0, 80, value=1.0)
    yield
    attempt(run, 50, 100, 50, value=2.0)
    attempt(run, 90, 120, 90, value=3.0)


def resumed_without_purge_step(run: Path) -> Iterator[None]:
    """The same without purge_step."""
    attempt(run, 0, 80, value=1.0)
    yield
    attempt(run, 50, 100, value=2.0)


def torn(run: Path) -> Iterator[None]:
    """The first attempt was cut off in the middle of a record (power cut); the second one leaves that file alone."""
    attempt(run, 0, 80, value=1.0)
    (path,) = event_paths(run)
    with open(path, "ab") as file:
        file.write(framing.frame(scalar(80))[:-7])
    left = path.read_bytes()
    yield
    attempt(run, 50, 100, 50, value=2.0)
    assert path.read_bytes() == left
    assert len(event_paths(run)) == 2


def evaluated_before_the_crash(run: Path) -> Iterator[None]:
    """A tag that only the first attempt has written, at steps that the second one has not reached again."""

    def evaluate() -> None:
        be_rank(0)
        with SummaryWriter(str(run)) as writer:
            for step in (20, 40, 60):
                writer.add_scalar("eval", 1.0, step)

    assert in_child(evaluate) == 0
    yield
    attempt(run, 50, 55, 50)


def restarted_in_the_same_second(run: Path) -> Iterator[None]:
    """Three starts while the clock shows one second: no file is opened twice, and names sort in the order of starts."""
    stop_clock(time.time())
    attempt(run, 0, 10)
    yield
    attempt(run, 10, 20)
    attempt(run, 20, 30)
    seconds = [names.event_second(path.name) for path in event_paths(run)]
    assert len(seconds) == 3
    assert sorted(set(seconds)) == seconds, "the order of names must not depend on process ids"


def clock_went_back(run: Path) -> Iterator[None]:
    """The second attempt runs an hour earlier than the first."""
    now = time.time()
    stop_clock(now)
    attempt(run, 0, 80, value=1.0)
    yield
    stop_clock(now - 3600)
    attempt(run, 50, 100, 50, value=2.0)


def ahead_of_all_clocks(run: Path) -> Iterator[None]:
    """Somebody has put an event file there whose name has the last second of ten digits."""
    attempt(run, 0, 10)
    stranger = run / "events.out.tfevents.9999999999.h.1.00000000"
    stranger.write_bytes(framing.frame(framing.version_event(time.time())))
    yield
    attempt(run, 10, 20)
    attempt(run, 20, 30)
    assert event_paths(run).index(stranger) == 1


def two_ranks(run: Path) -> Iterator[None]:
    """Two ranks log the same tags at the same time."""

    def rank(number: int) -> Iterator[None]:
        be_rank(number, 2)
        with SummaryWriter(str(run)) as writer:
            for step in range(50):
                writer.add_scalar("loss", number, step)
            yield
            for step in range(50, 100):
                writer.add_scalar("loss", number, step)

    ranks = [Staged(rank(number)) for number in range(2)]
    yield
    assert [child.finish() for child in ranks] == [0, 0]


def smaller_world(run: Path) -> Iterator[None]:
    """Two ranks up to step 80, then one rank alone resumes at step 50."""

    def train(number: int, world: int, first: int, last: int, purge_step: int | None = None) -> None:
        be_rank(number, world)
        with SummaryWriter(str(run), purge_step=purge_step) as writer:
            for step in range(first, last):
                writer.add_scalar("loss", float(world), step)

    for number in range(2):
        assert in_child(lambda number=number: train(number, 2, 0, 80)) == 0
    yield
    assert in_child(lambda: train(0, 1, 50, 100, 50)) == 0


def held_by_an_orphan(run: Path) -> Iterator[None]:
    """Rank 1 of the first attempt lives on; the second attempt resumes at step 50, the third one at 90."""

    def rank(value: float, purge_step: int | None, *spans: tuple[int, int]) -> Iterator[None]:
        be_rank(1, 2)
        with SummaryWriter(str(run), purge_step=purge_step) as writer:
            for first, last in spans:
                for step in range(first, last):
                    writer.add_scalar("loss", value, step)
                yield

    orphan = Staged(rank(1.0, None, (0, 80), (80, 100)))
    yield
    second = Staged(rank(2.0, 50, (50, 60), (60, 95)))
    orphan.go_on()
    orphan.kill()
    second.go_on()
    assert second.finish() == 0
    assert in_child(lambda: list(rank(3.0, 90, (90, 120)))) == 0


def closed_and_logged_again(run: Path) -> Iterator[None]:
    """A writer with purge_step is closed after each part: START is not written again (h12)."""
    be_rank(0)
    writer = SummaryWriter(str(run), purge_step=0)
    for step in range(120):
        writer.add_scalar("loss", 0.0, step)
        if step % 40 == 39:
            writer.close()
        if step == 60:
            yield


def steps_of_many_names(run: Path) -> Iterator[None]:
    """`log` of 1,000 names, on both sides of a restart with `purge_step`, and of a START that stands in the middle."""

    def train(first: int, last: int, purge_step: int | None, value: float) -> None:
        be_rank(0)
        with SummaryWriter(str(run), purge_step=purge_step) as writer:
            for step in range(first, last):
                writer.log({"loss": value, "many": {str(name): value for name in range(999)}}, step)

    assert in_child(lambda: train(0, 8, None, 1.0)) == 0
    yield
    assert in_child(lambda: train(5, 10, 5, 2.0)) == 0
    assert in_child(lambda: train(9, 12, 9, 3.0)) == 0


def steps_of_log(run: Path) -> Iterator[None]:
    """`log` counts on over two restarts, the second with purge_step; scalars of their own are between the steps."""

    def train(count: int, value: float, purge_step: int | None = None) -> None:
        be_rank(0)
        with SummaryWriter(str(run), purge_step=purge_step) as writer:
            for _ in range(count):
                writer.log({"loss": value, "lr": value})
                writer.add_scalar("alone", value, writer.last_step("loss"))

    assert in_child(lambda: train(30, 1.0)) == 0
    yield
    assert in_child(lambda: train(30, 2.0)) == 0
    assert in_child(lambda: train(60, 3.0, 50)) == 0


def points(*parts: tuple[int, int, float]) -> list[tuple[int, float]]:
    """(step, value) of each point, for ranges of steps with one value."""
    return [(step, value) for first, last, value in parts for step in range(first, last)]


Curves = dict[tuple[str, str], list[tuple[int, float]]]
RESUMED = points((0, 50, 1.0), (50, 100, 2.0))
MANY_NAMES = points((0, 5, 1.0), (5, 9, 2.0), (9, 12, 3.0))
COUNTED = points((0, 30, 1.0), (30, 50, 2.0), (50, 110, 3.0))
RESUMED_TWICE = points((0, 50, 1.0), (50, 90, 2.0), (90, 120, 3.0))
# scenario -> (run below its directory, tag) -> points, the same in each reader
SCENARIOS: dict[Callable[[Path], Iterator[None]], Curves] = {
    rotated: {("", "loss"): points((0, 120, 0.0))},
    resumed: {("", "loss"): RESUMED_TWICE, ("/sub/run", "sub"): RESUMED_TWICE},
    resumed_without_purge_step: {("", "loss"): RESUMED},
    torn: {("", "loss"): RESUMED, ("/sub/run", "sub"): RESUMED},
    evaluated_before_the_crash: {("", "loss"): points((50, 55, 0.0)), ("", "eval"): [(20, 1.0), (40, 1.0)]},
    restarted_in_the_same_second: {("", "loss"): points((0, 30, 0.0)), ("/sub/run", "sub"): points((0, 30, 0.0))},
    clock_went_back: {("", "loss"): RESUMED, ("/sub/run", "sub"): RESUMED},
    ahead_of_all_clocks: {("", "loss"): points((0, 30, 0.0)), ("/sub/run", "sub"): points((0, 30, 0.0))},
    two_ranks: {("", "loss"): points((0, 100, 0.0)), ("/rank_00001", "loss"): points((0, 100, 1.0))},
    closed_and_logged_again: {("", "loss"): points((0, 120, 0.0))},
    steps_of_many_names: {("", tag): MANY_NAMES for tag in ("loss", "many/0", "many/998")},
    steps_of_log: {("", tag): COUNTED for tag in ("loss", "lr", "alone")},
    smaller_world: {
        ("", "loss"): points((0, 50, 2.0), (50, 100, 1.0)),
        ("/rank_00001", "loss"): points((0, 50, 2.0)),
    },
    held_by_an_orphan: {
        ("/rank_00001", "loss"): points((0, 50, 1.0), (90, 120, 3.0)),
        ("/rank_00001~2", "loss"): points((50, 90, 2.0)),
    },
}
# The default reader knows nothing of purge_step: a later point replaces older ones of its own tag, and no others.
DEFAULT_ONLY: dict[Callable[[Path], Iterator[None]], Curves] = {
    evaluated_before_the_crash: {("", "eval"): [(20, 1.0), (40, 1.0), (60, 1.0)]},
    smaller_world: {("/rank_00001", "loss"): points((0, 80, 2.0))},
    held_by_an_orphan: {
        ("/rank_00001", "loss"): points((0, 90, 1.0), (90, 120, 3.0)),
        ("/rank_00001~2", "loss"): points((50, 95, 2.0)),
    },
}
# The others replace nothing unless purge_step says so.
PYTHON_ONLY: dict[Callable[[Path], Iterator[None]], Curves] = {
    resumed_without_purge_step: {("", "loss"): points((0, 80, 1.0), (50, 100, 2.0))},
}
READERS = {
    "default": ([], DEFAULT_ONLY),
    "watch": (["--load_fast", "false"], PYTHON_ONLY),
    "multi": (["--load_fast", "false", "--reload_multifile", "true"], PYTHON_ONLY),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_shows_every_point_of_crashed_resumed_rotated_and_parallel_runs(tmp_path, reader):
    """All scenarios under one TensorBoard: runs that are complete when it starts, and runs that go on afterwards."""
    options, special = READERS[reader]
    for scenario in SCENARIOS:
        assert in_child(lambda scenario=scenario: list(scenario(tmp_path / "complete" / scenario.__name__))) == 0
    growing = [Staged(scenario(tmp_path / "growing" / scenario.__name__)) for scenario in SCENARIOS]
    halves = {str(path.parent.relative_to(tmp_path)) for path in (tmp_path / "growing").rglob("*tfevents*")}

    def wrong(place: str) -> list[str]:
        """What this TensorBoard shows wrongly."""
        found = []
        for scenario, curves in SCENARIOS.items():
            for (below, tag), expected in (curves | special.get(scenario, {})).items():
                run = f"{place}/{scenario.__name__}{below}"
                answer = ask("plugin/scalars/scalars", run=run, tag=tag) or []
                if [(step, value) for _, step, value in answer] != expected:
                    found.append(f"{run} {tag}: {[(step, value) for _, step, value in answer]}")
        return found

    def both_right() -> bool:
        """Whether everything is shown; what is not is remembered."""
        missing[:] = wrong("complete") + wrong("growing")
        return not missing

    missing: list[str] = []
    with tensorboard(tmp_path, *options) as ask:
        wait_for(lambda: halves <= set(ask("plugin/scalars/tags") or ()), "first halves")
        assert [child.finish() for child in growing] == [0] * len(growing)
        try:
            wait_for(both_right, "all points")
        except pytest.fail.Exception:
            pytest.fail("\n".join(missing))


def shown_by_the_accumulator(directory: Path, size: int) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's EventAccumulator keeps of each tag, at most so many points."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": size}).Reload()
    return {
        tag: [(point.step, point.value) for point in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


@pytest.mark.parametrize("size", [0, 100])
def test_the_accumulator_shows_of_steps_what_it_shows_of_scalars(tmp_path, size):
    """All points, and sampled: 2,500 steps, then a START twice, and the steps from 2,000 on once more."""
    tags = [f"name/{number}" for number in range(5)]
    for name in ("steps", "scalars"):
        for first, last, purge_step in ((0, 2500, None), (2000, 2200, 2000)):
            with SummaryWriter(tmp_path / name, purge_step=purge_step) as writer:
                for step in range(first, last):
                    metrics = {tag: float(step + number) for number, tag in enumerate(tags)}
                    if name == "steps":
                        writer.log(metrics, step)
                        continue
                    for tag, value in metrics.items():
                        writer.add_scalar(tag, value, step)
    steps, scalars = (shown_by_the_accumulator(tmp_path / name, size) for name in ("steps", "scalars"))
    assert steps == scalars
    assert all(50 < len(points) <= (size or 2200) for points in steps.values())
    assert size or {len(points) for points in steps.values()} == {2200}
