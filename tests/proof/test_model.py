"""The models of fence, leaving and hand-over: the promises hold in every order of events, and each rule is needed.

Spin visits all states. A model is the code as it is; a variant leaves out one rule and must fail, which
shows that the model would notice. The head of each model says what it mirrors and what it leaves out.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).parent / "model"
SMALL = ("-DKILLS=1", "-DFAULTS=1")
SAFETY = "-DSAFETY"  # assertions and deadlocks
CYCLES = "-DNP"  # no state comes back: there is an end
HOLDS = [
    ("fence", ("-DKILLS=1",), SAFETY),
    ("fence", ("-DALWAYS_PARENT", "-DNO_SETTLE", "-DKILLS=1"), SAFETY),
    ("fence", ("-DALWAYS_PARENT", "-DTWO_AT_ONCE", "-DKILLS=0", "-DFAULTS=1"), SAFETY),
    ("fence", SMALL, CYCLES),
    ("leaving", ("-DNO_DEATH",), SAFETY),
    ("leaving", ("-DONE_RECORD",), SAFETY),
    ("leaving", ("-DNO_DEATH", "-DONE_RECORD"), CYCLES),
    ("handover", (), SAFETY),
    ("handover", ("-DKILLS=0",), CYCLES),
]
# in these, every statement must be reached
WHOLE = [("fence", ("-DKILLS=1",)), ("leaving", ("-DONE_RECORD",)), ("handover", ())]
FAILS = {
    "fence": [
        "NO_SETTLE",
        "NO_SETTLE_AFTER_KILL",
        "LATE_RECORD",
        "EARLY_FORGET",
        "SNAPSHOT_WHILE_SETTLING",
        "NO_PARENT_WHILE_SETTLING",
        "NO_READ_BACK",
        "EARLY_LEDGER",
        "TWO_AT_ONCE",
    ],
    "handover": [
        "NO_SHUTDOWN",
        "NO_LOOK",
        "DEAF",
        "LATE_TAKEN",
        "CONNECTION_FIRST",
        "KEPT_DESCRIPTION",
        "CLOSED_ONLY",
    ],
    "leaving": ["NO_SECOND_SCAN", "SECOND_SCAN_FIRST", "NO_LAST_CHECK", "FILES_BEFORE_MEMBERS", "TWO_STEPS"],
}

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (shutil.which("spin") and shutil.which("gcc")), reason="needs Debian's spin and gcc"),
]


def verify(directory: Path, model: str, variant: tuple[str, ...], search: str) -> str:
    """Run Spin on a variant of a model; return its output."""
    for command in (
        ["spin", "-a", *variant, str(MODELS / f"{model}.pml")],
        ["gcc", "-w", "-O1" if (model, variant) in WHOLE else "-O0", search, "-o", "pan", "pan.c"],
        ["./pan", "-m100000", "-w22", *(["-l"] if search == CYCLES else [])],
    ):
        result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize(("model", "variant", "search"), HOLDS)
def test_the_promises_hold_in_every_order_of_events(tmp_path, model, variant, search):
    """The search is complete: it visits all states, to any depth."""
    output = verify(tmp_path, model, variant, search)
    assert "errors: 0" in output, output
    assert "Search not completed" not in output
    assert "max search depth too small" not in output
    if (model, variant) in WHOLE:
        unreached = re.findall(r'state \d+, "(.*)"', output)
        assert set(unreached) <= {"-end-"}, "nothing holds because something cannot happen in the model"


@pytest.mark.parametrize(("model", "variant"), [(model, variant) for model in FAILS for variant in FAILS[model]])
def test_without_one_of_the_rules_a_promise_is_broken(tmp_path, model, variant):
    """Each rule is needed, and the model notices its absence."""
    output = verify(tmp_path, model, (f"-D{variant}", "-DKILLS=1"), SAFETY)
    assert "assertion violated" in output, output
