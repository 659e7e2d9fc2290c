"""The hazards of tensorboardX and torch that were measured, one by one: none of them is ours.

h01 ... h16 are the rows of the hazard table that this package was designed against. Every test runs real processes
or a real full disk where the hazard needs one; the writers are used as users use them.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import tensorboardX
from support import DEADLINE, Staged, events, keys, run_python, succeed

from hf_mpwriter import SummaryWriter

START = 1  # SessionLog.START
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
WITH_TORCH = {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}

# Helpers of the programs below. Whoever hangs dies of SIGALRM, and the test fails.
PRELUDE = """
import atexit, errno, multiprocessing, os, resource, shutil, signal, stat, subprocess, sys, threading, time
import numpy as np
from hf_mpwriter import SummaryWriter

signal.alarm(50)

def log(writer, first, last, tag="a"):
    for step in range(first, last):
        writer.add_scalar(tag, 0.5, step)

def named(action, name=None, method="fork"):
    process = multiprocessing.get_context(method).Process(target=action, name=name)
    process.start()
    return process

def good(*processes):
    for process in processes:
        process.join()
        assert process.exitcode == 0, (process.name, process.exitcode)

def forked(action):
    if (pid := os.fork()) == 0:
        signal.alarm(50)
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return pid

def code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def run_file(directory: Path, source: str, *arguments: object, env: dict[str, str] | None = None) -> str:
    """Run a program from a file, as spawn and forkserver want it; its output. It must end well."""
    program = directory / "program.py"
    program.write_text(source)
    return end_well([sys.executable, program, *map(str, arguments)], os.environ | (env or {}))


def end_well(command: list[object], env: dict[str, str] | None = None) -> str:
    """The output of a command that must end well."""
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def event_paths(directory: Path) -> list[Path]:
    """The event files of one directory, in the order in which TensorBoard reads them."""
    return sorted(path for path in directory.iterdir() if "tfevents" in path.name)


def runs(root: Path) -> dict[str, list[tuple[str, int]]]:
    """(tag, step) of all scalars per TensorBoard run below `root`; no file may be torn."""
    found: dict[str, list[tuple[str, int]]] = {}
    for path in sorted(root.rglob("*tfevents*")):
        found.setdefault(str(path.parent.relative_to(root)), []).extend(keys(path))
    return found


def steps(first: int, last: int, tag: str = "a") -> list[tuple[str, int]]:
    """What `log` of a program wrote."""
    return [(tag, step) for step in range(first, last)]


