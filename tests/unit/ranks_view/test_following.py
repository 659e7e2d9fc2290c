"""Following: what is derived of growing files equals what a computation of all of them at once derives."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from derived_runs import RankFiles, kept, recomputed, shown
from hypothesis import given, settings
from hypothesis import strategies as st
from support import failing

from hf_mpwriter.events import framing
from hf_mpwriter.ranks_view import aligning, checkpoint, following
from hf_mpwriter.ranks_view.aligning import Aligner
from hf_mpwriter.ranks_view.following import Following
from hf_mpwriter.spool.layout import Spool

RANKS = 3
FOLDER = "_all_ranks"


class Job:
    """Ranks that log, and the process that follows them; the clock goes on when it is told to."""

    def __init__(self, path):
        self.run_dir, self.now, self.live = Path(path), 0.0, set()
        self.files, self.spool = RankFiles(self.run_dir), Spool(str(path))
        self.run_dir.mkdir(exist_ok=True)
        self.host = self.spool.host("host-1")
        Path(str(self.host.root)).mkdir(parents=True)
        self.following = None

    def step(self, *, is_over=False, until=float("inf")):
        """One step of the process, after some seconds."""
        self.now += 1.0
        if self.following is None:
            self.following = Following(self.spool, self.host, FOLDER, "", lambda: self.now)
        return self.following.step(self.live, until, is_over=is_over)

    def kill_follower(self):
        """The process is gone, and leaves what is on disk."""
        self.following = None

    def end(self):
        """All ranks end, and all is derived."""
        self.live = set()
        while not self.step(is_over=True):
            pass
        self.following.seal()

    @property
    def derived(self):
        """The derived run, as TensorBoard shows it."""
        return shown(self.run_dir / FOLDER)

    @property
    def wanted(self):
        """What is to be derived."""
        return recomputed(self.run_dir, range(RANKS))


@pytest.fixture
def job(tmp_path):
    """A job without ranks yet."""
    return Job(tmp_path / "run")


def metrics(rank, step):
    """What a rank logs at a step: some tags every time, one now and then, one on a single rank."""
    found = {"loss": (rank + 1) / (step + 1), "perf/step_time": float((step * 7 + rank * 3) % 5)}
    if step % 3 == 0:
        found["accuracy"] = rank + step / 10
    if rank == 1:
        found["alone"] = 1.0
    return found


def log_in_turn(job, steps, ranks=range(RANKS)):
    """All ranks log these steps."""
    for step, rank in itertools.product(steps, ranks):
        job.files.log(rank, step, metrics(rank, step), wall_time=100.0 + step)


def start_all(job, purge_step=None):
    """All ranks live."""
    for rank in range(RANKS):
        job.files.start(rank, purge_step)
        job.live.add(rank)


def test_a_run_without_incidents_is_derived_whole(job):
    """Every tag that several ranks log, with the slowest rank for the times of a step."""
    start_all(job)
    log_in_turn(job, range(10))
    job.end()
    assert job.derived == job.wanted
    assert set(job.derived) == {
        *(f"{tag}/{kind}" for tag in ("loss", "perf/step_time", "accuracy") for kind in ("mean", "min", "max")),
        "perf/step_time/slowest_rank",
    }


def test_steps_are_derived_once_all_living_ranks_have_passed_them(job):
    """While the run goes on, and no earlier."""
    start_all(job)
    log_in_turn(job, range(5))
    log_in_turn(job, range(5, 9), ranks=(0, 2))
    job.now = 5.0
    job.step()
    assert job.derived == {}, "others may still join"
    job.now = 100.0
    job.step()
    assert [step for step, _ in job.derived["loss/mean"]] == list(range(5))
    job.live.remove(1)
    job.step()
    assert [step for step, _ in job.derived["loss/mean"]] == list(range(9)), "a dead rank holds nothing back"
    job.end()
    assert job.derived == job.wanted


def test_all_ranks_resumed_from_a_step(job):
    """A restart with purge_step: what is hidden in the ranks is hidden in the derived run, and derived again."""
    start_all(job)
    log_in_turn(job, range(20))
    for _ in range(30):
        job.step()
    assert len(job.derived["loss/mean"]) == 20
    job.live = set()
    job.step()
    for rank in range(RANKS):  # they come one after another
        job.files.start(rank, 12)
        job.live.add(rank)
        job.files.log(rank, 12, {"loss": 5.0 + rank})
        job.step()
    log_in_turn(job, range(13, 16))
    for _ in range(30):
        job.step()
    assert [step for step, _ in job.derived["loss/mean"]] == list(range(16))
    job.end()
    assert job.derived == job.wanted
    starts = sum(b"\x3a\x02\x08\x01" in payload for payload in payloads(job))
    assert starts == 2, "one rewind for all ranks, written twice"


def payloads(job):
    """All records of the derived run."""
    found = sorted((job.run_dir / FOLDER).glob("events.*"))
    return [payload for path in found for payload in framing.payloads(str(path))]


def test_one_rank_resumed_from_a_step_behind_the_others(job):
    """The others' values of the hidden steps are read again."""
    start_all(job)
    log_in_turn(job, range(10))
    log_in_turn(job, range(10, 30), ranks=(0, 2))
    job.live.remove(1)
    for _ in range(30):
        job.step()
    assert len(job.derived["loss/mean"]) == 30
    job.files.start(1, 6)
    job.live.add(1)
    job.step()
    for step in range(6, 30):
        job.files.log(1, step, {"loss": 50.0})
        job.step()
    job.end()
    assert job.derived == job.wanted


