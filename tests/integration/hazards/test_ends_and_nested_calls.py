"""Hazards of the end of a process, and of calls inside calls.

The rows h01 ... h16 are those of the hazards that were measured in tensorboardX and torch.
"""

from __future__ import annotations

import numpy as np
import pytest
from hazards import PRELUDE, run_file, runs, shown, steps
from programs import succeed
from support import keys

from hf_mpwriter import SummaryWriter


@pytest.mark.parametrize("end", ["os._exit(0)", "writer.close(); os._exit(0)", "sys.exit(0)"])
def test_a_record_of_a_signal_handler_is_kept_although_the_process_ends_in_it(tmp_path, end):
    """A preemption handler logs a last value and ends, wherever it interrupts a training that logs."""
    source = f"""
writer = SummaryWriter(sys.argv[1])
for number in range(15):
    if (pid := os.fork()) == 0:
        def handler(*_):
            writer.add_scalar("last", 1.0, number)
            {end}
        log(writer, 0, 1)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.01 + number * 0.0007)
        step = 0
        while True:
            step += 1
            writer.add_scalar("a", 0.5, step)
    assert code(pid) == 0
"""
    succeed(PRELUDE + source, tmp_path)
    last = [step for path in tmp_path.rglob("*tfevents*") for tag, step in keys(path) if tag == "last"]
    assert sorted(last) == list(range(15))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_writes_at_its_end_what_the_disk_had_refused(tmp_path, method):
    """There is room again, and no later record is logged: the end of the child is the last chance."""
    source = """
import multiprocessing, resource, sys
from hf_mpwriter import SummaryWriter
def work(writer):
    writer.add_scalar("a", 0.5, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
    for step in range(1, 100):
        writer.add_scalar("a", 0.5, step)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if __name__ == "__main__":
    writer = SummaryWriter(sys.argv[1])
    child = multiprocessing.get_context(sys.argv[2]).Process(target=work, args=(writer,), name="child")
    child.start()
    child.join()
    assert child.exitcode == 0
"""
    run_file(tmp_path, source, tmp_path / "run", method)
    assert runs(tmp_path / "run") == {"child": steps(0, 100)}


@pytest.mark.parametrize("behind", [0, 3600], ids=["same_clock", "clock_behind"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_resumed_childs_directory_is_purged_once_in_an_attempt(tmp_path, method, behind):
    """h12: the child of the next epoch does not hide what this attempt has logged.

    This holds also where the clock is an hour behind that of the first attempt.
    """
    source = """
import multiprocessing, sys, time
from hf_mpwriter import SummaryWriter
real = time.time
time.time = lambda: real() - int(sys.argv[3])
def work(writer, first, last):
    for step in range(first, last):
        writer.add_scalar("a", 0.5, step)
if __name__ == "__main__":
    method, (purge, *bounds) = sys.argv[2], map(int, sys.argv[4:])
    writer = SummaryWriter(sys.argv[1], purge_step=purge or None)
    for first, last in zip(bounds, bounds[1:]):
        child = multiprocessing.get_context(method).Process(target=work, args=(writer, first, last), name="Reader")
        child.start()
        child.join()
        assert child.exitcode == 0
"""
    run_file(tmp_path, source, tmp_path / "run", method, 0, 0, 0, 80)
    run_file(tmp_path, source, tmp_path / "run", method, behind, 50, 50, 60, 100)
    assert shown(tmp_path / "run" / "Reader") == list(range(100))


def test_two_open_writers_with_one_purge_step_hide_nothing_of_each_other(tmp_path):
    """Programs construct a writer wherever they log, each with the same arguments."""
    with SummaryWriter(str(tmp_path), purge_step=50) as first:
        for step in range(50, 60):
            first.add_scalar("a", 0.5, step)
        with SummaryWriter(str(tmp_path), purge_step=np.int64(50)) as second:
            second.add_scalar("a", 0.5, 60)
    assert shown(tmp_path) == list(range(50, 61))


def test_a_local_writer_does_not_reset_how_others_are_uploaded(run_dir, monkeypatch):
    """`SummaryWriter(logdir)` is constructed beside the writer that has the destination."""
    from hf_mpwriter import HFSummaryWriter

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with HFSummaryWriter("me/run", logdir=str(run_dir), commit_every=30, exit_timeout=0, memory_limit=1000) as writer:
        writer.scheduler.stop()
        before, limit = writer._worker.membership.settings, writer._worker.files.limits.memory
        with SummaryWriter(str(run_dir)) as plain:
            assert plain._worker is writer._worker
        assert (writer._worker.membership.settings, writer._worker.files.limits.memory) == (before, limit)
        assert limit == 1000
    SummaryWriter(str(run_dir), memory_limit=16 << 20).close()


def test_flushing_on_a_full_disk_fills_neither_memory_nor_member_file(run_dir):
    """Some frameworks flush after every step: the name of the next segment is recorded once."""
    source = """
writer = SummaryWriter(sys.argv[1])
writer._worker.files.directory()
real = os.open
def refuse(path, flags, *rest, **more):
    if flags & os.O_CREAT and "tfevents" in str(path): raise OSError(errno.ENOSPC, "full")
    return real(path, flags, *rest, **more)
os.open = refuse
log(writer, 0, 1)
for _ in range(200): writer.flush()
os.open = real
writer.flush()
(member_file,) = (found for found in os.scandir(sys.argv[1] + "/.hf_mpwriter/members"))
print(member_file.stat().st_size)
"""
    assert int(succeed(PRELUDE + source, run_dir)) < 2000
    assert runs(run_dir) == {".": steps(0, 1)}
