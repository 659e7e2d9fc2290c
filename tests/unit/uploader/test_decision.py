"""What the uploader does next, over every situation."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from hf_mpwriter.uploader.decision import (
    LONGEST_PAUSE,
    SHARE,
    Action,
    Attached,
    Ending,
    Outgoing,
    Situation,
    decide,
    pause,
)

QUIET = Situation(
    living=1,
    is_abandoned=False,
    may_try=True,
    due=False,
    outgoing=Outgoing.NONE,
    settling=False,
    attached=Attached.LATER,
    ending=Ending.NOT_ASKED,
    orphaned=False,
)
FLAGS = (False, True)
ALL = [
    replace(
        QUIET,
        living=living,
        is_abandoned=is_abandoned,
        may_try=may_try,
        due=due,
        outgoing=outgoing,
        settling=settling,
        attached=attached,
        ending=ending,
        orphaned=orphaned,
    )
    for living, is_abandoned, may_try, due, outgoing, settling, attached, ending, orphaned in product(
        (0, 1), FLAGS, FLAGS, FLAGS, Outgoing, FLAGS, Attached, Ending, FLAGS
    )
]
STALE, READY, SPLIT = {"outgoing": Outgoing.STALE}, {"outgoing": Outgoing.READY}, {"outgoing": Outgoing.SPLIT}
DUE, STARVED, OVER = ({"attached": state} for state in (Attached.DUE, Attached.STARVED, Attached.OVER))
TERMINATING, TRIED = {"ending": Ending.ASKED}, {"ending": Ending.TRIED}


@pytest.mark.parametrize(
    ("change", "action"),
    [
        ({}, Action.WAIT),
        ({"due": True}, Action.SCAN),
        (STALE, Action.SCAN),
        (READY, Action.PUSH),
        (SPLIT, Action.PUSH),
        (STALE | {"settling": True}, Action.PUSH),
        ({"due": True, "settling": True}, Action.WAIT),
        ({"due": True, "may_try": False}, Action.WAIT),
        (READY | {"may_try": False}, Action.WAIT),
        (DUE, Action.ATTACH),
        (DUE | {"may_try": False}, Action.WAIT),
        (DUE | {"due": True}, Action.SCAN),
        (STARVED | {"due": True}, Action.ATTACH),
        (STARVED | {"living": 0, "due": True}, Action.SCAN),
        (STARVED | TERMINATING, Action.SCAN),
        (STARVED | READY | {"due": True}, Action.PUSH),
        (STARVED | {"due": True, "settling": True}, Action.WAIT),
        (DUE | READY, Action.PUSH),
        (DUE | READY | {"may_try": False}, Action.WAIT),
        (DUE | {"settling": True}, Action.WAIT),
        (DUE | {"living": 0}, Action.ATTACH),
        ({"living": 0}, Action.WAIT),
        ({"living": 0, "is_abandoned": True}, Action.LEAVE),
        (OVER | {"living": 0}, Action.LEAVE),
        (OVER | {"living": 0, "due": True}, Action.SCAN),
        (OVER | STALE | {"living": 0, "may_try": False}, Action.WAIT),
        (OVER | STALE | {"living": 0, "may_try": False, "is_abandoned": True}, Action.LEAVE),
        (OVER | {"living": 0, "settling": True}, Action.WAIT),
        (OVER | {"living": 0, "settling": True, "is_abandoned": True}, Action.LEAVE),
        (OVER | READY | {"living": 0, "is_abandoned": True}, Action.LEAVE),
        (OVER | {"living": 0, "due": True, "sealing": True}, Action.WAIT),
        (OVER | READY | {"living": 0, "sealing": True}, Action.WAIT),
        (OVER | {"living": 0, "sealing": True, "is_abandoned": True}, Action.LEAVE),
        (TERMINATING | {"sealing": True}, Action.SCAN),
        (TERMINATING, Action.SCAN),
        (TERMINATING | READY, Action.PUSH),
        (TRIED, Action.LEAVE),
        (TERMINATING | {"may_try": False}, Action.LEAVE),
    ],
)
def test_each_situation_has_its_action(change, action):
    """The table of the design."""
    assert decide(replace(QUIET, **change)) is action


def test_nothing_is_pushed_before_a_try_is_allowed_or_without_a_batch():
    """In every situation; batches that are stale only while nothing newer may be sent."""
    for s in ALL:
        if decide(s) is Action.PUSH:
            assert s.outgoing is not Outgoing.NONE
            assert s.may_try
            assert s.outgoing is not Outgoing.STALE or s.settling


def test_while_a_request_may_be_under_way_or_a_batch_is_split_no_scan_is_made():
    """Nothing longer than what may be under way is sent, and halves are sent as they are."""
    assert not any(decide(s) is Action.SCAN for s in ALL if s.settling or s.outgoing is Outgoing.SPLIT)


def test_while_a_request_may_be_under_way_no_attachment_is_sent():
    """Nor while event files wait."""
    assert not any(
        decide(s) is Action.ATTACH for s in ALL if s.settling or s.outgoing is not Outgoing.NONE or not s.may_try
    )


def test_an_uploader_leaves_only_when_nothing_can_be_done():
    """It leaves only if no worker lives, or if it is told to."""
    for s in ALL:
        if decide(s) is Action.LEAVE and s.ending is Ending.NOT_ASKED:
            assert s.living == 0
            wanted = s.outgoing is not Outgoing.NONE or s.due or s.attached is not Attached.OVER
            assert not wanted or s.is_abandoned


def test_what_is_wanted_and_allowed_is_done():
    """A request waits, the Hub may be asked: a scan or a push comes, unless nothing newer may be sent."""
    for s in ALL:
        if s.living == 0 and s.is_abandoned:
            continue  # no worker lives and nothing goes forward: the next start goes on
        if s.attached is Attached.STARVED and s.outgoing is Outgoing.NONE:
            continue  # it is the turn of attachments
        wanted = s.outgoing is not Outgoing.NONE or s.due
        if wanted and s.may_try and s.ending is Ending.NOT_ASKED and not s.settling:
            assert decide(s) in (Action.SCAN, Action.PUSH)


def test_a_terminating_uploader_tries_once():
    """After SIGTERM: at most one more try, then it leaves, unless the last records of a dead worker are not sent."""
    for s in ALL:
        if s.ending is Ending.TRIED:
            assert decide(replace(s, orphaned=False)) is Action.LEAVE
            abandoned = s.living == 0 and s.is_abandoned
            stays = s.may_try and not s.settling and s.outgoing is not Outgoing.SPLIT and not abandoned
            expected = (Action.PUSH if s.outgoing is Outgoing.READY else Action.SCAN) if stays else Action.LEAVE
            assert decide(replace(s, orphaned=True)) is expected


def test_a_bucket_that_is_behind_holds_up_the_end_and_nothing_else():
    """The uploader waits for it where it would leave, unless nothing has gone forward for long."""
    for s in ALL:
        action = decide(s)
        waits = action is Action.LEAVE and (s.living or not s.is_abandoned)
        assert decide(replace(s, bucket_is_behind=True)) is (Action.WAIT if waits else action)


@pytest.mark.parametrize(
    ("look_took", "until_push", "expected"),
    [
        (0.001, None, 1.0),
        (0.015, None, 0.015 / SHARE),
        (10.0, None, LONGEST_PAUSE),
        (10.0, -1.0, 0.0),
        (10.0, 0.5, 0.5),
        (10.0, 400.0, 1.0),
    ],
)
def test_looks_at_many_members_take_their_share_of_a_core(look_took, until_push, expected):
    """No pause is longer than the longest, or than until the push of a batch that waits."""
    assert pause(1.0, look_took, until_push) == pytest.approx(expected)