def test_a_late_step_is_left_out(job):
    """A rank that comes back without purge_step changes nothing: an older step would delete all later ones."""
    start_all(job)
    log_in_turn(job, range(3))
    log_in_turn(job, range(3, 6), ranks=(0, 2))
    job.live.remove(1)
    for _ in range(30):
        job.step()
    before = job.derived
    job.files.start(1)
    job.live.add(1)
    for step in range(3, 6):
        job.files.log(1, step, metrics(1, step))
    for _ in range(30):
        job.step()
    assert job.derived == before


def test_a_rank_that_logs_nothing_of_a_tag_holds_it_only_for_a_while(job):
    """A tag of some ranks is derived; and so is one that a living rank has stopped logging."""
    start_all(job)
    for step, rank in itertools.product(range(3), (0, 1)):
        job.files.log(rank, step, {"loss": 1.0})
    job.now = 30.0
    job.step()
    assert job.derived == {}
    job.now = 200.0
    job.step()
    assert len(job.derived["loss/mean"]) == 3
    job.files.log(0, 3, {"loss": 1.0})
    job.step()
    job.now += 601.0
    job.step()
    job.files.log(1, 4, {"loss": 1.0})
    job.files.log(0, 4, {"loss": 1.0})
    job.step()
    assert [step for step, _ in job.derived["loss/mean"]] == [0, 1, 2, 4]


def settle_all(job):
    """No rank holds anything any more, and a mark is kept."""
    job.step()
    job.now += 70.0
    for _ in range(10):
        job.step()


def test_a_checkpoint_saves_reading(job, monkeypatch):
    """A new process begins where nothing waits any more, and derives what is new."""
    monkeypatch.setattr(following, "MARK_EVERY", 5.0)
    start_all(job)
    log_in_turn(job, range(50))
    settle_all(job)
    saved = checkpoint.Checkpoint.load(job.host, FOLDER)
    assert saved.offsets
    assert all(offset == (job.run_dir / path).stat().st_size for path, offset in saved.offsets.items())
    job.kill_follower()
    log_in_turn(job, range(50, 60))
    taken, take = [], Aligner.take
    monkeypatch.setattr(Aligner, "take", lambda self, *row: (taken.append(row[1]), take(self, *row)))
    job.end()
    assert job.derived == job.wanted
    assert set(taken) == set(range(50, 60))


def test_a_mark_of_a_process_that_has_read_nothing_knows_how_far_was_read_before(job, monkeypatch):
    """A rank that resumes behind it has the others' values of the hidden steps read again."""
    monkeypatch.setattr(following, "MARK_EVERY", 5.0)
    start_all(job)
    log_in_turn(job, range(30))
    settle_all(job)
    job.kill_follower()
    settle_all(job)
    assert checkpoint.Checkpoint.load(job.host, FOLDER).marks[-1].highest == 29
    job.live.remove(1)
    job.step()
    job.files.start(1, 6)
    job.live.add(1)
    for step in range(6, 30):
        job.files.log(1, step, {"loss": 50.0})
        job.step()
    job.end()
    assert job.derived == job.wanted


def test_derived_files_that_were_lost_are_derived_again(job, monkeypatch):
    """A checkpoint counts only while the files that it tells of are there."""
    monkeypatch.setattr(following, "MARK_EVERY", 5.0)
    start_all(job)
    log_in_turn(job, range(20))
    settle_all(job)
    assert checkpoint.Checkpoint.load(job.host, FOLDER).marks
    job.kill_follower()
    for path in (job.run_dir / FOLDER).iterdir():
        path.unlink()
    job.end()
    assert job.derived == job.wanted


def survives(job):
    """Whether the process goes on while all is settled; if not, the next one does."""
    try:
        settle_all(job)
    except OSError:
        job.kill_follower()
        settle_all(job)
        return False
    return True


@pytest.mark.parametrize("failpoint", ["all_ranks.checkpoint", "all_ranks.growing"])
@pytest.mark.parametrize("step", ["open", "write", "rename", "unlink"])
def test_a_disk_that_refuses_what_the_view_keeps_loses_nothing(job, monkeypatch, failpoint, step):
    """What was derived by then is not derived again, and the rest is, by whoever comes next."""
    monkeypatch.setattr(following, "MARK_EVERY", 5.0)
    start_all(job)
    refused = 0
    with failing(f"{failpoint}.{step}=eio"):
        for number in range(4):
            log_in_turn(job, range(10 * number, 10 * number + 10))
            refused += not survives(job)
        start_all(job, 5)
        log_in_turn(job, range(5, 20))
        refused += not survives(job)
    assert refused <= 1
    assert refused or (failpoint, step) == ("all_ranks.checkpoint", "unlink")
    job.kill_follower()
    job.end()
    assert job.derived == job.wanted
    in_order(job.run_dir / FOLDER)


