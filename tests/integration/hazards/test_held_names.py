"""Names that a process of an earlier attempt holds: what the next attempt says, hides and continues."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorboardX
from forks import Staged, in_child
from hazards import event_paths, numbers, run_file, runs, shown
from programs import Program

from hf_mpwriter import SummaryWriter

LOG_UNTIL_KILLED = """
import sys, time
from hf_mpwriter import SummaryWriter
writer = SummaryWriter(sys.argv[1])
writer.add_scalar("a", 1.0, 0)
print("ready", flush=True)
step = 0
while True:
    step += 1
    writer.add_scalar("a", 1.0, step)
    time.sleep(0.05)
"""
LOG_TWICE = """
import sys
from hf_mpwriter import SummaryWriter
step = int(sys.argv[2]) if sys.argv[2:] else None
writer = SummaryWriter(sys.argv[1], purge_step=step)
writer.add_scalar("a", 1.0, 5)
writer.close()
writer.add_scalar("a", 1.0, 6)
writer.close()
"""


@pytest.fixture
def orphan(start, run_dir):
    """Start a process that logs until it is killed, with an environment."""

    def begin(**env: str) -> Program:
        program = start(LOG_UNTIL_KILLED, run_dir, env=env)
        assert program.process.stdout.readline() == "ready\n"
        return program

    return begin


def warnings(errors: str) -> list[str]:
    """The warnings that tell of a held name."""
    return [line for line in errors.splitlines() if "is held by" in line]


@pytest.mark.parametrize(
    ("rank", "wanted", "instead"), [("0", "main", "rank_00000~2"), ("1", "rank_00001", "rank_00001~2")]
)
def test_a_rank_whose_name_is_held_says_once_who_holds_it_and_what_to_do(run_dir, start, orphan, rank, wanted, instead):
    """One warning, although it joins twice: process, host, age, the command; after that the name is free again."""
    holder = orphan(RANK=rank)
    code, _, errors = start(LOG_TWICE, run_dir, env={"RANK": rank}).finish()
    assert code == 0
    (line,) = warnings(errors)
    who = rf"process {holder.pid} on [\w-]+, which has been here for \d+ s\."
    assert re.search(rf"name {wanted} is held by {who}", line)
    assert f"logs as {instead} instead" in line
    assert f"kill {holder.pid}." in line
    assert f"Process {os.getpid()} has started both as the same rank" in line
    assert runs(run_dir)[instead] == [("a", 5), ("a", 6)]
    holder.process.kill()
    holder.process.wait()
    assert warnings(start(LOG_TWICE, run_dir, env={"RANK": rank}).finish()[2]) == []
    assert runs(run_dir)["." if rank == "0" else wanted][-2:] == [("a", 5), ("a", 6)]


def test_a_process_without_a_rank_says_where_it_logs_and_warns_only_if_it_resumes(run_dir, start, orphan):
    """Several processes without a rank may share a run directory; nothing of the first is ever hidden for a second."""
    holder = orphan()
    errors = start(LOG_TWICE, run_dir).finish()[2]
    (line,) = errors.splitlines()
    assert f"is in use by process {holder.pid} on " in line
    assert line.endswith(". This process logs in proc_00001/ there.")
    (line,) = warnings(start(LOG_TWICE, run_dir, 0).finish()[2])
    assert f"kill {holder.pid}." in line
    assert "is hidden" not in line
    holder.process.kill()
    holder.process.wait()
    start(LOG_TWICE, run_dir).succeed()
    assert ("a", 1) in runs(run_dir)["."]
    assert shown(run_dir)[:2] == [0, 1]


def test_a_program_that_a_rank_has_started_is_no_second_start(run_dir, tmp_path):
    """It inherits the rank, and gets another name without a warning. Nothing of the rank is hidden for it."""
    source = """
import subprocess, sys
from hf_mpwriter import SummaryWriter
writer = SummaryWriter(sys.argv[1])
for step in range(10):
    writer.add_scalar("a", 1.0, step)
if sys.argv[2] == "rank":
    nested = subprocess.run(["sh", "-c", f"{sys.executable} {sys.argv[0]} {sys.argv[1]} program; exit $?"], stderr=-1)
    assert nested.returncode == 0 and not nested.stderr, nested.stderr
else:
    SummaryWriter(sys.argv[1], purge_step=5).add_scalar("a", 2.0, 5)
writer.close()
"""
    run_file(tmp_path, source, run_dir, "rank", env={"RANK": "1"})
    assert shown(run_dir / "rank_00001") == list(range(10))
    assert shown(run_dir / "rank_00001~2") == list(range(6))


# the curve of an orphan


def rank(run_dir: Path, number: int, *spans: tuple[int, int], purge_step: int | None = None) -> Iterator[None]:
    """A rank that logs one span of steps at each stage, also in a sub-directory."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2"}
    writer = SummaryWriter(str(run_dir), purge_step=purge_step)
    for first, last in spans:
        for step in range(first, last):
            writer.add_scalar("a", 1.0, step)
            writer.add_scalars("sub", {"x": 1.0}, step)
        writer._worker.keep_house()
        yield
    writer.close()


def attempt(run_dir: Path, number: int, first: int, last: int, purge_step: int | None = None) -> None:
    """A start of a rank that ends well."""
    assert in_child(lambda: list(rank(run_dir, number, (first, last), purge_step=purge_step))) == 0


