"""What all ranks log, derived from growing files: equal to a computation of all of them at once."""

from __future__ import annotations

import itertools
import math
import os
import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from derived_runs import RankFiles, kept, recomputed, shown
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from hf_mpwriter import ranks
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.events import framing
from hf_mpwriter.ranks import HELD, NEW, Aligner, Following, combine, derive, is_step_time, rank_of
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import host_id, host_name

RANKS = range(3)
FOLDER = "_all_ranks"


class Job:
    """Ranks that log, and the process that follows them; the clock goes on when it is told to."""

    def __init__(self, path):
        self.run_dir, self.now, self.live = Path(path), 0.0, set()
        self.files, self.spool = RankFiles(self.run_dir), Spool(str(path))
        self.spool.create()
        self.following = None

    def step(self, *, is_over=False):
        """One step of the process, after a second."""
        self.now += 1.0
        if self.following is None:
            self.following = Following(self.spool, FOLDER, "", Settings(), ranks.NEW, USUAL.ranks_joining)
        return self.following.step(self.now, self.live, is_over=is_over)

    def steps(self, count):
        """Some steps of the process."""
        for _ in range(count):
            self.step()

    def kill_follower(self):
        """The process is gone, and leaves what is on disk."""
        if self.following is not None:
            self.following.derived._member.leave(0)
        self.following = None

    def end(self):
        """All ranks end, and all is derived."""
        self.live = set()
        while not self.step(is_over=True):
            pass
        self.following.derived.close()

    def growing(self):
        """The event files that count as growing."""
        scan = EventFileScan(self.spool.run).files(lambda _: True, Members(self.spool).growing)
        return [file.path for file in scan if file.growing]

    @property
    def derived(self):
        """The derived run, as TensorBoard shows it."""
        return shown(self.run_dir / FOLDER)

    @property
    def wanted(self):
        """What is to be derived."""
        return recomputed(self.run_dir, RANKS)


@pytest.fixture
def job(tmp_path):
    """A job whose ranks live and have logged nothing yet."""
    found = Job(tmp_path / "run")
    start_all(found)
    yield found
    found.kill_follower()


def metrics(rank, step):
    """What a rank logs at a step: some tags every time, one now and then, one on a single rank."""
    found = {"loss": (rank + 1) / (step + 1), "perf/step_time": float((step * 7 + rank * 3) % 5)}
    if step % 3 == 0:
        found["accuracy"] = math.nan if (rank, step) == (1, 3) else rank + step / 10
    if rank == 1:
        found["alone"] = 1.0
    return found


def log_in_turn(job, steps, ranks=RANKS):
    """All ranks log these steps."""
    for step, rank in itertools.product(steps, ranks):
        job.files.log(rank, step, metrics(rank, step), wall_time=100.0 + step)


def start_all(job, purge_step=None):
    """All ranks live."""
    for rank in RANKS:
        job.files.start(rank, purge_step)
        job.live.add(rank)


# any history


class History:
    """What happens to a job: its ranks log, are killed, and are all started again from an earlier step."""

    def __init__(self, job, *, is_hurried):
        self.job, self.is_hurried, self.attempt, self.steps = job, is_hurried, -1, {}
        self.restart(0, RANKS)

    def restart(self, purge_step, order):
        """All ranks go on from a step, one after another."""
        self.attempt += 1
        purge_step = min([purge_step, *self.steps.values()])
        self.job.live = set()
        for rank in order:
            self.job.files.start(rank, purge_step)
            self.job.live.add(rank)
            self.steps[rank] = purge_step + 1
            first = {**metrics(rank, purge_step), "accuracy": rank + purge_step / 10, "attempt": self.attempt}
            self.job.files.log(rank, purge_step, first)  # so the others know which tags it will log
            if self.is_hurried:
                self.job.step()

    def log(self, rank, count):
        """A rank logs some steps, unless it is dead."""
        for _ in range(count if rank in self.job.live else 0):
            self.job.files.log(rank, self.steps[rank], {**metrics(rank, self.steps[rank]), "attempt": self.attempt})
            self.steps[rank] += 1

    def log_together(self, count):
        """All ranks that live log some steps."""
        for rank in RANKS:
            self.log(rank, count)

    def look(self, count):
        """The process that follows takes some steps."""
        self.job.steps(count)

    def kill_follower(self):
        """That process is gone."""
        self.job.kill_follower()

    def kill(self, rank):
        """A rank is killed within a record."""
        if rank in self.job.live:
            self.job.files.tear(rank)
            self.job.live.remove(rank)