def test_a_torn_record_and_the_next_file_of_its_rank(job):
    """The beginning of a record is waited for; a rank that was killed goes on in another file."""
    start_all(job)
    log_in_turn(job, range(4))
    job.files.tear(1)
    job.step()
    job.live.remove(1)
    job.step()
    job.files.start(1)
    job.live.add(1)
    log_in_turn(job, range(4, 8))
    job.end()
    assert job.derived == job.wanted


class History:
    """What happens to a job: its ranks log, are killed, and are all started again from an earlier step."""

    def __init__(self, job, *, is_hurried):
        self.job, self.is_hurried, self.attempt, self.steps = job, is_hurried, -1, {}
        self.restart(0, range(RANKS))

    def restart(self, purge_step, order):
        """All ranks go on from a step, one after another."""
        self.attempt += 1
        purge_step = min([purge_step, *self.steps.values()])
        self.job.live = set()
        for rank in order:
            self.job.files.start(rank, purge_step)
            self.job.live.add(rank)
            self.steps[rank] = purge_step + 1
            self.job.files.log(rank, purge_step, first(rank, purge_step, self.attempt))
            if self.is_hurried:
                self.job.step()

    def log(self, rank, count):
        """A rank logs some steps, unless it is dead."""
        for _ in range(count if rank in self.job.live else 0):
            self.job.files.log(rank, self.steps[rank], {**metrics(rank, self.steps[rank]), "attempt": self.attempt})
            self.steps[rank] += 1

    def log_together(self, count):
        """All ranks that live log some steps."""
        for rank in range(RANKS):
            self.log(rank, count)

    def look(self, count):
        """The process that follows takes some steps; in a hurry each of them takes in one part."""
        for _ in range(count):
            self.job.step(until=0.0 if self.is_hurried else self.job.now + 10.0)

    def kill_follower(self):
        """That process is gone."""
        self.job.kill_follower()

    def kill(self, rank):
        """A rank is killed within a record."""
        if rank in self.job.live:
            self.job.files.tear(rank)
            self.job.live.remove(rank)


RANK = st.integers(0, RANKS - 1)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("log"), RANK, st.integers(1, 4)),
        st.tuples(st.just("log_together"), st.integers(1, 6)),
        st.tuples(st.just("look"), st.integers(1, 9)),
        st.tuples(st.just("kill_follower")),
        st.tuples(st.just("kill"), RANK),
        st.tuples(st.just("restart"), st.integers(0, 12), st.permutations(range(RANKS))),
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(ACTIONS, st.sampled_from([3.0, 60.0]), st.booleans())
def test_any_history_of_kills_resumes_and_purges(actions, mark_every, is_hurried):
    """The derived run is that of a computation from scratch; and no older step ever follows a newer one."""
    with tempfile.TemporaryDirectory() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "MARK_EVERY", mark_every)
        patch.setattr(following, "JOINING", 2.0)
        patch.setattr(aligning, "JOINING", 2.0)
        patch.setattr(aligning, "NEW", 5.0)
        job = Job(Path(path) / "run")
        history = History(job, is_hurried=is_hurried)
        for action, *arguments in actions:
            getattr(history, action)(*arguments)
        job.end()
        assert job.derived == job.wanted
        in_order(job.run_dir / FOLDER)


def first(rank, step, attempt):
    """What a rank logs first: all tags, so that the others know which ones it will log."""
    return {**metrics(rank, step), "accuracy": rank + step / 10, "attempt": attempt}


def in_order(directory):
    """Whether of each tag, steps only increase between two rewinds."""
    last = {}
    for path in sorted(directory.glob("events.*")):
        for payload in framing.payloads(str(path)):
            for step, tags in rows(payload):
                if tags is None:
                    last = {tag: min(known, step - 1) for tag, known in last.items()}
                for tag in tags or ():
                    assert step > last.get(tag, -1), "an older step deletes all later ones"
                    last[tag] = step


def rows(payload):
    """Step and tags of a record, None for START."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    event = Event.FromString(payload)
    if event.session_log.status == SessionLog.START:
        return [(event.step, None)]
    return [(event.step, [value.tag for value in event.summary.value])] if event.summary.value else []


def test_kept_is_what_no_later_start_hides(job):
    """The judge of these tests itself: START hides what is before it, and nothing behind it."""
    job.files.start(0)
    for step in range(4):
        job.files.log(0, step, {"loss": 1.0})
    job.files.start(0, 2)
    job.files.log(0, 2, {"loss": 2.0})
    assert kept(job.run_dir) == {"loss": [(0, 1.0), (1, 1.0), (2, 2.0)]}