def numbers(directory: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of the scalars of one directory."""
    found = (event for path in event_paths(directory) for event in events(path))
    return [(value.tag, event.step, value.simple_value) for event in found for value in event.summary.value]


def shown(directory: Path, tag: str = "a") -> list[int]:
    """The steps that the readers of TensorBoard's Python library show, which must agree."""
    from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator

    legacy = event_accumulator.EventAccumulator(str(directory)).Reload()
    current = plugin_event_accumulator.EventAccumulator(str(directory)).Reload()
    found = [event.step for event in legacy.Scalars(tag)]
    assert [event.step for event in current.Tensors(tag)] == found
    return found


# h01: many processes start at once

SAME_SECOND = (
    PRELUDE
    + """
def work(barrier, logdir):
    signal.alarm(50)
    time.time = lambda: 1_800_000_000.5
    barrier.wait()
    with SummaryWriter(logdir) as writer:
        log(writer, 0, 100)
        barrier.wait()  # a name is free again when its owner is gone

if __name__ == "__main__":
    method, logdir = sys.argv[1:]
    context = multiprocessing.get_context(method)
    barrier = context.Barrier(5)
    processes = [context.Process(target=work, args=(barrier, logdir), name="work") for _ in range(5)]
    for process in processes: process.start()
    good(*processes)
"""
)


@pytest.mark.parametrize(
    ("method", "exists"), [("fork", False), ("fork", True), ("spawn", False), ("forkserver", False)]
)
def test_processes_of_one_name_that_start_in_the_same_second_each_have_a_whole_file(tmp_path, run_dir, method, exists):
    """h01: nobody dies of a directory that another one makes, and nobody truncates another's file."""
    if exists:
        run_dir.mkdir(parents=True)
    run_file(tmp_path, SAME_SECOND, method, run_dir)
    assert runs(run_dir) == {name: steps(0, 100) for name in ("work", *(f"work~{n}" for n in range(2, 6)))}


# h02, h02b, h03, h04: a writer that was inherited, copied or sent


def test_children_may_log_flush_and_close_what_they_inherited(run_dir):
    """h02: the parent's file has the parent's records, each once; a child's are in its own; nobody blocks."""
    source = """
logdir = sys.argv[1]
writer = SummaryWriter(logdir)
step = 0
def parent():
    global step
    log(writer, step, step + 50)
    step += 50

def flush(): log(writer, 0, 20); writer.flush()
def close(): log(writer, 0, 20); writer.close()
def close_twice(): log(writer, 0, 10); writer.close(); log(writer, 10, 20); writer.close()
def leave():
    with writer: log(writer, 0, 20)
def only_flush(): writer.flush()
def only_close(): writer.close()

parent()
for action in (flush, close, close_twice, leave, only_flush, only_close):
    process = named(action, action.__name__)
    parent()
    good(process)
    parent()
    pid = forked(action)
    parent()
    assert code(pid) == 0
    parent()
if (pid := os.fork()) == 0:
    signal.alarm(50)
    log(writer, 0, 20, "b")
    sys.exit(0)  # runs the hooks that were registered in the parent
assert code(pid) == 0
parent()
print(step)
"""
    total = int(succeed(PRELUDE + source, run_dir))
    found = runs(run_dir)
    assert found.pop(".") == steps(0, total)
    assert found.pop("proc_00001") == steps(0, 20) * 4 + steps(0, 20, "b")
    assert found == {name: steps(0, 20) for name in ("flush", "close", "close_twice", "leave")}


def test_a_fork_while_another_thread_is_in_the_middle_of_a_call_leaves_the_child_free(run_dir):
    """h03: the thread that holds the locks does not exist in the child; it logs, flushes, closes and ends."""
    source = """
inside, go_on = threading.Event(), threading.Event()
write = os.write
def slow(fd, data):
    if threading.current_thread().name == "slow" and not go_on.is_set():
        inside.set()
        go_on.wait()
    return write(fd, data)
os.write = slow
writer = SummaryWriter(sys.argv[1])
log(writer, 0, 1)
thread = threading.Thread(target=log, args=(writer, 1, 2), name="slow")
thread.start()
inside.wait()
def child():
    log(writer, 0, 5)
    writer.add_scalars("b", {"c": 1.0}, 1)
    writer.flush()
    writer.close()
codes = [code(forked(child)), code(forked(lambda: log(writer, 5, 6)))]
process = named(child, "child")
good(process)
go_on.set()
thread.join()
assert codes == [0, 0], codes
"""
    succeed(PRELUDE + source, run_dir)
    assert runs(run_dir) == {
        ".": steps(0, 2),
        "proc_00001": steps(0, 6),
        "proc_00001/b/c": [("b", 1)],
        "child": steps(0, 5),
        "child/b/c": [("b", 1)],
    }


def test_children_forked_at_random_moments_of_threads_that_log_never_hang(run_dir):
    """h03: threads log scalars, histograms and sub-runs all the time; every child logs, closes and ends."""
    source = """
sys.setswitchinterval(1e-4)
writer = SummaryWriter(sys.argv[1])
over, counts = threading.Event(), {}
def work(number):
    step = 0
    while not over.is_set():
        writer.add_scalar(f"t{number}", 0.5, step)
        writer.add_scalars(f"s{step % 7}", {f"t{number}": 1.0}, step)
        writer.add_histogram("h", np.arange(5.0), step)
        writer.flush() if step % 50 == 0 else None
        step += 1
    counts[number] = step
threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
for thread in threads: thread.start()
def child():
    log(writer, 0, 3)
    writer.flush()
    writer.close()
try:
    codes = [code(forked(child)) for _ in range(25)]
finally:
    over.set()
for thread in threads: thread.join()
assert codes == [0] * 25, codes
print(counts[0], counts[1], counts[2])
"""
    counts = [int(word) for word in succeed(PRELUDE + source, run_dir).split()]
    found = runs(run_dir)
    assert found["proc_00001"] == steps(0, 3) * 25
    for number, count in enumerate(counts):
        assert [key for key in found["."] if key[0] == f"t{number}"] == steps(0, count, f"t{number}")


def test_a_writer_is_pickled_copied_and_given_to_children_of_every_method(tmp_path, run_dir):
    """h04: pickle and deepcopy share the process's file, spawn and forkserver children open their own."""
    source = """
import copy, pickle
def work(writer):
    signal.alarm(50)
    log(writer, 0, 10)

if __name__ == "__main__":
    writer = SummaryWriter(sys.argv[1])
    log(writer, 0, 1)
    with copy.deepcopy(writer) as other: log(other, 1, 2)
    with pickle.loads(pickle.dumps(writer)) as other: log(other, 2, 3)
    processes = []
    for method in ("fork", "spawn", "forkserver"):
        processes.append(multiprocessing.get_context(method).Process(target=work, args=(writer,), name=method))
        processes[-1].start()
    good(*processes)
    log(writer, 3, 4)
"""
    run_file(tmp_path, PRELUDE + source, run_dir)
    assert runs(run_dir) == {
        ".": steps(0, 4),
        "fork": steps(0, 10),
        "spawn": steps(0, 10),
        "forkserver": steps(0, 10),
    }


# h05, h06, h07: what is on disk, and when


@pytest.mark.parametrize("count", [5, 100, 1000])
def test_everything_is_in_the_file_after_each_call_and_after_flush(tmp_path, count):
    """h05: nothing waits in a queue of ours; flush adds durability, not data."""
    writer = SummaryWriter(str(tmp_path))
    for step in range(count):
        writer.add_scalar("a", 0.5, step)
    assert runs(tmp_path) == {".": steps(0, count)}
    writer.add_text("text", "hello", count)
    writer.flush()
    assert runs(tmp_path) == {".": [*steps(0, count), ("text/text_summary", count)]}
    writer.close()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGABRT"])
def test_a_deadly_signal_right_after_the_last_call_loses_nothing(run_dir, name):
    """h06: every record whose call returned is there, in whole records, in the sub-runs too."""
    source = """
writer = SummaryWriter(sys.argv[1])
log(writer, 0, 1000)
writer.add_image("image", np.zeros((3, 64, 64), dtype=np.uint8), 1)
writer.add_scalars("sub", {"run": 1.0}, 7)
os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""
    assert run_python(PRELUDE + source, run_dir, name).returncode == -signal.Signals[name]
    assert runs(run_dir) == {".": [*steps(0, 1000), ("image", 1)], "sub/run": [("sub", 7)]}


@pytest.mark.parametrize(
    ("end", "code"),
    [("pass", 0), ("sys.exit(3)", 3), ("raise ValueError", 1), ("os._exit(4)", 4), ("del writer", 0)],
)
def test_no_end_of_a_program_loses_a_record_of_a_writer_that_was_never_closed(run_dir, end, code):
    """h07: return, exit, exception, hard exit, a writer that nobody holds any more."""
    source = f"""
writer = SummaryWriter(sys.argv[1])
log(writer, 0, 507)
{end}
"""
    assert run_python(PRELUDE + source, run_dir).returncode == code
    assert runs(run_dir) == {".": steps(0, 507)}


def test_no_end_of_a_child_loses_a_record(tmp_path, run_dir):
    """h07: every method of multiprocessing with every kind of end, terminate() included; no close anywhere."""
    source = """
def work(logdir, end, told):
    signal.alarm(50)
    writer = SummaryWriter(logdir)
    log(writer, 0, 507)
    if end == "exit": sys.exit(0)
    if end == "raise": raise ValueError
    if end == "hard": os._exit(0)
    if end == "terminate":
        told.set()
        signal.pause()

if __name__ == "__main__":
    processes = []
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        for end in ("return", "exit", "raise", "hard", "terminate"):
            told = context.Event()
            process = context.Process(target=work, args=(sys.argv[1], end, told), name=f"{method}_{end}")
            process.daemon = end == "terminate"
            process.start()
            processes.append((process, told))
    for process, told in processes:
        if process.daemon:
            assert told.wait(50)
            process.terminate()
    for process, _ in processes:
        process.join()
        expected = -signal.SIGTERM if process.daemon else int(process.name.endswith("raise"))
        assert process.exitcode == expected, (process.name, process.exitcode)
"""
    run_file(tmp_path, PRELUDE + source, run_dir)
    ends = ("return", "exit", "raise", "hard", "terminate")
    assert runs(run_dir) == {
        f"{method}_{end}": steps(0, 507) for method in ("fork", "spawn", "forkserver") for end in ends
    }


def test_what_hooks_and_threads_log_while_the_interpreter_ends_is_kept(run_dir):
    """h07: hooks that run before and after ours, a thread that is waited for; one that is not disturbs nothing."""
    source = """
def late(): log(writer, 300, 310)
atexit.register(late)  # registered first, so it runs last: after the package's own hook
writer = SummaryWriter(sys.argv[1])
def early(): log(writer, 200, 210)
atexit.register(early)
log(writer, 0, 100)
def waited_for():
    main.join()
    log(writer, 100, 110)
main = threading.main_thread()
threading.Thread(target=waited_for).start()
noise = SummaryWriter(sys.argv[2])
def never_ends():
    for step in range(10**9): noise.add_scalar("noise", 1.0, step)
threading.Thread(target=never_ends, daemon=True).start()
"""
    noise = run_dir.with_name("noise")
    result = run_python(PRELUDE + source, run_dir, noise)
    assert (result.returncode, result.stderr) == (0, "")
    assert runs(run_dir) == {".": [*steps(0, 110), *steps(200, 210), *steps(300, 310)]}
    for found in runs(noise).values():
        assert [step for _, step in found] == list(range(len(found)))


LOADERS = (
    PRELUDE
    + """
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

class Logged(Dataset):
    def __init__(self, writer): self.writer = writer
    def __len__(self): return 40
    def __getitem__(self, index):
        self.writer.add_scalar("read", get_worker_info().id, index)
        return index

def read(run, method, how):
    writer = SummaryWriter(run)
    log(writer, 0, 1)
    persistent = how == "persistent"
    loader = DataLoader(Logged(writer), num_workers=2, multiprocessing_context=method, persistent_workers=persistent)
    for epoch in range(2):
        for index in loader:
            if how == "break" and index >= 9: break
    log(writer, 1, 2)

if __name__ == "__main__":
    for how in sys.argv[3:]: read(f"{sys.argv[1]}/{how}", sys.argv[2], how)
"""
)


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize(
    ("method", "hows"),
    [("fork", ["exhausted", "persistent", "break"]), ("spawn", ["persistent"])],
    ids=["fork", "spawn"],
)
def test_workers_of_a_data_loader_lose_nothing_however_they_end(tmp_path, method, hows):
    """h07: all that was read is logged, once per epoch, in one directory per worker id; epochs make no new ones."""
    run_file(tmp_path, LOADERS, tmp_path / "runs", method, *hows, env=WITH_TORCH)
    for how in hows:
        found = runs(tmp_path / "runs" / how)
        assert found.pop(".") == steps(0, 2)
        assert set(found) == {"DataLoader-0", "DataLoader-1"}
        for worker in range(2):
            values = {value for _, _, value in numbers(tmp_path / "runs" / how / f"DataLoader-{worker}")}
            assert values == {worker}, "each worker has a directory of its own"
        logged = sorted(step for read in found.values() for _, step in read)
        if how == "break":  # workers read ahead, and are stopped somewhere
            assert {step: min(logged.count(step), 2) for step in range(10)} == dict.fromkeys(range(10), 2)
        else:
            assert logged == sorted([*range(40)] * 2)


def test_threads_and_a_signal_handler_log_through_one_writer_and_lose_nothing(run_dir):
    """Four threads and a timer, scalars, sub-runs, histograms and flush: each record once, each thread in order."""
    source = """
sys.setswitchinterval(1e-5)
writer, second = SummaryWriter(sys.argv[1]), SummaryWriter(sys.argv[1])
logged = 0
def handler(*_):
    global logged
    writer.add_scalar("signal", 1.0, logged)
    second.add_scalars("by", {"signal": 1.0}, logged)
    logged += 1
    if logged < 200: signal.setitimer(signal.ITIMER_REAL, 0.0003)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0003)