RANK = st.integers(0, len(RANKS) - 1)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("log"), RANK, st.integers(1, 4)),
        st.tuples(st.just("log_together"), st.integers(1, 6)),
        st.tuples(st.just("look"), st.integers(1, 9)),
        st.tuples(st.just("kill_follower")),
        st.tuples(st.just("kill"), RANK),
        st.tuples(st.just("restart"), st.integers(0, 12), st.permutations(RANKS)),
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(ACTIONS, st.booleans())
def test_any_history_of_kills_resumes_and_purges(actions, is_hurried):
    """The derived run is that of a computation from scratch; and no older step ever follows a newer one.

    In a hurry, each step of the process takes in one part of one file.
    """
    with tempfile.TemporaryDirectory() as path, pytest.MonkeyPatch.context() as patch:
        for constant, value in {"NEW": 5.0, "CHUNK": 300 if is_hurried else 1 << 16}.items():
            patch.setattr(ranks, constant, value)
        job = Job(Path(path) / "run")
        history = History(job, is_hurried=is_hurried)
        for action, *arguments in actions:
            getattr(history, action)(*arguments)
        job.end()
        assert job.derived == job.wanted
        in_order(job.run_dir / FOLDER)
        assert job.growing() == []


def in_order(directory):
    """Of each tag, steps only increase between two rewinds."""
    last = {}
    for payload in payloads(directory):
        event = Event.FromString(payload)
        if event.session_log.status == SessionLog.START:
            last = {tag: min(known, event.step - 1) for tag, known in last.items()}
        for value in event.summary.value:
            assert event.step > last.get(value.tag, -1), "an older step deletes all later ones"
            last[value.tag] = event.step


def payloads(directory):
    """All records of a derived run."""
    found = sorted(directory.glob("events.*"))
    return [payload for path in found for payload in framing.payloads(str(path))]


def test_kept_is_what_no_later_start_hides(job):
    """The judge of these tests itself: START hides what is before it, and nothing behind it."""
    for step in range(4):
        job.files.log(0, step, {"loss": 1.0})
    job.files.start(0, 2)
    job.files.log(0, 2, {"loss": 2.0})
    assert kept(job.run_dir) == {"loss": [(0, 1.0), (1, 1.0), (2, 2.0)]}


# when a step is derived


def test_steps_are_derived_once_all_living_ranks_have_passed_them(job):
    """While the run goes on, and no earlier; the file counts as one that grows."""
    log_in_turn(job, range(5))
    log_in_turn(job, range(5, 9), ranks=(0, 2))
    job.step()
    assert job.derived == {}, "others may still join"
    job.now = 100.0
    job.step()
    assert [step for step, _ in job.derived["loss/mean"]] == list(range(5))
    assert [os.path.dirname(path) for path in job.growing()] == [FOLDER]
    job.live.remove(1)
    job.step()
    assert [step for step, _ in job.derived["loss/mean"]] == list(range(9)), "a dead rank holds nothing back"
    job.end()
    assert job.derived == job.wanted
    assert job.growing() == []


def test_for_all_ranks_that_resume_from_a_step_all_is_derived_anew_once(job):
    """They come one after another; what is hidden in them is hidden in the derived run."""
    log_in_turn(job, range(20))
    job.steps(30)
    assert len(job.derived["loss/mean"]) == 20
    job.live = set()
    job.step()
    for rank in RANKS:
        job.files.start(rank, 12)
        job.live.add(rank)
        job.files.log(rank, 12, {"loss": 5.0 + rank})
        job.step()
    log_in_turn(job, range(13, 16))
    job.steps(30)
    assert [step for step, _ in job.derived["loss/mean"]] == list(range(16))
    assert len(list((job.run_dir / FOLDER).iterdir())) == 2


def test_a_late_step_is_left_out(job):
    """A rank that comes back without purge_step changes nothing: an older step would delete all later ones."""
    log_in_turn(job, range(3))
    log_in_turn(job, range(3, 6), ranks=(0, 2))
    job.live.remove(1)
    job.steps(30)
    before = job.derived
    job.files.start(1)
    job.live.add(1)
    log_in_turn(job, range(3, 6), ranks=(1,))
    job.steps(30)
    assert job.derived == before


