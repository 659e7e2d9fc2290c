"""A real uploader is hit at any point; it or a successor uploads everything, and nothing is left behind."""

from __future__ import annotations

import ast
import os
import random
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from crashing import ASKED, KILLED, UPLOADER, USHER, Harm
from crashpoints import Trials

import hf_mpwriter
from hf_mpwriter.daemon import loop
from hf_mpwriter.localhub import LocalHub

pytestmark = pytest.mark.timeout(900)  # dozens of lives in one test; each has a deadline of its own
SAMPLE = 4  # of the system calls, from each group
WITHOUT_STRACE = "needs strace, and the right to trace" * (os.geteuid() != 0 or not shutil.which("strace"))
ELSEWHERE = {
    "spool.format": "a worker's: tests/unit/spool/test_layout.py",
    "told.save": "a worker's: tests/unit/worker/test_notices.py",
    "pull.file": "a pull's: tests/integration/hub/test_pull.py",
    "pull.record": "a pull's: tests/integration/hub/test_pull.py",
    "spool.run": "a worker's: tests/unit/spool/test_layout.py",
    "event_file": "a worker's: tests/unit/events, scripts/proof/crash_writer.py",
    "copy": "a copy's: tests/integration/mirror/test_mirror_crashes.py",
    "copy.item": "a copy's: tests/integration/mirror/test_mirror_crashes.py",
    "copy.rename": "a copy's: tests/integration/mirror/test_mirror_crashes.py",
    "mirror.mirrored": "a mirror's: tests/integration/mirror/test_mirror_crashes.py",
    "mirror.record": "a worker's: tests/unit/spool/test_staging.py",
    "staged.remove": "of `clean`: tests/integration/storage/test_clean.py",
    "mirror.listed": "a worker's: tests/unit/worker/test_looking.py",
    "members.lost": "where records were lost: tests/unit/spool/test_members.py",
    "losses.seen": "of `status --seen`: tests/integration/host/test_losses.py",
    "losses.written": "where records were lost: tests/integration/host/test_losses.py",
    "staged.note": "a worker's and a mirror's: tests/integration/storage/test_other_places.py",
    "staged.gone": "of `clean`: tests/integration/storage/test_clean_races.py",
    "staged.back": "of `clean`: tests/integration/storage/test_clean_races.py",
    "fetch.file": "a copy's: tests/unit/mirror/test_fetch.py",
}


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """The process that makes trials, of two runs in one uploader."""
    root = tmp_path_factory.mktemp("crashes")
    with LocalHub(root / "hub") as hub:
        made = Trials(hub.endpoint, str(root / "hub"), str(root / "trials"), runs=2)
        yield made
        made.end()


@pytest.fixture(scope="module")
def passed(trials) -> dict[str, int]:
    """How often a life without harm passes each failpoint."""
    return trials.make().passed


APART = {"demo", "integrations", "localhub", "testing"}  # no uploader runs through them


def words() -> set[str]:
    """The failpoint names that the package passes to `system/disk`."""
    found, makers = set(), ("disk.", "failpoint", "fsync")
    package = Path(hf_mpwriter.__file__).parent
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] in APART:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(makers):
                texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                found |= {text.removesuffix(".open").removesuffix(".write") for text in texts}
    return found


def test_every_failpoint_is_passed(passed):
    """A new failpoint is hit here, or it is listed with the place that hits it."""
    assert words() - {name.rpartition(".")[0] for name in passed} - set(passed) == set(ELSEWHERE)


def test_a_kill_at_any_failpoint_loses_nothing(trials, passed):
    """No process passes it once more, or the successor does, with whatever is on disk then.

    It is one step of each write; `scripts/proof/crash_uploader.py` goes through all of them.
    """
    rng, steps = random.Random("kill"), defaultdict(list)
    for name in sorted(passed):
        steps[name if name in words() else name.rpartition(".")[0]].append(name)
    for name in map(rng.choice, steps.values()):
        outcome = trials.make(Harm(name, "kill", 1))
        ended = outcome.ended if name in USHER else [KILLED, 0]
        assert (outcome.problems, outcome.ended, outcome.struck) == ([], ended, [True]), name


@pytest.mark.parametrize("action", ["eio", "enospc"])
def test_a_disk_that_refuses_once_ends_no_uploader(trials, passed, action):
    """What was refused is tried again, so the same uploader brings everything to the Hub."""
    known = {
        "ledger.aside.rename",
        "ledger.save.fsync",
        "outbox.garbage.unlink",
        "members.file.unlink",
    }  # it ended here
    for name in sorted(known | set(random.Random(action).sample(sorted(passed), 4)) - {"dirs.dirsync", ASKED}):
        outcome = trials.make(Harm(name, action, 1))
        assert (outcome.problems, set(outcome.ended), outcome.struck) == ([], {0}, [True]), name


def test_a_step_that_the_disk_refuses_is_repeated_but_not_for_ever():
    """A minute of refusals in a row is the end; one success, and the count starts again."""
    steps = iter([OSError("once"), True] * loop.REFUSALS + [False])

    def step() -> bool:
        if isinstance(what := next(steps), OSError):
            raise what
        return what

    loop.keep_on(step, 0.0)
    assert next(steps, None) is None
    steps = iter([OSError("always")] * (loop.REFUSALS + 5))
    with pytest.raises(OSError, match="always"):
        loop.keep_on(step, 0.0)
    assert len(list(steps)) == 4


@pytest.mark.root
@pytest.mark.skipif(bool(WITHOUT_STRACE), reason=WITHOUT_STRACE)
def test_a_kill_at_a_system_call_loses_nothing(trials):
    """A sample of the calls that change something, in the uploader and in its pushes; the script alone tries all."""
    calls = trials.record()
    changing = [call for call in calls if call.changes]
    rng, struck = random.Random(20261121), 0
    for whose in (lambda call: call.push == UPLOADER, lambda call: call.push != UPLOADER):
        for call in rng.sample(list(filter(whose, changing)), SAMPLE):
            outcome = trials.make(call.harm("kill"))
            assert not outcome.problems, call
            struck += sum(outcome.struck)
    assert struck > SAMPLE, "most calls were never reached: nothing is shown"