def work(number):
    for step in range(300):
        writer.add_scalar(f"t{number}", 1.0, step)
        second.add_scalars("by", {f"t{number}": 1.0}, step)
        if step % 10 == 0: writer.add_histogram(f"h{number}", np.arange(3.0), step)
        if step % 100 == 0: second.flush()
threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
for thread in threads: thread.start()
work(3)
for thread in threads: thread.join()
step = 300
while logged < 200:
    writer.add_scalar("t3", 1.0, step)
    step += 1
print(step)
"""
    last = int(succeed(PRELUDE + source, run_dir))
    found = runs(run_dir)
    assert [key for key in found["."] if key[0] == "signal"] == steps(0, 200, "signal")
    assert found["by/signal"] == steps(0, 200, "by")
    for number in range(4):
        mine = steps(0, last if number == 3 else 300, f"t{number}")
        assert [key for key in found["."] if key[0] == f"t{number}"] == mine
        assert found[f"by/t{number}"] == steps(0, 300, "by")
        assert [key for key in found["."] if key[0] == f"h{number}"] == [(f"h{number}", n) for n in range(0, 300, 10)]


def test_a_signal_handler_that_logs_while_the_first_event_opens_the_file_loses_nothing(tmp_path):
    """The timer strikes while a worker joins and opens: one worker directory, every record once."""
    source = """
current = None
logged = 0
def handler(*_):
    global logged
    if current is not None:
        current.add_scalar("signal", 1.0, logged)
        logged += 1
    signal.setitimer(signal.ITIMER_REAL, 0.0001)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0001)
counts = []
for number in range(25):
    logged = 0
    current = writer = SummaryWriter(f"{sys.argv[1]}/{number}")
    log(writer, 0, 20)
    current = None
    writer.close()
    counts.append(logged)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
print(*counts)
"""
    counts = [int(word) for word in succeed(PRELUDE + source, tmp_path).split()]
    assert sum(counts) > 25
    for number, count in enumerate(counts):
        (found,) = runs(tmp_path / str(number)).values()
        assert sorted(found) == sorted([*steps(0, 20), *steps(0, count, "signal")])


# h08, h14: a disk that refuses


@pytest.fixture(scope="session")
def mounts(tmp_path_factory) -> None:
    """Leave to mount file systems that nobody else sees; skips where there is none."""
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("only root may mount, and with `unshare`")
    place = tmp_path_factory.mktemp("probe")
    probe = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "probe", str(place)], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        pytest.skip(f"this container may not mount: {probe.stderr.strip()}")


def on_small_disk(tmp_path: Path, source: str, *arguments: object) -> str:
    """Run a program that has a disk of one megabyte for itself; `tmp_path / "copy"` shows what was on it at the end."""
    (tmp_path / "disk").mkdir()
    script = """
mount -t tmpfs -o size=1m small "$1" || exit 99
disk=$1 copy=$2; shift 2
"$@"
code=$?
mkdir "$copy" && cp -r "$disk"/run* "$copy"
exit $code
"""
    command = [sys.executable, "-c", source, str(tmp_path / "disk"), *map(str, arguments)]
    return end_well(["unshare", "--mount", "sh", "-c", script, "sh", tmp_path / "disk", tmp_path / "copy", *command])


# full() leaves no room, room() makes it again. The limit of the file size is a full disk without a mount.
FULL = (
    PRELUDE
    + """