def test_start_in_the_middle_of_a_file_hides_what_was_read_before(job):
    """As a second writer of one process leaves it."""
    log_in_turn(job, range(8))
    job.steps(30)
    for rank in RANKS:
        job.files.hide(rank, 4)
    log_in_turn(job, range(4, 6))
    job.steps(30)
    job.end()
    assert job.derived == job.wanted
    assert len(job.derived["loss/mean"]) == 6


def test_what_a_start_hides_that_was_there_before_is_not_taken_first(job, monkeypatch):
    """The ranks have been resumed: who derives then reads all once, whatever the parts are in which it reads."""
    monkeypatch.setattr(ranks, "CHUNK", 300)
    log_in_turn(job, range(20))
    start_all(job, purge_step=12)
    log_in_turn(job, range(12, 30))
    job.steps(int(USUAL.ranks_joining) + 2)
    assert [step for step, _ in job.derived["loss/mean"]] == list(range(30))


def test_a_disk_that_refuses_again_and_again_costs_time_only(job, monkeypatch):
    """First a point, then the member file of what is derived anew; once it takes them all is there."""
    refuses, append, join = ["point", "member"], ranks.Derived.append, ranks.MemberFile

    def refuse(what):
        if refuses[:1] == [what]:
            raise OSError(refuses.pop(0))

    monkeypatch.setattr(ranks.Derived, "append", lambda self, points: refuse("point") or append(self, points))
    monkeypatch.setattr(ranks, "MemberFile", lambda *given: refuse("member") or join(*given))
    log_in_turn(job, range(5))
    job.live = set()
    assert derive(job.spool, Settings(), follow=True, timing=replace(USUAL, ranks_look_every=0.0)) is not None
    assert (refuses, job.derived) == ([], job.wanted)


def aligner(live, now=1e6):
    """An aligner that has known its ranks for long."""
    found = Aligner(NEW, USUAL.ranks_joining)
    found.begin(0.0, live)
    found.begin(now, live)
    return found


def log(found, logging, step, tag="loss"):
    """Some ranks log one value."""
    for rank in logging:
        found.take(rank, Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=1.0)])))


def settled(found, live, unread=()):
    """The steps that are complete now."""
    return [point.step for point in found.settle(live, unread)]


def test_a_rank_that_logs_nothing_of_a_tag_holds_it_while_either_is_new():
    """After that it is a tag of the others."""
    found, now = aligner(RANKS), 1e6
    log(found, (0, 1), 1)
    assert settled(found, RANKS) == []
    found.begin(now := now + NEW, RANKS)
    assert settled(found, RANKS) == [1]
    found.begin(now := now + 1, range(4))
    log(found, (0, 1), 2)
    found.begin(now + USUAL.ranks_joining, range(4))
    assert settled(found, range(4)) == [], "rank 3 may log it, too"
    found.begin(now + NEW, range(4))
    assert settled(found, range(4)) == [2]


def test_a_rank_that_stopped_logging_a_tag_holds_each_step_for_a_while():
    """And what is not read yet holds a step although its rank is dead."""
    found = aligner(RANKS)
    log(found, RANKS, 1)
    log(found, (0, 1), 2)
    assert settled(found, RANKS) == [1]
    found.begin(1e6 + HELD, RANKS)
    log(found, (0, 1), 3)
    assert settled(found, RANKS, unread=[2]) == []
    assert settled(found, RANKS) == [2], "step 3 has not waited for so long"
    assert settled(found, [0, 1]) == [3]


def test_what_waits_is_bounded(monkeypatch):
    """Beyond the bound the older half of the steps is settled as it is, and the memory is free again."""
    monkeypatch.setattr(ranks, "MOST", 100)
    found = aligner(RANKS)
    for step in range(51):
        log(found, (0, 1), step)
    assert found.waiting == 102
    assert settled(found, RANKS) == list(range(26))
    assert found.waiting == 50


# what is derived


