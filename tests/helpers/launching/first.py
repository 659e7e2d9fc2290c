"""A supervisor as the first process of a container, or as any: a signal, a program that ignores it, `os._exit`.

A program logs half a minute of data, images included. The kill is a SIGTERM to the supervisor.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

from programs import wait_for
from runs import check_oracle, no_uploader, uploaders
from supervised import LOG, Supervised, event_bytes

from hf_mpwriter.supervisor.decision import KILL_BEFORE
from launching import recipes
from launching.stage import Laps, Stage

BETWEEN = ("sh", "-c", '"$@"; true', "sh")  # a shell that waits for its program, and dies of a signal
NO_HUB = "http://127.0.0.1:9"


def told(errors: str) -> list[str]:
    """What the supervisor has printed."""
    return re.findall(r"^hf-mpwriter run: (.*)", errors, re.MULTILINE)


def logging(run_dir: Path, kind: str) -> tuple[str, ...]:
    """The command of a program that logs, and ends in some way."""
    return sys.executable, "-c", LOG, str(run_dir), kind


def _terminate(stage: Stage, one: Supervised) -> tuple[float | None, float, tuple[int, str, str]]:
    """Send SIGTERM; seconds until all was on the Hub and until the end, and how it ended."""
    since = time.monotonic()
    one.supervisor.send_signal(signal.SIGTERM)
    seconds = stage.watch(since, one.is_over, [stage.run_dir])
    return seconds, time.monotonic() - since, one.finish()


def signalled(stage: Stage, grace: int = 30, *, is_first: bool = True, between: tuple[str, ...] = ()) -> Laps:
    """A signal ends the program: all is on the Hub within the grace, no zombie stays, the exit code is kept."""
    one = stage.supervise(
        *between, *logging(stage.run_dir, "waits"), options=("--grace", str(grace)), is_first=is_first
    )
    assert one.line() == "logged\n"
    wait_for(lambda: not one.zombies(), "no zombie stays while it works")
    seconds, _, (code, _, errors) = _terminate(stage, one)
    assert (code, seconds is not None) == (143, True), errors
    report = check_oracle(stage.run_dir, stage.hub)
    logged = event_bytes(stage.run_dir)
    assert sum(file.hub_bytes for file in report.files.values()) == logged > 6_000_000
    where = f"{stage.hub.endpoint}/me/run/tree/main/tensorboard/exp1"
    assert told(errors) == [f"all {logged / 1e6:.1f} MB of {stage.run_dir} are on the Hub: {where}"]
    assert no_uploader(stage.run_dir)
    return {"SIGTERM": seconds}


def signalled_below_a_shell(stage: Stage) -> Laps:
    """The same with a shell between."""
    return signalled(stage, between=BETWEEN)


def ignored(stage: Stage, grace: int = 12, *, is_first: bool = True) -> Laps:
    """The program ignores the signal and logs on: it is killed before the grace is over, and what it had is sent."""
    one = stage.supervise(*logging(stage.run_dir, "ignores"), options=("--grace", str(grace)), is_first=is_first)
    assert one.line() == "logged\n"
    before, since = stage.lengths(), time.monotonic()
    one.supervisor.send_signal(signal.SIGTERM)
    seconds = stage.seconds_until_on_hub(since, before)
    code, _, errors = one.finish()
    assert (code, len(told(errors))) == (137, 1), errors
    assert time.monotonic() - since >= grace - KILL_BEFORE
    return {"SIGTERM": seconds}


def without_hub(stage: Stage, grace: int = 5, *, is_first: bool = True) -> Laps:
    """The Hub is down: one line says what is missing and what finishes it; the end comes in time."""
    command = logging(stage.run_dir, "down")
    one = stage.supervise(*command, options=("--grace", str(grace)), is_first=is_first, HF_ENDPOINT=NO_HUB)
    assert one.line() == "logged\n"
    _, _, (code, _, errors) = _terminate(stage, one)
    size = f"{event_bytes(stage.run_dir) / 1e6:.1f} MB"
    assert code == 143, errors
    (line,) = told(errors)
    assert line.startswith(f"{size} of the {size} of {stage.run_dir} are not on the Hub yet"), line
    assert line.endswith(f"hf-mpwriter sync {stage.run_dir}"), line
    assert ("ends with this process" in line, "goes on trying" in line) == (is_first, not is_first), line
    assert bool(uploaders(stage.run_dir)) is not is_first
    return {}


def exits_at_once(stage: Stage, grace: int = 30, *, is_first: bool = True) -> Laps:
    """os._exit waits for nothing; what was logged is sent before the container ends, and its code is kept."""
    one = stage.supervise(*logging(stage.run_dir, "exits"), options=("--grace", str(grace)), is_first=is_first)
    assert one.line() == "logged\n"
    since = time.monotonic()
    seconds = stage.watch(since, one.is_over, [stage.run_dir])
    code, _, errors = one.finish()
    assert (code, len(told(errors)), seconds is not None) == (3, 1, True), errors
    check_oracle(stage.run_dir, stage.hub)
    return {"os._exit": seconds}


def of_kubernetes(stage: Stage) -> Laps:
    """The container of the documents, with a `train.py`: a signal comes, as when its pod is evicted."""
    recipe = recipes.of_kubernetes()
    program = LOG.replace("sys.argv[1]", repr(str(stage.run_dir))).replace("sys.argv[2]", "'waits'")
    (stage.folder / "train.py").write_text(program)
    own = {"options": recipe.options, "is_first": True, "cwd": stage.folder}
    one = stage.supervise(*recipe.command, **own, **recipe.environ)
    assert one.line() == "logged\n"
    seconds, took, (code, _, errors) = _terminate(stage, one)
    assert (code, seconds is not None) == (143, True), errors
    assert took < recipe.grace
    check_oracle(stage.run_dir, stage.hub)
    return {"SIGTERM": seconds}
