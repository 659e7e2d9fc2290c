"""The rate limit: in no hour more commits than the limit, of any uploader, and the last tokens for the last pushes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.system import locks
from hf_mpwriter.system.directory import at
from hf_mpwriter.uploader import rate_limit
from hf_mpwriter.uploader.rate_limit import HOUR, Bucket, RateLimit, Rule

HERE = Destination("https://hub", "me/run")


class Host:
    """A host with a clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder / "cache", 1_000_000.0

    def limit(self, limit: float = 100.0, destination: Destination = HERE) -> RateLimit:
        """The limit as one uploader sees it."""
        return RateLimit(destination, limit, at(self.folder), lambda: self.now)


@pytest.fixture
def host(tmp_path) -> Host:
    """A host whose cache folder can be written."""
    return Host(tmp_path)


@given(
    st.floats(2, 1000),
    st.lists(st.tuples(st.floats(0, 600), st.booleans()), max_size=300),
)
def test_in_no_hour_there_are_more_commits_than_the_limit(limit, tries):
    """However the tries fall; a full bucket and an hour's refill together are the limit."""
    rule, bucket, now, taken = Rule(limit), Bucket(-1e9, 0.0), 0.0, []
    for pause, urgent in tries:
        now += pause
        bucket, wait = rule.spend(bucket, now, urgent=urgent)
        if not wait:
            taken.append(now)
    for first in range(len(taken)):
        within = sum(1 for moment in taken[first:] if moment < taken[first] + HOUR)
        assert within <= limit + 1e-3


def test_the_last_tokens_are_for_those_who_cannot_wait(host):
    """Periodic commits stop a quarter of the burst before the end; a request still goes."""
    one = host.limit()
    periodic = sum(1 for _ in itertools.takewhile(lambda _: not one.take(urgent=False), range(1000)))
    urgent = sum(1 for _ in itertools.takewhile(lambda _: not one.take(urgent=True), range(1000)))
    assert (periodic, urgent) == (15, 5)
    wait = one.take(urgent=True)
    assert wait == pytest.approx(HOUR / 80)
    host.now += wait
    assert not one.take(urgent=True)


def test_all_runs_that_go_to_one_repository_share_it_and_others_do_not(host):
    """Another folder or branch of the repository is the same repository; another endpoint or type is not."""
    one = host.limit()
    other_folder = host.limit(destination=Destination("https://hub", "me/run", revision="b", path_in_repo="x"))
    while not one.take(urgent=True):
        pass
    assert other_folder.take(urgent=True)
    for elsewhere in (Destination("https://hub", "me/run", "dataset"), Destination("http://hub", "me/run")):
        assert not host.limit(destination=elsewhere).take(urgent=True)


def test_what_led_to_no_commit_is_given_back(host):
    """A failure costs nothing, and a bucket is never more than full."""
    one = host.limit()
    for _ in range(30):
        assert not one.take(urgent=False)
        one.give_back()
    one.give_back()
    assert sum(1 for _ in itertools.takewhile(lambda _: not one.take(urgent=True), range(1000))) == 20


@pytest.mark.parametrize("garbage", [b"", b"[]", b'{"used": NaN, "at": NaN}', b'{"used": "x"}', b"\xff", b"9" * 5000])
def test_garbage_in_a_bucket_stops_nobody_for_long(host, garbage):
    """Nor does it allow more than a full bucket."""
    one = host.limit()
    one.take(urgent=True)
    (bucket,) = host.folder.glob("*.json")
    bucket.write_bytes(garbage)
    taken = sum(1 for _ in itertools.takewhile(lambda _: not one.take(urgent=True), range(1000)))
    assert taken in (0, 20)
    host.now += HOUR
    assert not one.take(urgent=True)


def test_a_clock_that_is_set_back_stops_nobody(host):
    """The bucket was written in what is now the future: time counts from now on."""
    one = host.limit()
    while not one.take(urgent=True):
        pass
    host.now -= 100 * HOUR
    wait = one.take(urgent=True)
    assert wait <= HOUR / 80
    host.now += wait
    assert not one.take(urgent=True)