place, kind = sys.argv[1:3]
def full():
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        return
    with open(f"{place}/filler", "wb", buffering=0) as file:
        try:
            while True: file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
def room():
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        os.unlink(f"{place}/filler")
image = np.random.default_rng(1).integers(0, 255, (3, 160, 160), dtype=np.uint8)  # above a pipe's 64 KiB
"""
)
FULL_DISKS = [
    "limit",
    pytest.param("tmpfs", marks=pytest.mark.root),
]


def on_full_disk(request, tmp_path: Path, kind: str, source: str) -> tuple[Path, str]:
    """Run a program on a disk that it can fill; where its run is afterwards, and its output."""
    if kind == "limit":
        return tmp_path / "run", succeed(FULL + source, tmp_path, kind)
    request.getfixturevalue("mounts")
    return tmp_path / "copy" / "run", on_small_disk(tmp_path, FULL + source, kind)


@pytest.mark.parametrize("kind", FULL_DISKS)
def test_a_full_disk_delays_records_until_there_is_room(request, tmp_path, kind):
    """h08: no call raises or blocks; what did not fit is written, in order, by later calls alone."""
    source = """
writer = SummaryWriter(f"{place}/run")
log(writer, 0, 50)
full()
log(writer, 50, 1000)
writer.add_image("image", image, 1)
writer.add_scalars("sub", {"run": 1.0}, 2)
size = os.path.getsize(writer.file_writer.event_writer.file.path)
room()
step = 1000
while os.path.getsize(writer.file_writer.event_writer.file.path) < size + 60_000:
    log(writer, step, step + 1)
    step += 1
    time.sleep(0.02)
log(writer, step, step + 50)
writer.close()
print(step + 50, writer.dropped)
"""
    run, out = on_full_disk(request, tmp_path, kind, source)
    last, dropped = map(int, out.split())
    assert dropped == 0
    assert runs(run) == {".": [*steps(0, 1000), ("image", 1), *steps(1000, last)], "sub/run": [("sub", 2)]}


@pytest.mark.parametrize("end", ["close", "never closed", "hard"])
@pytest.mark.parametrize("kind", FULL_DISKS)
def test_a_disk_that_stays_full_costs_records_but_not_the_program(request, tmp_path, kind, end):
    """h08, h14: the program ends at once and well; what is there is whole, without a gap; the rest is counted."""
    source = f"""
writer = SummaryWriter(f"{{place}}/run")
log(writer, 0, 50)
full()
log(writer, 50, 3000)
writer.add_image("image", image, 1)
writer.flush()
if {end!r} == "close":
    writer.close()
    print(writer.dropped)
if {end!r} == "hard": os._exit(0)
"""
    run, out = on_full_disk(request, tmp_path, kind, source)
    (found,) = runs(run).values()
    assert found == [*steps(0, 3000), ("image", 1)][: len(found)]
    assert 50 <= len(found) < 3000
    if end == "close":
        assert int(out) == 3001 - len(found)


@pytest.mark.root
def test_a_start_on_a_full_disk_trains_and_the_next_one_goes_on(mounts, tmp_path):
    """h08: a requeued job finds its disk full: it logs nothing, counts it and ends well; nothing is damaged."""
    source = """
start = '''
import sys
from hf_mpwriter import SummaryWriter
writer = SummaryWriter(sys.argv[1])
for step in range(int(sys.argv[2]), int(sys.argv[3])):
    writer.add_scalar("a", 0.5, step)
writer.flush()
writer.close()
print(writer.dropped)
'''
def attempt(first, last):
    arguments = [sys.executable, "-c", start, f"{place}/run", str(first), str(last)]
    return int(subprocess.run(arguments, check=True, stdout=subprocess.PIPE, timeout=40).stdout)
assert attempt(0, 50) == 0
full()
assert attempt(50, 100) == 50
room()
assert attempt(100, 150) == 0
"""
    on_small_disk(tmp_path, FULL + source, "tmpfs")
    assert runs(tmp_path / "copy" / "run") == {".": [*steps(0, 50), *steps(100, 150)]}


@pytest.mark.root
@pytest.mark.parametrize("when", ["first event", "after close", "first event of a sub-run"])
def test_a_directory_that_is_read_only_for_a_while_costs_nothing(mounts, tmp_path, when):
    """h08: EROFS where a file has to be made: no call raises, and all is written once the directory takes it."""
    source = f"""
when = {when!r}
place = sys.argv[1]
run = f"{{place}}/run"
writer = SummaryWriter(run)
if when != "first event": log(writer, 0, 10)
if when == "after close": writer.close()
mount = lambda *arguments: subprocess.run(["mount", *arguments], check=True)
mount("--bind", run, run)
mount("-o", "remount,bind,ro", run)
try:
    open(f"{{run}}/probe", "w")
except OSError as error:
    assert error.errno == errno.EROFS
log(writer, 10, 60)
writer.add_scalars("sub", {{"run": 1.0}}, 1)
writer.add_text("text", "hello", 2)
writer.flush()
subprocess.run(["umount", "--lazy", run], check=True)
log(writer, 60, 61)
writer.flush()
writer.close()
assert writer.dropped == 0, writer.dropped
"""
    on_small_disk(tmp_path, PRELUDE + source)
    first = 10 if when == "first event" else 0
    assert runs(tmp_path / "copy" / "run") == {
        ".": [*steps(first, 60), ("text/text_summary", 2), *steps(60, 61)],
        "sub/run": [("sub", 1)],
    }


def test_no_error_of_the_disk_is_raised_into_training(tmp_path):
    """h08: quota, read-only, I/O error, stale NFS handle, full: refused writes are written later, in order."""
    source = """
refuse, write = 0, os.write
def refusing(fd, data):
    if refuse and stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(refuse, os.strerror(refuse))
    return write(fd, data)
os.write = refusing
for number in (errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.ENODEV):
    writer = SummaryWriter(f"{sys.argv[1]}/{errno.errorcode[number]}")
    log(writer, 0, 10)
    refuse = number
    log(writer, 10, 60)
    writer.add_scalars("sub", {"run": 1.0}, 1)
    writer.flush()
    refuse = 0
    writer.flush()
    log(writer, 60, 70)
    writer.close()
    assert writer.dropped == 0
"""
    succeed(PRELUDE + source, tmp_path)
    found = runs(tmp_path)
    assert len(found) == 12
    for run, written in found.items():
        assert written == ([("sub", 1)] if run.endswith("sub/run") else steps(0, 70)), run


@pytest.mark.parametrize("when", ["first event", "after close"])
def test_a_process_without_a_free_descriptor_logs_later(run_dir, when):
    """h08: EMFILE where a file has to be opened: no call raises, and all is written once a descriptor is free."""
    source = f"""
