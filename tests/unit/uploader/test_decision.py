"""What the uploader does next, over every situation."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from situations import NOW, QUIET

from hf_mpwriter.uploader.decision import Action, LINGER, decide

FLAGS = (False, True)
ALL = [
    replace(
        QUIET,
        next_try=next_try,
        next_commit=next_commit,
        fresh=fresh,
        frozen=frozen,
        queued=queued,
        urgent=urgent,
        living=living,
        abandoned_since=abandoned,
        terminating=terminating,
        tried=tried,
    )
    for next_try, next_commit, fresh, frozen, queued, urgent, living, abandoned, terminating, tried in product(
        (0.0, NOW + 1), (NOW, NOW + 1), FLAGS, FLAGS, (0, 2), FLAGS, (0, 1), (NOW, NOW - LINGER - 1), FLAGS, FLAGS
    )
]


@pytest.mark.parametrize(
    ("change", "action"),
    [
        ({}, Action.WAIT),
        ({"next_commit": NOW}, Action.SNAPSHOT),
        ({"urgent": True}, Action.SNAPSHOT),
        ({"queued": 1}, Action.SNAPSHOT),
        ({"queued": 1, "fresh": True}, Action.PUSH),
        ({"queued": 1, "frozen": True}, Action.PUSH),
        ({"urgent": True, "frozen": True}, Action.WAIT),
        ({"urgent": True, "next_try": NOW + 1}, Action.WAIT),
        ({"queued": 1, "fresh": True, "next_try": NOW + 1}, Action.WAIT),
        ({"attachable": True}, Action.ATTACH),
        ({"attachable": True, "next_try": NOW + 1}, Action.WAIT),
        ({"attachable": True, "next_commit": NOW}, Action.SNAPSHOT),
        ({"attachable": True, "urgent": True}, Action.SNAPSHOT),
        ({"attachable": True, "starved": True, "next_commit": NOW}, Action.ATTACH),
        ({"attachable": True, "starved": True, "next_commit": NOW, "urgent": True}, Action.ATTACH),
        ({"attachable": True, "starved": True, "living": 0, "urgent": True}, Action.SNAPSHOT),
        ({"attachable": True, "starved": True, "terminating": True}, Action.SNAPSHOT),
        ({"attachable": True, "starved": True, "next_commit": NOW, "queued": 1, "fresh": True}, Action.PUSH),
        ({"attachable": True, "starved": True, "next_commit": NOW, "frozen": True}, Action.WAIT),
        ({"attachable": False, "starved": True, "next_commit": NOW}, Action.SNAPSHOT),
        ({"attachable": True, "queued": 1, "fresh": True}, Action.PUSH),
        ({"attachable": True, "queued": 1, "fresh": True, "next_try": NOW + 1}, Action.WAIT),
        ({"attachable": True, "frozen": True}, Action.WAIT),
        ({"attachable": True, "attached": False, "living": 0}, Action.ATTACH),
        ({"attached": False, "living": 0}, Action.WAIT),
        ({"attached": False, "living": 0, "abandoned_since": NOW - LINGER - 1}, Action.LEAVE),
        ({"living": 0}, Action.LEAVE),
        ({"living": 0, "urgent": True}, Action.SNAPSHOT),
        ({"living": 0, "queued": 1, "next_try": NOW + 1}, Action.WAIT),
        ({"living": 0, "queued": 1, "next_try": NOW + 1, "abandoned_since": NOW - LINGER - 1}, Action.LEAVE),
        ({"living": 0, "settling": True, "frozen": True}, Action.WAIT),
        ({"living": 0, "settling": True, "frozen": True, "abandoned_since": NOW - LINGER - 1}, Action.LEAVE),
        ({"living": 0, "queued": 1, "fresh": True, "abandoned_since": NOW - LINGER - 1}, Action.LEAVE),
        ({"terminating": True}, Action.SNAPSHOT),
        ({"terminating": True, "queued": 1, "fresh": True}, Action.PUSH),
        ({"terminating": True, "tried": True}, Action.LEAVE),
        ({"terminating": True, "next_try": NOW + 1}, Action.LEAVE),
    ],
)
def test_each_situation_has_its_action(change, action):
    """The table of the design."""
    assert decide(replace(QUIET, **change)) is action


def test_nothing_is_pushed_before_a_try_is_allowed_or_without_an_entry():
    """In every situation."""
    for s in ALL:
        if decide(s) is Action.PUSH:
            assert s.queued
            assert s.now >= s.next_try
            assert s.fresh or s.frozen


def test_while_frozen_no_snapshot_is_taken():
    """Nothing longer than what may be under way is sent."""
    assert not any(decide(s) is Action.SNAPSHOT for s in ALL if s.frozen)


def test_nobody_is_left_while_it_may_still_be_served():
    """An uploader leaves only if nobody lives, or if it is told to."""
    for s in ALL:
        if decide(s) is Action.LEAVE and not s.terminating:
            assert s.living == 0
            wanted = s.queued or s.urgent or s.now >= s.next_commit
            assert not wanted or s.now - s.abandoned_since > LINGER


def test_what_is_wanted_and_allowed_is_done():
    """Somebody waits, the Hub may be asked: a snapshot or a push comes, unless the entries are frozen."""
    for s in ALL:
        if s.living == 0 and s.now - s.abandoned_since > LINGER:
            continue  # nobody lives and nothing goes forward: the next start goes on
        if (s.queued or s.urgent) and s.now >= s.next_try and not s.terminating and not s.frozen:
            assert decide(s) in (Action.SNAPSHOT, Action.PUSH)


def test_a_terminating_uploader_tries_once():
    """After SIGTERM: at most one more try, then it leaves, unless somebody has gone whose last events are not sent."""
    for s in ALL:
        if s.terminating and s.tried:
            assert decide(s) is Action.LEAVE
            abandoned = s.living == 0 and s.now - s.abandoned_since > LINGER
            stays = s.now >= s.next_try and not s.frozen and not abandoned
            expected = (Action.PUSH if s.queued and s.fresh else Action.SNAPSHOT) if stays else Action.LEAVE
            assert decide(replace(s, orphaned=True)) is expected
