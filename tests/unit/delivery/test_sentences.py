"""What users are told: each row of the tables at the head of the module."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest

from hf_mpwriter.base.settings import OFFLINE
from hf_mpwriter.delivery.sentences import (
    SEVERAL,
    ProcessEnd,
    RunEnd,
    announcement,
    message,
    mirror_trouble,
    report,
    shown,
    unsent,
)
from hf_mpwriter.delivery.sinks import Carrier, Delivery, Outlook
from hf_mpwriter.delivery.status import Logged
from hf_mpwriter.spool.staging import MirrorStatus

NOW = time.mktime((2026, 11, 22, 7, 44, 30, 0, 0, -1))
LINGER = 600
WORKS = Carrier(is_alive=True, reason="ConnectError: refused", until=NOW + LINGER)
HUB = Delivery(total=2200, missing={"a": 1000, "b": 200}, carrier=WORKS)
HERE = ProcessEnd("/runs/exp1", "/runs/exp1", (HUB,), NOW, Logged({"a": 2000, "b": 200}))
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
STAYS = "What is on disk stays there"


def late(*, carrier: dict[str, object] | None = None, **fields: object) -> ProcessEnd:
    """The end of a process in one run directory of which something is not on the Hub."""
    return replace(HERE, deliveries=(replace(HUB, carrier=replace(WORKS, **carrier or {}), **fields),))


@pytest.mark.parametrize(
    ("end", "why", "outlook"),
    [
        (late(), DOWN, GOES_ON),
        (late(carrier={"reason": ""}), " yet.", GOES_ON),
        (
            late(carrier={"is_refused": True, "reason": "401", "hint": "Run: hf auth login."}),
            " yet: 401. Run: hf auth login.",
            AGAIN,
        ),
        (late(refused={"a": "a: 422", "b": "a: 422"}), ": it refuses a: 422.", LATER),
        (
            late(refused={"a": "a: 422", "b": "b: 413"}, carrier={"is_alive": False}),
            ": it refuses a: 422, and 1 more.",
            LATER,
        ),
        (late(refused={"a": "a: 422"}), DOWN, GOES_ON),
        (late(carrier={"reason": OFFLINE, "hint": "Unset it to upload."}), OFF, UNSET),
        (
            late(carrier={"stillness": STOPPED}),
            DOWN,
            f", but the uploader does not work: {STOPPED}. To finish then: ",
        ),
        (late(carrier={"is_alive": False, "reason": "", "until": 0}), " yet.", ", but no uploader runs. To finish: "),
        (
            late(carrier={"is_alive": False, "until": NOW}),
            DOWN,
            ", but no uploader runs; the last one tried until 07:44. To finish: ",
        ),
        (
            late(carrier={"is_alive": False, "until": NOW - 86_400}),
            DOWN,
            ", but no uploader runs; the last one tried until 2026-11-21 07:44. To finish: ",
        ),
        (late(carrier={"until": NOW + 86_400}), DOWN, GOES_ON.replace("07:54", "2026-11-23 07:44")),
        (late(carrier={"next_try": NOW + 12}), DOWN, GOES_ON.replace("goes on trying", "tries again in 12 s")),
        (late(carrier={"next_try": NOW + 120}), DOWN, GOES_ON.replace("goes on trying", "tries again at 07:46")),
        (
            late(carrier={"is_refused": True, "next_try": NOW + 300}),
            DOWN,
            AGAIN.replace("now and then", "at 07:49"),
        ),
        (replace(HERE, is_short=True), DOWN, GOES_ON.replace("then", "to wait for it: close(wait=True), or")),
        (replace(HERE, ends_with="the SLURM job"), DOWN, "; the uploader ends with the SLURM job. To finish: "),
        (replace(late(carrier={"reason": OFFLINE}), logged=WAITS), f"{OFF} {WAITING}", UNSET),
        (replace(HERE, logged=Logged({}, dropped=3)), f"{DOWN} 3 records are lost: the disk refuses them.", GOES_ON),
        (replace(HERE, told="ConnectError: refused"), " yet.", GOES_ON),
    ],
)
def test_the_message_says_what_holds(end, why, outlook):
    """Why, what comes next, until when, and one command; only what is in files is said to be on disk."""
    assert message(end) == f"{MISSING}{why} {STAYS}{outlook}{SYNC}"


ARRIVED = late(missing={})


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (HERE, ARRIVED, "/runs/exp1: all of it is on the Hub now."),
        (HERE, HERE, f"{MISSING} yet. {STAYS}{GOES_ON}{SYNC}"),
        (late(carrier={"reason": ""}), HERE, f"{MISSING}{DOWN} {STAYS}{GOES_ON}{SYNC}"),
        (
            HERE,
            late(missing={"b": 200}),
            f"200 B in 1 file of /runs/exp1 are not on the Hub yet. {STAYS}{GOES_ON}{SYNC}",
        ),
        (HERE, late(refused={"a": "a: 422", "b": "a: 422"}), f"{MISSING}: it refuses a: 422. {STAYS}{LATER}{SYNC}"),
        (
            HERE,
            replace(ARRIVED, logged=WAITS),
            f"/runs/exp1: all of it is on the Hub now. /runs/exp1: {WAITING}",
        ),
    ],
)
def test_what_was_announced_is_not_repeated(before, after, text):
    """Before a long wait: what is missing, why, and the command. The last line ends with the command, too."""
    told = announcement(before, 57.6)
    why = " (ConnectError: refused)" if before is HERE else ""
    what = f"waiting up to 58 s until 1.2 kB in 2 files of /runs/exp1 are on the Hub{why}."
    assert told == f"{what} Ctrl-C ends the wait and nothing else; if this process is killed before: {SYNC}"
    assert message(after, before) == text


TURN = {"reason": "the next commit is due at about 08:05.", "next_try": NOW + 1230, "outlook": Outlook(turn_in=1230.0)}
SAFE = late(carrier=TURN, safe_in="me/run-live")
IS_DUE = f"{MISSING} yet: the next commit is due at about 08:05. What is on disk is safe in me/run-live"


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (SAFE, f"{IS_DUE}, on the Hub at 08:05; then: {SYNC}"),
        (
            replace(SAFE, ends_with="the SLURM job"),
            f"{IS_DUE}; the uploader ends with the SLURM job. To finish: {SYNC}",
        ),
        (late(safe_in="me/run-live"), f"{MISSING}{DOWN} What is on disk is safe in me/run-live{GOES_ON}{SYNC}"),
    ],
)
def test_the_end_says_what_is_safe_and_when_it_is_on_the_hub(end, text):
    """A time only where the commit waits for its turn, and what brings it outlives this process."""
    assert message(end) == text


@pytest.mark.parametrize(("is_first", "when"), [(False, r", on the Hub at \d\d:\d\d"), (True, "")])
def test_so_does_the_report_of_a_program(is_first, when):
    """In the same words."""
    turn = TURN | {"next_try": time.time() + 1230}
    found = RunEnd("/runs/exp1", deliveries=late(carrier=turn, safe_in="me/run-live").deliveries, is_known=True)
    told = report(found, is_first=is_first, is_quiet=False)
    assert re.search(rf"08:05\. They are safe in me/run-live{when}\. ", told)


def test_what_waits_in_memory_is_told_although_all_files_are_on_the_hub():
    """Nothing else is missing; and without both there is nothing to say."""
    assert message(replace(ARRIVED, logged=WAITS)) == f"/runs/exp1: {WAITING}"
    assert message(ARRIVED) == ""


def test_the_command_of_the_message_can_be_copied_into_a_shell():
    """A path with spaces is quoted."""
    assert message(replace(HERE, logdir="/a b")).endswith(": hf-mpwriter sync '/a b'")


THERES = MISSING.replace("/runs/exp1", "s3://b/exp1")
THERE = Delivery("in the logdir", "s3://b/exp1", 2200)
MIRROR = Carrier("mirror", is_alive=True, reason="no space")
LATE = replace(THERE, missing={"a": 7}, carrier=MIRROR)
STAGED = replace(HERE, logdir="s3://b/exp1")
KEPT = "What is on disk (/runs/exp1) stays there"
LATES = "7 B in 1 file of s3://b/exp1 are not in the logdir yet"
THEN = "hf-mpwriter sync s3://b/exp1"


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (
            replace(STAGED, deliveries=(HUB, THERE)),
            f"{THERES}{DOWN} All of it is in the logdir. {KEPT}{GOES_ON}{THEN}",
        ),
        (
            replace(STAGED, deliveries=(HUB, LATE)),
            f"{THERES}{DOWN} 7 B in 1 file are not in the logdir yet: no space. {KEPT}{GOES_ON}{THEN}",
        ),
        (
            replace(STAGED, deliveries=(LATE,)),
            f"{LATES}: no space. {KEPT}, and a mirror goes on trying; then: {THEN}",
        ),
        (
            replace(STAGED, deliveries=(replace(HUB, missing={}), LATE), logged=WAITS),
            f"{LATES}: no space. All of it is on the Hub. {WAITING} {KEPT}, and a mirror goes on trying; then: {THEN}",
        ),
        (
            replace(STAGED, deliveries=(replace(LATE, carrier=Carrier("mirror")),)),
            f"7 B in 1 file of s3://b/exp1 are not in the logdir yet. {KEPT}, but no mirror runs. To finish: {THEN}",
        ),
        (
            replace(STAGED, deliveries=(replace(LATE, carrier=replace(MIRROR, stillness="it hangs")),)),
            f"{LATES}: no space. {KEPT}, but the mirror does not work: it hangs. To finish then: {THEN}",
        ),
        (
            replace(STAGED, deliveries=(replace(LATE, refused={"a": "a: it differs"}),)),
            f"7 B in 1 file of s3://b/exp1 are not in the logdir: it refuses a: it differs. {KEPT}{LATER}{THEN}",
        ),
    ],
)
def test_of_a_staged_run_one_message_tells_of_both_places(end, text):
    """What is where, why, and the one command that finishes both."""
    assert message(end) == text


def test_a_long_wait_names_the_places_that_it_waits_for():
    """Of a run without a destination that is the logdir alone."""
    local, both = replace(STAGED, deliveries=(LATE,)), replace(STAGED, deliveries=(HUB, LATE))
    assert "until 7 B in 1 file of s3://b/exp1 are in the logdir (no space)." in announcement(local, 60)
    assert "are on the Hub and in the logdir (ConnectError: refused; no space)." in announcement(both, 60)
    arrived = replace(STAGED, deliveries=(THERE,))
    assert message(arrived, local) == "s3://b/exp1: all of it is in the logdir now."
    there = (replace(HUB, missing={}), THERE)
    assert message(replace(STAGED, deliveries=there), both).endswith("on the Hub and in the logdir now.")
    assert message(arrived) == ""


@pytest.mark.parametrize(
    ("status", "refused", "told"),
    [
        (MirrorStatus(), {}, ""),
        (MirrorStatus(failures=1, reason="why"), {}, ""),
        (MirrorStatus(failures=SEVERAL, reason="why"), {}, "why"),
        (MirrorStatus(failures=1, reason="why", is_refused=True), {}, "why"),
        (MirrorStatus(failures=1, reason="why", phase="stuck"), {}, "why"),
        (MirrorStatus(failures=9, reason="why", phase="left"), {}, ""),
        (
            MirrorStatus(),
            {"b": "No space left on device", "a": "another file is there"},
            "a: another file is there, and 1 more",
        ),
        (MirrorStatus(), {"b": "No space left on device"}, "b: No space left on device"),
    ],
)
def test_each_row_of_the_table(status, refused, told):
    """As the head of the module says."""
    assert mirror_trouble(status, refused) == told


def test_a_path_is_shown_as_a_user_of_this_directory_would_type_it(tmp_path, monkeypatch):
    """Else it is absolute; a URL stays one; a working directory that is gone does not matter."""
    monkeypatch.chdir(tmp_path)
    assert shown(str(tmp_path / "runs" / "exp1")) == "runs/exp1"
    assert shown("/elsewhere/exp1") == "/elsewhere/exp1"
    assert shown("s3://bucket/exp1") == "s3://bucket/exp1"
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert shown("/elsewhere/exp1") == "/elsewhere/exp1"


AGAIN_BY_HAND = "hf-mpwriter sync runs/a"
TOKEN = Carrier(is_refused=True, reason="token refused (401)", hint="run `hf auth login`", failed_at=5.0)
GONE = replace(TOKEN, reason="me/run is gone.", hint="To make it anew: hf-mpwriter sync --create runs/a")
UNREACHABLE = Carrier(reason="the Hub cannot be reached at HUB", failed_at=5.0)


@pytest.mark.parametrize(
    ("missing", "refused", "uploader", "asked", "text"),
    [
        (
            93,
            {},
            TOKEN,
            False,
            f"93 B are not on the Hub: token refused (401). Run `hf auth login`; then: {AGAIN_BY_HAND}",
        ),
        (0, {}, TOKEN, False, "The Hub does not tell what it has: token refused (401). Run `hf"),
        (93, {}, GONE, False, "93 B are not on the Hub: me/run is gone. To make it anew: hf-mpwriter sync --create"),
        (
            93,
            {},
            UNREACHABLE,
            False,
            "The Hub could not be asked: the Hub cannot be reached at HUB. By what it",
        ),
        (0, {}, Carrier(), False, "The Hub could not be asked. By what it last answered, everything is there."),
        (93, {}, UNREACHABLE, True, "93 B are not on the Hub yet: the Hub cannot be reached at HUB."),
        (93, {}, replace(UNREACHABLE, failed_at=4.0), True, "93 B are not on the Hub yet."),
        (93, {"a": "a: too large", "b": "a: too large"}, TOKEN, True, "93 B are not on the Hub yet: a: too large."),
    ],
)
def test_sync_tells_what_is_missing_once_with_its_reason_and_cure(missing, refused, uploader, asked, text):
    """A Hub that refuses was asked; only one that gives no answer could not be. What failed before is no news."""
    delivery = Delivery(total=93, missing={"e": missing} if missing else {}, refused=refused, carrier=uploader)
    said = unsent(delivery, AGAIN_BY_HAND, 5.0, asked=asked)
    assert said.startswith(text), said
    assert said.count("hf-mpwriter sync") == (uploader.is_refused and not refused)