writer = SummaryWriter(sys.argv[1])
if {when!r} == "after close":
    log(writer, 0, 10)
    writer.close()
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
taken = []
try:
    while True: taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    assert error.errno == errno.EMFILE
log(writer, 10, 60)
writer.add_scalars("sub", {{"run": 1.0}}, 1)
writer.flush()
for fd in taken: os.close(fd)
writer.flush()
log(writer, 60, 61)
writer.close()
assert writer.dropped == 0
"""
    succeed(PRELUDE + source, run_dir)
    first = 10 if when == "first event" else 0
    assert runs(run_dir) == {".": steps(first, 61), "sub/run": [("sub", 1)]}


def test_three_hundred_sub_runs_under_a_limit_of_two_hundred_descriptors_lose_nothing(run_dir):
    """h09: descriptors are bounded by us, not by the system's refusal; each sub-run is whole and in order."""
    source = """
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
writer = SummaryWriter(sys.argv[1])
for step in range(3):
    writer.add_scalars("loss", {f"t{number}": 1.0 for number in range(300)}, step)
    os.close(os.open("/dev/null", os.O_RDONLY))  # the program's own files can be opened, too
writer.close()
assert writer.dropped == 0, writer.dropped
"""
    succeed(PRELUDE + source, run_dir)
    assert runs(run_dir) == {f"loss/t{number}": steps(0, 3, "loss") for number in range(300)}


@pytest.mark.parametrize("what", ["logdir", "event file"])
def test_what_is_logged_after_the_files_were_removed_is_in_a_new_file(run_dir, what):
    """Somebody cleans up under a running job: records of later calls are on disk at the end, in the same place."""
    source = f"""
writer = SummaryWriter(sys.argv[1])
log(writer, 0, 10)
if {what!r} == "logdir": shutil.rmtree(sys.argv[1])
if {what!r} == "event file": os.unlink(writer.file_writer.event_writer.file.path)
log(writer, 10, 20)
writer.add_scalars("sub", {{"run": 1.0}}, 1)
"""
    succeed(PRELUDE + source, run_dir)
    found = runs(run_dir)
    assert found["sub/run"] == [("sub", 1)]
    again = len(found["."])  # what was logged since the last look is written again
    assert again >= 10
    assert found["."] == steps(20 - again, 20)


def test_a_logdir_that_is_moved_under_the_writer_loses_nothing(run_dir):
    """Its files go along; each record is in the old place or in the new one, once."""
    source = """
writer = SummaryWriter(sys.argv[1])
log(writer, 0, 10)
os.rename(sys.argv[1], sys.argv[1] + ".old")
log(writer, 10, 20)
writer.flush()
log(writer, 20, 30)
"""
    succeed(PRELUDE + source, run_dir)
    found = runs(run_dir.parent)
    assert set(found) <= {"exp1", "exp1.old"}
    assert found["exp1.old"] + found.get("exp1", []) == steps(0, 30)


def test_the_memory_limit_is_one_for_all_files_of_a_process(run_dir):
    """While the disk refuses, all sub-runs together keep at most `memory_limit` bytes; the rest is counted."""
    source = """
writer = SummaryWriter(sys.argv[1], memory_limit=50_000)
log(writer, 0, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
for step in range(400):
    writer.add_scalars("loss", {f"t{number}": 1.0 for number in range(20)}, step)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.flush()
writer.close()
print(writer.dropped)
"""
    dropped = int(succeed(PRELUDE + source, run_dir))
    assert sum(len(found) for run, found in runs(run_dir).items() if run != ".") == 20 * 400 - dropped
    kept = sum(path.stat().st_size for path in (run_dir / "loss").rglob("*tfevents*"))
    assert 50_000 / 4 < kept < 50_000 + 20 * 100  # each file has a beginning of its own


# h09, h10, h11, h12, h16: what single calls do


def test_fifty_tags_of_add_scalars_start_no_thread(tmp_path):
    """h09: one directory and one file per tag, as many threads as before, one descriptor per file at most."""
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            writer.add_scalars("loss", {f"t{number}": 1.0 for number in range(50)}, step)
        assert threading.active_count() == threads
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 50 + 10
    assert runs(tmp_path) == {f"loss/t{number}": steps(0, 3, "loss") for number in range(50)}
    assert len(list(tmp_path.rglob("*tfevents*"))) == 50


def test_sub_runs_have_the_directories_that_tensorboardx_gives_them(tmp_path):
    """h09: the same calls leave the same runs with the same records, whatever the tags look like."""
    for kind, name in ((SummaryWriter, "ours"), (tensorboardX.SummaryWriter, "theirs")):
        with kind(str(tmp_path / name)) as writer:
            for main_tag in ("loss", "train/loss", "with space", "ünïcode", "trailing/"):
                writer.add_scalars(main_tag, {"train": 1.0, "a/b": 2.0, "c d": 3.0, "é": 4.0}, 7)
            writer.add_hparams({"lr": 0.1}, {"accuracy": 0.5}, name="trial/1", global_step=3)
    theirs = runs(tmp_path / "theirs")
    assert theirs.pop(".") == []  # tensorboardX makes its main file even if nothing is logged into it
    assert runs(tmp_path / "ours") == theirs


def test_no_tag_leads_out_of_the_run_directory(tmp_path):
    """A tag that begins with a slash or climbs names a sub-run like any other."""
    with SummaryWriter(str(tmp_path / "deep" / "run")) as writer:
        writer.add_scalars(str(tmp_path / "absolute"), {"a": 1.0}, 1)
        writer.add_scalars("loss", {str(tmp_path / "tag"): 1.0, "../../../up": 2.0}, 1)
        writer.add_hparams({"lr": 0.1}, {"accuracy": 0.5}, name=str(tmp_path / "trial"))
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run"]
    assert len(runs(tmp_path / "deep" / "run")) == 4


def test_the_checksum_of_a_large_record_is_not_computed_in_python(tmp_path):
    """h10: 16 MiB take a fraction of the 2.4 seconds that the pure Python checksum takes on a fast machine."""
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_text("small", "x", 1)
        text = "x" * (16 << 20)
        before = time.process_time()
        writer.add_text("large", text, 1)
        assert time.process_time() - before < 1.2
    assert runs(tmp_path) == {".": [("small/text_summary", 1), ("large/text_summary", 1)]}