@pytest.mark.parametrize(
    ("values", "mean", "least", "greatest", "slowest"),
    [
        ((1.0, 3.0, 3.0), 7 / 3, 1.0, 3.0, 1),
        ((1.0, math.nan, 0.5), math.nan, math.nan, math.nan, 0),
        ((math.inf, -math.inf, 0.0), math.nan, -math.inf, math.inf, 0),
        ((math.nan, math.nan, math.nan), math.nan, math.nan, math.nan, -1),
    ],
)
def test_what_a_point_says_of_all_kinds_of_numbers(values, mean, least, greatest, slowest):
    """NaN of one rank is seen; the slowest rank is the lowest one with the greatest number."""
    found = combine("step_time", dict(enumerate(values)))
    assert list(found) == [f"step_time/{kind}" for kind in ("mean", "min", "max", "slowest_rank")]
    assert list(found.values()) == pytest.approx([mean, least, greatest, slowest], nan_ok=True)


@pytest.mark.parametrize(
    ("tags", "is_time"),
    [
        ("step_time perf/step_time perf/train_step_time_ms StepTime iteration-seconds time_per_step iter_time_s", True),
        ("seconds_per_step sec_per_iter s_per_step perf/ms_per_batch", True),
        ("loss step timestep step_timestamp steps_per_second step_time/forward batch_size time", False),
        ("samples_per_second step_timeout tokens_per_step losses_per_step last_step", False),
    ],
)
def test_times_of_a_step_are_known_by_the_last_part_of_their_tag(tags, is_time):
    """In the spellings that trainers use; the slowest rank of a loss would mean nothing."""
    assert [is_step_time(tag) for tag in tags.split()] == [is_time] * len(tags.split())


def test_only_ranks_count():
    """Children of a rank log what they like; array tasks are runs of their own."""
    workers = ["main", "rank_00003", "rank_00003~2", "rank_00003_Process-1", "proc_00001", "task_00001_rank_00003"]
    assert [rank_of(worker) for worker in [*workers, "~sync"]] == [0, 3, 3, None, None, None, None]


# the command


def test_damage_and_garbage_cost_nobody_else_anything(job):
    """Behind damage nothing is read; a whole record that is not an event, and a pipe, are passed over."""
    log_in_turn(job, range(6))
    path = min((job.run_dir / "rank_00001").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)
    wanted = job.wanted
    assert [step for step, _ in kept(path.parent)["loss"]] != list(range(6))
    job.files.write(2, framing.frame(b"\x09" + struct.pack("<d", 1.0) + b"\x2a\xff"))
    (job.run_dir / FOLDER).mkdir()
    pipes = [job.run_dir / name / "events.out.tfevents.1700000000.o.1.abcdef01" for name in ("rank_00002", FOLDER)]
    for pipe in pipes:
        os.mkfifo(pipe)
    job.live = set()
    assert derive(job.spool, Settings(), follow=False) is not None
    for pipe in pipes:
        pipe.unlink()
    assert job.derived == wanted


def test_a_run_of_one_rank_has_nothing_to_compare(tmp_path):
    """No file is made."""
    job = Job(tmp_path / "run")
    job.files.start(0)
    job.files.log(0, 1, {"loss": 1.0})
    assert derive(job.spool, Settings(), follow=True).points == 0
    assert not (job.run_dir / FOLDER).exists()
    assert os.listdir(job.run_dir / ".hf_mpwriter/members") == []


def test_two_processes_do_not_derive_one_run(job):
    """The second one says so."""
    lock = locks.try_exclusive(job.spool.directory / "ranks.lock")
    assert derive(job.spool, Settings(), follow=False) is None
    locks.release(lock)
    assert derive(job.spool, Settings(), follow=False) is not None


def test_a_node_with_a_run_directory_of_its_own_derives_a_run_of_its_own(job, monkeypatch):
    """Of the event files that its host has written; else the nodes would mix theirs on the Hub."""
    monkeypatch.setattr(ranks, "mount_of_descriptor", lambda _: type("Local", (), {"is_local": True}))
    monkeypatch.setenv("HF_MPWRITER_NODES", "2")
    log_in_turn(job, range(3))
    here = RankFiles(job.run_dir, host_name())
    for rank in (0, 1):
        here.start(rank)
        here.log(rank, 7, {"loss": 1.0})
    derived = derive(job.spool, Settings(), follow=False)
    assert derived.folder == f"{FOLDER}/{host_id()}"
    assert [step for step, _ in shown(job.run_dir / derived.folder)["loss/mean"]] == [7]