@pytest.mark.parametrize(("number", "held", "instead"), [(0, "", "rank_00000~2"), (1, "rank_00001", "rank_00001~2")])
def test_the_curve_of_an_orphan_is_hidden_as_soon_as_it_is_gone(run_dir, number, held, instead):
    """Also what it has logged meanwhile, and in its sub-directories; the next start continues below the first name.

    Directories of other processes keep all their steps.
    """
    attempt(run_dir, 1 - number, 0, 100)
    other = run_dir / ("rank_00001" if number == 0 else "")
    old = Staged(rank(run_dir, number, (0, 80), (80, 100)))
    new = Staged(rank(run_dir, number, (50, 60), (60, 70), (70, 80), purge_step=50))
    old.go_on()
    new.go_on()
    assert shown(run_dir / held) == list(range(100)), "the orphan lives"
    old.kill()
    new.go_on()
    for place, tag in ((run_dir / held, "a"), (run_dir / held / "sub" / "x", "sub")):
        assert shown(place, tag) == list(range(50))
    assert shown(other) == list(range(100))
    assert shown(run_dir / instead) == list(range(50, 80))
    assert new.finish() == 0
    attempt(run_dir, number, 75, 90, purge_step=75)
    assert shown(run_dir / held) == [*range(50), *range(75, 90)]
    assert shown(run_dir / instead) == list(range(50, 75)), "where it was in between is rewound, too"
    assert shown(other) == list(range(100))


def test_a_sibling_of_the_same_attempt_is_no_orphan(run_dir):
    """One launcher has started two processes as one rank: both resume, and neither hides what the other logs now."""
    attempt(run_dir, 1, 0, 80)
    spans = ((50, 60), (60, 70))
    first = Staged(rank(run_dir, 1, *spans, purge_step=50), is_launched=False)
    second = Staged(rank(run_dir, 1, *spans, (70, 80), purge_step=50), is_launched=False)
    first.go_on()
    assert first.finish() == 0
    second.go_on()
    second.go_on()
    assert second.finish() == 0
    attempt(run_dir, 1, 70, 75)
    assert shown(run_dir / "rank_00001") == list(range(75))
    assert shown(run_dir / "rank_00001~2") == list(range(50, 80))


def test_the_next_start_hides_the_curve_if_the_orphan_outlives_the_second(run_dir):
    """The note outlasts the process that has left it; the next start acts on it although it has no purge_step."""
    old = Staged(rank(run_dir, 1, (0, 80), (80, 100)))
    attempt(run_dir, 1, 50, 60, purge_step=50)
    attempt(run_dir, 1, 55, 65, purge_step=55)
    old.go_on()
    old.kill()
    assert shown(run_dir / "rank_00001") == list(range(100))
    attempt(run_dir, 1, 65, 70)
    assert shown(run_dir / "rank_00001") == [*range(50), *range(65, 70)], "the lowest of the steps"
    assert shown(run_dir / "rank_00001~2") == list(range(50, 65))
    attempt(run_dir, 1, 70, 75)
    assert shown(run_dir / "rank_00001") == [*range(50), *range(65, 75)], "once"


def test_a_process_that_waits_hides_nothing_of_who_came_later(run_dir):
    """The second start lives on when a third one has taken the name, logged and left."""
    old = Staged(rank(run_dir, 1, (0, 80)))
    second = Staged(rank(run_dir, 1, (50, 60), (60, 61), purge_step=50))
    old.kill()
    attempt(run_dir, 1, 50, 90, purge_step=50)
    second.go_on()
    assert shown(run_dir / "rank_00001") == list(range(90))
    assert second.finish() == 0
    assert numbers(run_dir / "rank_00001~2")


def test_the_orphan_of_a_missing_rank_is_hidden_when_it_is_gone(run_dir):
    """A smaller world: rank 0 rewinds the directory of a rank that it does not have any more, once that is free."""
    orphan = Staged(rank(run_dir, 2, (0, 80)))
    new = Staged(rank(run_dir, 0, (50, 60), (60, 61), purge_step=50))
    assert shown(run_dir / "rank_00002") == list(range(80))
    orphan.kill()
    new.go_on()
    assert shown(run_dir / "rank_00002") == list(range(50))
    assert new.finish() == 0


def test_what_others_log_below_the_run_directory_is_not_rewound(run_dir):
    """The directory of the orphan is the root: event files of tensorboardX and another run stay as they are."""

    def others() -> None:
        os.environ["RANK"] = "0"
        tensorboardX.SummaryWriter(str(run_dir / "foreign")).add_scalar("a", 1.0, 70)
        with SummaryWriter(str(run_dir / "run")) as writer:
            writer.add_scalar("a", 1.0, 70)
            writer.add_scalars("sub", {"x": 1.0}, 70)

    assert in_child(others) == 0
    old = Staged(rank(run_dir, 0, (0, 80)))
    new = Staged(rank(run_dir, 0, (50, 60), (60, 61), purge_step=50))
    old.kill()
    new.go_on()
    assert new.finish() == 0
    assert shown(run_dir / "sub" / "x", "sub") == list(range(50))
    assert [len(event_paths(run_dir / name)) for name in ("foreign", "run", "run/sub/x")] == [1, 1, 1]