def test_close_and_log_again_in_the_same_second_keeps_everything(tmp_path, monkeypatch):
    """h11: with a clock that stands still, after close, hparams, reopen and a second writer: new files, all whole."""
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    writer = SummaryWriter(str(tmp_path))
    threads = threading.active_count()
    for step in range(0, 40, 10):
        for n in range(step, step + 10):
            writer.add_scalar("a", 0.5, n)
        writer.close()
    writer.add_hparams({"lr": 0.1}, {"accuracy": 0.5}, name="trial")
    writer.close()
    writer.add_scalars("sub", {"run": 1.0}, 1)
    writer.add_scalar("a", 0.5, 40)
    writer.file_writer.close()
    writer.file_writer.reopen()
    writer.add_scalar("a", 0.5, 41)
    writer.close()
    with SummaryWriter(str(tmp_path)) as second:
        second.add_scalar("a", 0.5, 42)
    found = runs(tmp_path)
    assert found.pop("trial")[-1] == ("accuracy", 0)
    assert found == {".": steps(0, 43), "sub/run": [("sub", 1)]}
    assert threading.active_count() == threads


def test_closing_and_logging_again_purges_nothing_twice(tmp_path):
    """h12: both of TensorBoard's Python readers show each step once, in the sub-runs too."""
    attempts = [(None, [(0, 80)]), (50, [(50, 60), (60, 70), (70, 100)])]
    for purge_step, parts in attempts:
        writer = SummaryWriter(str(tmp_path), purge_step=purge_step)
        for first, last in parts:
            for step in range(first, last):
                writer.add_scalar("a", 0.5, step)
                writer.add_scalars("sub", {"run": 1.0}, step)
            writer.close()
    assert shown(tmp_path) == list(range(100))
    assert shown(tmp_path / "sub" / "run", "sub") == list(range(100))


def test_a_resumed_childs_directory_is_purged_once_in_an_attempt(run_dir):
    """h12: purge_step counts for forked children's directories, and only for the first child in one of them."""
    source = """
purge, first, middle, last = (int(word) for word in sys.argv[2:])
writer = SummaryWriter(sys.argv[1], purge_step=purge or None)
log(writer, first, last)
good(named(lambda: log(writer, first, middle), "Reader-1"))
good(named(lambda: log(writer, middle, last), "Reader-1"))  # the next epoch
"""
    succeed(PRELUDE + source, run_dir, 0, 0, 40, 80)
    succeed(PRELUDE + source, run_dir, 50, 50, 60, 100)
    assert shown(run_dir) == list(range(100))
    assert shown(run_dir / "Reader-1") == list(range(100))


def test_a_smaller_world_purges_the_ranks_that_are_gone_and_no_living_one(run_dir):
    """On resume rank 0 hides what ranks beyond WORLD_SIZE logged at purge_step and later, unless they live."""

    def rank(number: int, world: int, purge_step: int | None, first: int, last: int):
        os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world)}
        with SummaryWriter(str(run_dir), purge_step=purge_step) as writer:
            for step in range(first, last):
                writer.add_scalar("a", 0.5, step)
            yield

    old = [Staged(rank(number, 4, None, 0, 80)) for number in range(4)]
    assert [old[number].finish() for number in range(3)] == [0] * 3
    new = [Staged(rank(number, 2, 50, 50, 100)) for number in range(2)]
    assert [child.finish() for child in new] == [0, 0]
    assert shown(run_dir) == shown(run_dir / "rank_00001") == list(range(100))
    assert shown(run_dir / "rank_00003") == list(range(80)), "rank 3 of the crashed launcher lives"
    assert len(event_paths(run_dir / "rank_00003")) == 1
    assert old[3].finish() == 0
    assert shown(run_dir / "rank_00002") == list(range(50))


def test_embeddings_of_four_processes_do_not_overwrite_each_other(run_dir):
    """h16: each in its own worker directory, with a projector configuration of its own."""
    source = """
def work(rank):
    os.environ["RANK"] = str(rank)
    writer = SummaryWriter(sys.argv[1])
    writer.add_embedding(np.full((3, 2), float(rank)), metadata=[f"{rank}{n}" for n in range(3)], global_step=1)
    writer.close()
assert [code(pid) for pid in [forked(lambda rank=rank: work(rank)) for rank in range(4)]] == [0] * 4
"""
    succeed(PRELUDE + source, run_dir)
    for rank, name in enumerate([".", "rank_00001", "rank_00002", "rank_00003"]):
        assert (run_dir / name / "projector_config.pbtxt").read_text().count("embeddings {") == 1
        (tensors,) = (run_dir / name / "00001").rglob("tensors.tsv")
        (metadata,) = (run_dir / name / "00001").rglob("metadata.tsv")
        assert tensors.read_text() == f"{float(rank)}\t{float(rank)}\n" * 3
        assert metadata.read_text() == "".join(f"{rank}{n}\n" for n in range(3))


# types, memory, log lines


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("0.25"), 0.25),
        ("0.5", 0.5),
        (10**30, np.float32(1e30)),
        (-(10**30), np.float32(-1e30)),
        ([1.5], 1.5),
        (np.float16(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.bool_(True), 1.0),
    ],
    ids=repr,
)
def test_every_number_can_be_logged(tmp_path, value, expected):
    """What torch or tensorboardX takes for a number is one here, in the sub-runs too."""
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("a", value, 1)
        writer.add_scalars("b", {"c": value}, 1)
    assert numbers(tmp_path) == [("a", 1, expected)]
    assert numbers(tmp_path / "b" / "c") == [("b", 1, expected)]


@pytest.mark.parametrize(
    ("step", "expected"), [("5", 5), (1.7, 1), (np.float32(3), 3), (True, 1), (2**63 - 1, 2**63 - 1)]
)
def test_every_step_that_is_a_number_can_be_used(tmp_path, step, expected):
    """As in tensorboardX: what int() makes of it."""
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("a", 1.0, step)
        writer.add_text("b", "hello", step)
    assert runs(tmp_path) == {".": [("a", expected), ("b/text_summary", expected)]}


def test_a_step_of_more_than_63_bits_is_refused_and_hurts_nothing(tmp_path):
    """ValueError as in tensorboardX and torch; the file is whole and takes the next record."""
    with SummaryWriter(str(tmp_path)) as writer:
        with pytest.raises(ValueError, match=r"."):
            writer.add_scalar("a", 1.0, 2**63)
        with pytest.raises(ValueError, match=r"."):
            writer.add_scalars("sub", {"run": 1.0}, 2**63)
        writer.add_scalar("a", 1.0, 1)
    assert runs(tmp_path)["."] == [("a", 1)]


