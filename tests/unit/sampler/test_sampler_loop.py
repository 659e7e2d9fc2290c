"""A sampler over time, in this process: when it writes, when it seals, and what it leaves behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support import events

from hf_mpwriter.base.names import sampler_directory, sampler_name
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.events import framing
from hf_mpwriter.sampler.loop import LINGER, Sampler
from hf_mpwriter.sampler.sources import Sources
from hf_mpwriter.spool import daemons
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.record import MirrorRecord
from hf_mpwriter.spool.workers.members import OBSERVER, MemberFile, Members
from hf_mpwriter.spool.workers.samplers import SamplerStatus
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import Process, host_id


class Machine:
    """A sampler of a run, its clock, and workers."""

    def __init__(self, spool: Spool) -> None:
        self.spool, self.now, self.sampler = spool, 1000.0, None
        self.host = spool.host(host_id())
        os.makedirs(self.host.root, exist_ok=True)

    def worker(self, name: str = "main") -> MemberFile:
        """A worker that lives."""
        return MemberFile(self.spool, name, Process.current(), Settings())

    def start(self) -> None:
        """Start a sampler, which has a second or more until its first sample."""
        lock = locks.try_exclusive(self.spool.lock_of("sampler"))
        assert lock is not None, "the one before has ended"
        clock, wall = (lambda: self.now), (lambda: 1_900_000_000.0 + self.now)
        self.sampler = Sampler(
            self.spool, Settings(commit_every=1.0), lock, Sources({"one": lambda: {"a/b": self.now}}), clock, wall
        )

    def run(self, seconds: float) -> bool:
        """Let time pass, tick by tick; whether the sampler still works."""
        for _ in range(int(seconds / USUAL.sampler_tick)):
            self.now += USUAL.sampler_tick
            if not self.sampler.look():
                return False
        return True

    @property
    def files(self) -> list[Path]:
        """Its event files."""
        return sorted(Path(self.spool.run_dir).glob("_system/*/*"))

    @property
    def samples(self) -> list[tuple[int, float]]:
        """Step and value of each sample."""
        found = [event for path in self.files for event in events(path) if event.HasField("summary")]
        assert all([value.tag for value in event.summary.value] == ["a/b"] for event in found)
        return [(event.step, event.summary.value[0].simple_value) for event in found]


@pytest.fixture
def machine(own_spool) -> Machine:
    """A local run."""
    return Machine(own_spool)


def test_while_a_worker_lives_there_is_a_sample_every_15_seconds(machine):
    """The first one soon; steps are seconds, and it names itself for `stop`."""
    worker = machine.worker()
    machine.start()
    assert SamplerStatus.read(machine.host).process == Process.current()
    assert machine.run(61)
    times = [value for _, value in machine.samples]
    assert times == [1001.0, 1016.0, 1031.0, 1046.0, 1061.0]
    steps = [step for step, _ in machine.samples]
    assert [step - steps[0] for step in steps] == [0, 15, 30, 45, 60]
    worker.leave()


def test_when_no_worker_lives_it_samples_once_more_seals_at_once_and_leaves_soon(machine):
    """Of a local run nothing waits for anybody, so no member file stays."""
    workers = [machine.worker("rank_00000"), machine.worker("rank_00001")]
    machine.start()
    assert machine.run(5)
    workers[0].leave()
    assert machine.run(2)
    assert [bool(member.growing) for member in Members(machine.spool).all() if member.is_sampler] == [True]
    workers[1].leave()
    assert machine.run(USUAL.sampler_tick)
    (member,) = (member for member in Members(machine.spool).all() if member.is_sampler)
    assert (member.growing, member.requests) == (frozenset(), 1), "an uploader that did not wait sends it all the same"
    assert [value for _, value in machine.samples] == [1001.0, 1007.5]
    assert not machine.run(LINGER + 2 * USUAL.sampler_tick)
    assert [member for member in Members(machine.spool).all() if member.is_sampler] == []
    assert not machine.host.daemon("sampler").starts.exists(), "it has left in good order"


def test_a_worker_that_comes_back_soon_meets_the_same_sampler(machine):
    """A program may close its writer and build another one."""
    worker = machine.worker()
    machine.start()
    machine.run(5)
    worker.leave()
    machine.run(LINGER - 1)
    worker = machine.worker()
    assert machine.run(USUAL.sample_every + 1)
    assert len(machine.files) == 2, "what is sealed never grows again"
    worker.leave()


def test_the_next_sampler_goes_on_behind_the_last_step(machine):
    """Also if its clock was set back: what was sampled is never revised."""
    for _ in range(3):
        worker = machine.worker()
        machine.start()
        machine.run(3)
        worker.leave()
        assert not machine.run(LINGER + 2)
        machine.now -= 100.0
    steps = [step for step, _ in machine.samples]
    assert len(steps) == 6
    assert steps == sorted(set(steps))


def test_without_a_worker_it_writes_nothing(machine):
    """An observer is none, nor is a worker of another host. The uploader may have gone already."""
    observer = machine.worker(OBSERVER)
    machine.start()
    assert not machine.run(LINGER + 5)
    assert machine.files == []
    observer.leave()


def test_sigterm_ends_it_with_a_last_sample(machine, monkeypatch):
    """Even while workers live; the file is sealed."""
    ends = []
    monkeypatch.setattr(daemons, "end_within", ends.append)
    worker = machine.worker()
    machine.start()
    machine.run(4)
    machine.sampler.terminate()
    assert not machine.run(USUAL.sampler_tick)
    assert [value for _, value in machine.samples] == [1001.0, 1004.5]
    assert ends, "a driver that hangs cannot keep it"
    worker.leave()


def test_what_is_not_on_the_hub_yet_keeps_its_member_file_for_the_next_uploader(spool):
    """Its lock is free: it is dead, and has sealed its file."""
    machine = Machine(spool)
    worker = machine.worker()
    machine.start()
    machine.run(3)
    worker.leave()
    assert not machine.run(LINGER + 2)
    (member,) = (member for member in Members(spool).all() if member.is_sampler)
    assert (member.alive, len(member.files), member.growing) == (False, 1, frozenset())


@pytest.mark.parametrize("what", ["spool", "run directory", "lock"])
def test_it_ends_when_what_it_writes_to_is_removed(machine, what):
    """And makes nothing anew."""
    worker = machine.worker()
    machine.start()
    machine.run(3)
    run_dir = machine.spool.run_dir
    gone = {"spool": machine.spool.root, "run directory": run_dir, "lock": str(machine.host.root)}[what]
    shutil.rmtree(gone)
    assert not machine.run(USUAL.sampler_tick)
    assert not os.path.exists(gone)
    worker.leave()


def test_of_a_staged_run_it_seals_by_time(machine, tmp_path):
    """The mirror brings only what is sealed; `commit_every` is a minute here."""
    MirrorRecord(str(tmp_path / "there"), 1_900_001_000.0).publish(machine.spool)
    worker = machine.worker()
    machine.start()
    machine.run(200)
    assert len(machine.files) == 3
    worker.leave()


def put_pipe(path: Path) -> None:
    """One without a writer."""
    os.mkfifo(path)


def put_link(path: Path) -> None:
    """One to a file elsewhere."""
    path.symlink_to("/etc/hostname")


def put_huge(path: Path) -> None:
    """A file that takes no room, and would take all memory."""
    path.touch()
    os.truncate(path, 1 << 40)


def put_nonsense(path: Path) -> None:
    """A record of the last step that there is."""
    record = framing.frame(framing.summary_event(1.0, (1 << 63) - 1, b""))
    path.write_bytes(framing.frame(framing.version_event(1.0)) + record)


@pytest.mark.parametrize("put", [put_pipe, put_link, put_huge, put_nonsense, Path.mkdir])
def test_what_others_put_among_its_files_does_not_keep_it_from_its_work(machine, put):
    """Of what is there, only the last step is looked for, in files that can be of a sampler."""
    directory = Path(machine.spool.run_dir) / sampler_directory(sampler_name(host_id().rpartition("-")[0]))
    directory.mkdir(parents=True)
    put(directory / "events.out.tfevents.1700000001.other.1.abcdef01")
    worker = machine.worker()
    machine.start()
    assert machine.run(5)
    (path,) = (path for path in machine.files if ".other." not in path.name)
    assert next(event.step for event in events(path) if event.HasField("summary")) < 1 << 40
    worker.leave()


def test_where_it_cannot_start_it_leaves_no_member_behind(machine):
    """It is tried again and again, and of a local run nobody else would remove what each try leaves."""
    worker = machine.worker()
    (Path(machine.spool.run_dir) / "_system").symlink_to("/etc")
    with pytest.raises(NotADirectoryError):
        machine.start()
    assert [str(member.name.worker) for member in Members(machine.spool).all()] == ["main"]
    worker.leave()
