"""Shutdown: what a process answers for at its end."""

from __future__ import annotations

import dataclasses
import time

import pytest
from support import event_file

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Logged
from hf_mpwriter.spool.status import LINGER
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.worker.role import Role
from hf_mpwriter.worker.shutdown import Outcome, message, to_await


def test_what_is_known_is_not_read_again_at_the_end(run_dir):
    """Gigabytes would take minutes, before the wait that is bounded: only what comes after it is parsed."""
    path = run_dir / "events.out.tfevents.1000000000.there.1.0123abcd"
    length = event_file(path, 20)
    with open(path, "r+b") as file:
        file.write(bytes(100))  # a reader of the beginning stops there
    spool, own = Spool(str(run_dir)), {path.name: length - 50}
    assert to_await(spool, Settings(), Role(None, None), own).lengths == own
    half = event_file(run_dir / "half" / path.name, 10)
    assert to_await(spool, Settings(), Role(None, None), {path.name: half}).lengths == {
        path.name: half,
        f"half/{path.name}": half,
    }
    assert EventFileScan(Directory(run_dir), lambda _: half).files(lambda _: True, set)[0].length == length


NOW = time.mktime((2026, 11, 22, 7, 44, 30, 0, 0, -1))
HERE = Outcome(
    run_dir="/runs/exp1",
    missing={"a": 1000, "b": 200},
    refused={},
    is_offline=False,
    reason="ConnectError: refused",
    is_refused=False,
    is_alive=True,
    stillness="",
    until=NOW + LINGER,
    left_at=0.0,
    logged=Logged({"a": 2000, "b": 200}),
)
MISSING = "1.2 kB in 2 files of /runs/exp1 are not on the Hub"
SYNC = "hf-mpwriter sync /runs/exp1"
WAITS = Logged({}, in_memory=5, disk_error="No space left on device")
FULL = "the disk refuses them (No space left on device)"
WAITING = f"5 records wait in memory: {FULL}, and they are lost when the process ends."
DOWN = " yet: ConnectError: refused."
LATER = ", and is tried again slowly; at once by: "
GOES_ON = ", and an uploader goes on trying, until 07:54 at least; then: "
AGAIN = ", and an uploader tries again now and then, until 07:54 at least; then: "
UNSET = "; without it, this uploads it: "
OFF = ": HF_HUB_OFFLINE is set."
STOPPED = "process 7 is stopped; to let it go on: kill -CONT 7"


@pytest.mark.parametrize(
    ("changes", "why", "outlook"),
    [
        ({}, DOWN, GOES_ON),
        ({"reason": ""}, " yet.", GOES_ON),
        ({"is_refused": True, "reason": "401 Run: hf auth login."}, " yet: 401 Run: hf auth login.", AGAIN),
        ({"refused": {"a": "a: 422", "b": "a: 422"}}, ": it refuses a: 422.", LATER),
        ({"refused": {"a": "a: 422", "b": "b: 413"}, "is_alive": False}, ": it refuses a: 422, and 1 more.", LATER),
        ({"refused": {"a": "a: 422"}}, DOWN, GOES_ON),
        ({"is_offline": True}, OFF, UNSET),
        ({"stillness": STOPPED}, DOWN, f", but the uploader does not work: {STOPPED}. To finish then: "),
        ({"is_alive": False, "reason": ""}, " yet.", ", but no uploader runs. To finish: "),
        (
            {"is_alive": False, "left_at": NOW},
            DOWN,
            ", but no uploader runs; the last one tried until 07:44. To finish: ",
        ),
        ({"is_offline": True, "logged": WAITS}, f"{OFF} {WAITING}", UNSET),
        ({"logged": Logged({}, dropped=3)}, f"{DOWN} 3 records are lost: the disk refuses them.", GOES_ON),
    ],
)
def test_the_message_says_what_holds(changes, why, outlook):
    """Why, what comes next, until when, and one command; only what is in files is said to be on disk."""
    text = f"{MISSING}{why} What is on disk stays there{outlook}{SYNC}"
    assert message(dataclasses.replace(HERE, **changes)) == text


def test_what_waits_in_memory_is_told_although_all_files_are_on_the_hub():
    """Nothing else is missing; and without both there is nothing to say."""
    assert message(dataclasses.replace(HERE, missing={}, logged=WAITS)) == f"/runs/exp1: {WAITING}"
    assert message(dataclasses.replace(HERE, missing={})) == ""


def test_the_command_of_the_message_can_be_copied_into_a_shell():
    """A path with spaces is quoted."""
    assert message(dataclasses.replace(HERE, run_dir="/a b")).endswith(": hf-mpwriter sync '/a b'")