@pytest.mark.torch
@needs_torch
def test_tensors_of_every_type_can_be_logged(tmp_path):
    """bf16 as in torch, and float8, half, bool, with a gradient; scalars, sub-runs and histograms."""
    source = """
import torch
writer = SummaryWriter(sys.argv[1])
kinds = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.int8, torch.bool)
for step, kind in enumerate(kinds):
    for tensor in (torch.tensor(1, dtype=kind), torch.ones(1, dtype=kind)):
        writer.add_scalar("a", tensor, step)
    writer.add_scalars("b", {"c": torch.tensor(1, dtype=kind)}, step)
    if kind is not torch.bool: writer.add_histogram("h", torch.ones(4).to(kind), step)
writer.add_scalar("a", torch.ones((), requires_grad=True) * 1, 7)
writer.add_scalar("a", torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16)), 7)
writer.add_tensor("t", torch.ones(2, 3, dtype=torch.bfloat16), 7)
writer.close()
"""
    succeed(PRELUDE + source, tmp_path, env=WITH_TORCH)
    found = numbers(tmp_path)
    assert [(step, value) for tag, step, value in found if tag == "a"] == [(n // 2, 1.0) for n in range(16)]
    assert [step for tag, step, _ in found if tag == "h"] == list(range(6))
    assert [step for tag, step, _ in found if tag == "t"] == [7]
    assert numbers(tmp_path / "b" / "c") == [("b", step, 1.0) for step in range(7)]


def test_add_tensor_keeps_the_tensor(tmp_path):
    """Torch's add_tensor: TensorBoard's own reader gives the array back."""
    from tensorboard.backend.event_processing import plugin_event_accumulator
    from tensorboard.util import tensor_util

    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_tensor("t", array, 3)
        writer.add_tensor("t", array + 1, global_step=4, walltime=5.0)
    found = plugin_event_accumulator.EventAccumulator(str(tmp_path)).Reload().Tensors("t")
    assert [event.step for event in found] == [3, 4]
    assert found[1].wall_time == 5.0
    np.testing.assert_array_equal(tensor_util.make_ndarray(found[0].tensor_proto), array)
    np.testing.assert_array_equal(tensor_util.make_ndarray(found[1].tensor_proto), array + 1)


def test_add_scalars_does_not_keep_what_it_has_written(tmp_path):
    """scalar_dict: 8000 values add nothing to the memory of the process."""
    with SummaryWriter(str(tmp_path)) as writer:

        def log(first: int, last: int) -> None:
            for step in range(first, last):
                writer.add_scalar("a", 0.5, step)
                writer.add_scalars("b", {"c": 1.0, "d": 2.0, "e": 3.0}, step)

        log(0, 200)
        tracemalloc.start()
        try:
            log(200, 400)
            before = tracemalloc.get_traced_memory()[0]
            log(400, 2400)
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert grown < 200_000  # tensorboardX: above a megabyte


def test_exported_scalars_are_those_of_tensorboardx(tmp_path):
    """export_scalars_to_json: the same names below the logdir, the same points, to the precision of a float32."""
    exported = {}
    for kind, name in ((SummaryWriter, "ours"), (tensorboardX.SummaryWriter, "theirs")):
        with kind(str(tmp_path / name)) as writer:
            for step in range(20):
                writer.add_scalars("loss", {"train": step / 3, "a/b": -step}, step, walltime=1e9 + step)
            writer.export_scalars_to_json(str(tmp_path / f"{name}.json"))
        content = json.loads((tmp_path / f"{name}.json").read_text())
        exported[name] = {os.path.relpath(key, tmp_path / name): points for key, points in content.items()}
    assert set(exported["ours"]) == set(exported["theirs"]) == {"loss/train", "loss/a/b"}
    for key, points in exported["theirs"].items():
        assert exported["ours"][key] == [[when, step, pytest.approx(value, rel=1e-6)] for when, step, value in points]


def test_nan_and_infinity_do_not_fill_the_log(tmp_path, caplog):
    """A diverged training logs NaN at every step: it is in the file, and not told at every call."""
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(50):
            writer.add_scalar("a", math.nan, step)
            writer.add_scalar("a", np.array([math.inf]), step)
            writer.add_scalar("a", math.inf, step, display_name="title")
            writer.add_scalars("b", {"c": -math.inf}, step)
    assert len(caplog.records) <= 4, f"{len(caplog.records)} lines of 200 calls"
    assert [str(value) for _, _, value in numbers(tmp_path)[:2]] == ["nan", "inf"]
    assert len(numbers(tmp_path)) == 150
    assert {value for _, _, value in numbers(tmp_path / "b" / "c")} == {-math.inf}


# many writers, many processes, names


def test_three_writers_on_three_run_directories_work_in_one_process(tmp_path):
    """Interleaved, one closed early, with a child that logs into all of them, never closed otherwise."""
    source = """
writers = [SummaryWriter(f"{sys.argv[1]}/{name}") for name in "xyz"]
for step in range(50):
    for writer in writers: log(writer, step, step + 1)
writers[1].close()
def child():
    for writer in writers: log(writer, 0, 10)
process = named(child, "child")
log(writers[0], 50, 100)
log(writers[2], 50, 100)
good(process)
"""
    succeed(PRELUDE + source, tmp_path)
    assert runs(tmp_path) == {
        "x": steps(0, 100),
        "y": steps(0, 50),
        "z": steps(0, 100),
        "x/child": steps(0, 10),
        "y/child": steps(0, 10),
        "z/child": steps(0, 10),
    }


def test_children_have_directories_of_their_names_over_restarts_and_never_share_one(run_dir):
    """Two living children of one name are in two directories; the next ones of that name use these again."""
    source = """
first, last = int(sys.argv[2]), int(sys.argv[3])
writer = SummaryWriter(sys.argv[1])
context = multiprocessing.get_context("fork")
logged, over = context.Semaphore(0), context.Event()
def child():
    signal.alarm(50)
    log(writer, first, last)
    logged.release()
    over.wait()
processes = []
for name in ("Reader-1", "Reader-1", "Reader-2"):
    processes.append(named(child, name))
    logged.acquire()
over.set()
good(*processes)
good(named(lambda: log(writer, first, last), "Reader-1"))
"""
    succeed(PRELUDE + source, run_dir, 0, 10)
    succeed(PRELUDE + source, run_dir, 10, 20)
    assert runs(run_dir) == {
        "Reader-1": steps(0, 10) * 2 + steps(10, 20) * 2,
        "Reader-1~2": steps(0, 20),
        "Reader-2": steps(0, 20),
    }


def test_ranks_that_outlive_their_launcher_keep_their_directories(run_dir):
    """The job is started again while ranks of the first start still log: new ones take other names, the third none."""

    def rank(number: int, first: int):
        os.environ |= {"RANK": str(number), "WORLD_SIZE": "2"}
        writer = SummaryWriter(str(run_dir))
        writer.add_scalar("a", 0.5, first)
        yield
        writer.add_scalar("a", 0.5, first + 1)
        yield
        writer.close()

    old = [Staged(rank(number, 0)) for number in range(2)]
    new = [Staged(rank(number, 10)) for number in range(2)]
    for child in (*old, *new):
        child.go_on()
    assert runs(run_dir) == {
        ".": steps(0, 2),
        "rank_00001": steps(0, 2),
        "proc_00001": steps(10, 12),
        "rank_00001~2": steps(10, 12),
    }
    assert [child.finish() for child in (*old, *new)] == [0] * 4
    third = [Staged(rank(number, 20)) for number in range(2)]
    assert [child.finish() for child in third] == [0, 0]
    found = runs(run_dir)
    assert found["."] == found["rank_00001"] == [*steps(0, 2), *steps(20, 22)]
    assert len(found) == 4


def test_sixty_four_ranks_at_once_on_one_run_directory(run_dir):
    """All start at one moment in a directory that is not there: 64 files, every record once, every exit code 0."""
    source = """
wait, let_go = os.pipe()
def work(rank):
    os.close(let_go)
    os.read(wait, 1)  # until the parent closes its end
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "64"}
    writer = SummaryWriter(sys.argv[1])
    log(writer, 0, 200)
    if rank % 2: writer.close()
pids = [forked(lambda rank=rank: work(rank)) for rank in range(64)]
os.close(let_go)
codes = [code(pid) for pid in pids]
assert codes == [0] * 64, codes
"""
    succeed(PRELUDE + source, run_dir)
    assert runs(run_dir) == {name: steps(0, 200) for name in (".", *(f"rank_{number:05d}" for number in range(1, 64)))}
    assert len(list(run_dir.rglob("*tfevents*"))) == 64


# ends and nested calls


@pytest.mark.parametrize(
    "end", ["os._exit(0)", "writer.close(); os._exit(0)", "sys.exit(0)", "writer.flush(); os._exit(0)"]
)
def test_a_record_of_a_signal_handler_is_kept_although_the_process_ends_in_it(tmp_path, end):
    """A preemption handler logs a last value and ends, wherever it has interrupted a training that logs."""
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


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_writes_at_its_end_what_the_disk_had_refused(tmp_path, method):
    """There is room again, and nothing is logged any more: the end of the child is the last chance."""
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


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_resumed_childs_directory_is_purged_once_however_it_is_started(tmp_path, method):
    """As above for fork: the next epoch's child does not hide what this attempt has logged."""
    source = """
import multiprocessing, sys
from hf_mpwriter import SummaryWriter
def work(writer, first, last):
    for step in range(first, last):
        writer.add_scalar("a", 0.5, step)
if __name__ == "__main__":
    purge, *bounds = (int(word) for word in sys.argv[3:])
    writer = SummaryWriter(sys.argv[1], purge_step=purge or None)
    for first, last in zip(bounds, bounds[1:]):
        child = multiprocessing.get_context(sys.argv[2]).Process(target=work, args=(writer, first, last), name="Reader")
        child.start()
        child.join()
        assert child.exitcode == 0
"""
    run_file(tmp_path, source, tmp_path / "run", method, 0, 0, 80)
    run_file(tmp_path, source, tmp_path / "run", method, 50, 50, 60, 100)
    assert shown(tmp_path / "run" / "Reader") == list(range(100))


def test_a_second_attempt_in_one_process_is_purged_as_the_first(tmp_path):
    """A retry loop or a notebook: the purge belongs to the writer that was constructed, and not to its reopening."""
    for last in (80, 90, 100):
        with SummaryWriter(str(tmp_path), purge_step=50) as writer:
            for step in range(0 if last == 80 else 50, last):
                writer.add_scalar("a", 0.5, step)
                if step == 60:
                    writer.close()
    assert shown(tmp_path) == list(range(100))


def test_two_open_writers_with_one_purge_step_hide_nothing_of_each_other(tmp_path):
    """A writer constructed wherever something is logged, each with the same arguments."""
    with SummaryWriter(str(tmp_path), purge_step=50) as first:
        for step in range(50, 60):
            first.add_scalar("a", 0.5, step)
        with SummaryWriter(str(tmp_path), purge_step=np.int64(50)) as second:
            second.add_scalar("a", 0.5, 60)
    assert shown(tmp_path) == list(range(50, 61))


@pytest.mark.parametrize("purge_step", ["50", 2**63])
def test_a_purge_step_that_is_none_is_refused_at_once(tmp_path, purge_step):
    """Not in the training loop."""
    with pytest.raises(ValueError, match="purge_step"):
        SummaryWriter(str(tmp_path), purge_step=purge_step)


def test_a_program_that_logs_its_warnings_as_events_does_not_deadlock(tmp_path):
    """Two threads and a disk that refuses: our warnings are told while no lock of ours is held."""
    source = """
import logging
writer = SummaryWriter(sys.argv[1])
class Handler(logging.Handler):
    def emit(self, record): writer.add_text("log", "a warning")
logging.getLogger().addHandler(Handler())
log(writer, 0, 1)
def other():
    for _ in range(300): logging.warning("of the program")
thread = threading.Thread(target=other)
thread.start()
for round in range(30):
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
    log(writer, 0, 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.flush()
thread.join()
writer.close()
assert writer.dropped == 0
"""
    succeed(PRELUDE + source, tmp_path)


def test_a_local_writer_does_not_reset_how_others_are_uploaded(run_dir, monkeypatch):
    """`SummaryWriter(logdir)` wherever something is logged, beside the one that knows the Hub."""
    from hf_mpwriter import HFSummaryWriter

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with HFSummaryWriter("me/run", logdir=str(run_dir), commit_every=30, exit_timeout=0, memory_limit=1000) as writer:
        writer.scheduler.stop()
        before, limit = writer._worker._settings, writer._worker._limits.memory
        with SummaryWriter(str(run_dir)) as plain:
            assert plain._worker is writer._worker
        assert (writer._worker._settings, writer._worker._limits.memory) == (before, limit)
        assert limit == 1000
    SummaryWriter(str(run_dir), memory_limit=16 << 20).close()


def test_flushing_on_a_full_disk_fills_neither_memory_nor_card(run_dir):
    """Some frameworks flush after every step: the name of the next segment is announced once."""
    source = """
writer = SummaryWriter(sys.argv[1])
writer._worker.directory()
real = os.open
def refuse(path, flags, *rest, **more):
    if flags & os.O_CREAT and "tfevents" in str(path): raise OSError(errno.ENOSPC, "full")
    return real(path, flags, *rest, **more)
os.open = refuse
log(writer, 0, 1)
for _ in range(200): writer.flush()
os.open = real
writer.flush()
(card,) = (entry for entry in os.scandir(sys.argv[1] + "/.hf_mpwriter/members"))
print(card.stat().st_size)
"""
    assert int(succeed(PRELUDE + source, run_dir)) < 2000
    assert runs(run_dir) == {".": steps(0, 1)}