def test_without_a_cache_folder_there_is_no_limit_but_that_of_the_hub(host, tmp_path):
    """A home that cannot be written is no obstacle."""
    (tmp_path / "cache").write_text("a file")
    one = host.limit()
    assert not one.take(urgent=True)
    assert not any(one.take(urgent=True) for _ in range(200))


def test_who_is_stopped_while_it_holds_the_lock_stops_nobody_for_long(host):
    """Others come again at once; in the end they go on without the bucket."""
    assert not host.limit().take(urgent=True)
    holder = locks.try_exclusive(at(host.folder) / "lock")
    try:
        one, began = host.limit(), host.now
        while wait := one.take(urgent=True):
            assert wait == rate_limit.BUSY_WAIT
            host.now += wait
    finally:
        locks.release(holder)
    assert rate_limit.BUSY_LIMIT < host.now - began < 2 * rate_limit.BUSY_LIMIT


def test_buckets_that_are_full_again_are_forgotten(host):
    """Many repositories over many weeks leave no heap of files."""
    for number in range(20):
        host.limit(destination=Destination("https://hub", f"me/run{number}")).take(urgent=True)
    folder = host.folder
    for bucket in folder.glob("*.json"):
        os.utime(bucket, (host.now, host.now))
    host.now += rate_limit.RESTED_AFTER + 1
    host.limit().take(urgent=True)
    (left,) = folder.glob("*.json")
    assert json.loads(left.read_text())["used"] == 1.0


def test_many_processes_that_take_at_once_take_no_token_twice(tmp_path):
    """Eight processes, one bucket of twenty."""
    source = """
import random, sys, time
from hf_mpwriter.uploader.rate_limit import BUSY_WAIT, RateLimit
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.system.directory import at
one, taken = RateLimit(Destination("https://hub", "me/run"), 100.0, at(sys.argv[1]), lambda: 1000.0), 0
while (wait := one.take(urgent=True)) in (0.0, BUSY_WAIT):
    taken += not wait
print(taken)
"""
    programs = [
        subprocess.Popen([sys.executable, "-c", source, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    assert sum(int(program.communicate()[0]) for program in programs) == 20


def test_the_buckets_are_in_the_users_cache_folder():
    """As other programs find it."""
    assert str(rate_limit.folder_of({"XDG_CACHE_HOME": "/c"})) == "/c/hf_mpwriter/rate_limit"
    assert str(rate_limit.folder_of({})).endswith("/.cache/hf_mpwriter/rate_limit")


@pytest.mark.parametrize(("limit", "pace"), [(100.0, "45 s"), (2.0, "60 min"), (1000.0, "4 s")])
def test_the_words_say_how_often_commits_come_from_now_on(host, limit, pace):
    """They come when the burst is used up, long before the limit of the hour is."""
    text = f"many commits in a short time: from now on this repository gets one in {pace}, with all that waits"
    assert host.limit(limit).explanation == f"{text} (HF_MPWRITER_COMMITS_PER_HOUR={limit:g})"


def test_the_next_uploader_of_a_repository_knows_what_the_user_was_told_of_it(host):
    """That it is public: where trials come one after the other, each has an uploader. After a day it is told again."""
    first = host.limit()
    assert first.take(urgent=True) == 0.0
    assert first.private is None
    first.saw_visibility(private=False)
    first.give_back()
    again = host.limit()
    again.take(urgent=True)
    assert again.private is False
    host.limit(destination=Destination("https://hub", "me/other")).take(urgent=True)
    for path in host.folder.glob("*.json"):
        os.utime(path, (0, 0))
    host.limit(destination=Destination("https://hub", "me/other")).take(urgent=True)
    later = host.limit()
    later.take(urgent=True)
    assert later.private is None
