"""The judgement on a run: complete, waiting, or a person is needed, and what that person types."""

from __future__ import annotations

import dataclasses

import pytest
from facts import FACTS, FILE, NOW, RUNNING, facts

from hf_mpwriter.base.verdicts import Cause
from hf_mpwriter.cli.status.facts import WorkerFacts
from hf_mpwriter.cli.status.judgement import RunHealth, judge
from hf_mpwriter.snapshot.attachments import NEVER_SENT
from hf_mpwriter.snapshot.event_files import Damage
from hf_mpwriter.spool.staging import MirrorStatus
from hf_mpwriter.spool.status import FULL_DISK

SYNC = "hf-mpwriter sync exp1"
HALF = (dataclasses.replace(FILE, on_hub=40),)
ALIVE = (WorkerFacts("main", "alive", "here", 7, is_here=True),)
REFUSED = dataclasses.replace(RUNNING, kind="Refused", reason="token refused (401)", hint="Look.", failures=2)
FULL = dataclasses.replace(RUNNING, kind="Retry", cause=Cause.DISK_FULL, reason=FULL_DISK, hint="free /x", failures=1)
THERE = {"to": "s3://b/exp1", "files": (dataclasses.replace(FILE, in_logdir=40),)}


@pytest.mark.parametrize(
    ("fields", "state", "words"),
    [
        ({}, RunHealth.COMPLETE, ""),
        ({"destination": None, "files": HALF}, RunHealth.COMPLETE, ""),
        ({"files": HALF, "uploader_is_alive": True}, RunHealth.WAITING, ""),
        ({"files": HALF, "workers": ALIVE}, RunHealth.WAITING, ""),
        ({"files": HALF}, RunHealth.PERSON, SYNC),
        (
            {"files": HALF, "uploader": REFUSED, "uploader_is_alive": True},
            RunHealth.PERSON,
            f"Look; then: {SYNC}",
        ),
        ({"uploader": REFUSED, "uploader_is_alive": True}, RunHealth.COMPLETE, ""),
        ({"files": HALF, "uploader": FULL, "uploader_is_alive": True}, RunHealth.PERSON, f"free /x; then: {SYNC}"),
        ({"uploader": FULL, "uploader_is_alive": True}, RunHealth.COMPLETE, ""),
        (
            {"files": HALF, "uploader": dataclasses.replace(RUNNING, beat=NOW - 3600), "uploader_is_alive": True},
            RunHealth.PERSON,
            "hf-mpwriter stop exp1",
        ),
        ({"quarantined": {FILE.path: "rewritten"}}, RunHealth.PERSON, f"see why {FILE.path} is refused; then: {SYNC}"),
        ({"quarantined": {FILE.path: NEVER_SENT}, "files": HALF}, RunHealth.COMPLETE, ""),
        ({"damage": (Damage("a.tfevents", 5, 6, is_incomplete=False),)}, RunHealth.PERSON, "restore a.tfevents"),
        ({"damage": (Damage("a.tfevents", 5, 6, is_incomplete=False),)}, RunHealth.PERSON, f"; then: {SYNC}"),
        ({"damage": (Damage("a.tfevents", 5, 6, is_incomplete=True),)}, RunHealth.COMPLETE, ""),
        ({"workers": (dataclasses.replace(ALIVE[0], in_memory=3),)}, RunHealth.PERSON, "free space on the disk of"),
        (THERE | {"mirror_is_alive": True}, RunHealth.WAITING, ""),
        (THERE, RunHealth.PERSON, SYNC),
        (
            THERE | {"refused_there": {"a": "no"}, "mirror_is_alive": True},
            RunHealth.PERSON,
            "see why a is refused in s3",
        ),
        (
            THERE | {"mirror": MirrorStatus(is_refused=True), "mirror_is_alive": True},
            RunHealth.PERSON,
            "see why the logdir is refused",
        ),
    ],
)
def test_the_state_follows_from_the_facts(fields, state, words):
    """What waits comes by itself; where it does not, the last line says what to type."""
    found = judge(facts(**fields), "exp1")
    assert found.state is state
    assert words in found.next
    assert bool(found.next) == (state is RunHealth.PERSON)


def test_the_exit_codes_are_those_of_the_documents():
    """Scripts rely on them."""
    assert {state.name: state.value for state in RunHealth} == {"COMPLETE": 0, "WAITING": 3, "PERSON": 4}
    assert judge(FACTS, "exp1").state is RunHealth.COMPLETE
