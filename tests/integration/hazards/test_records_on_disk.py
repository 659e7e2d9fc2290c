"""Hazards of what is on disk, and when: signals, exits, threads.

The rows h01 ... h16 are those of the hazards that were measured in tensorboardX and torch.
"""

from __future__ import annotations

import pytest
from hazards import PRELUDE, WITH_TORCH, needs_torch, numbers, run_file, runs, steps
from programs import run_python, succeed


@pytest.mark.parametrize(
    ("end", "code"),
    [("pass", 0), ("sys.exit(3)", 3), ("raise ValueError", 1), ("os._exit(4)", 4), ("del writer", 0)],
)
def test_no_end_of_a_program_loses_a_record_of_a_writer_that_was_never_closed(run_dir, end, code):
    """h07: return, exit, exception, hard exit, a writer without a reference."""
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
def work(logdir, end, ready):
    signal.alarm(180)
    writer = SummaryWriter(logdir)
    log(writer, 0, 507)
    if end == "exit": sys.exit(0)
    if end == "raise": raise ValueError
    if end == "hard": os._exit(0)
    if end == "terminate":
        ready.set()
        signal.pause()

if __name__ == "__main__":
    processes = []
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        for end in ("return", "exit", "raise", "hard", "terminate"):
            ready = context.Event()
            process = context.Process(target=work, args=(sys.argv[1], end, ready), name=f"{method}_{end}")
            process.daemon = end == "terminate"
            process.start()
            processes.append((process, ready))
    for process, ready in processes:
        if process.daemon:
            assert ready.wait(150)
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
    """h07: all reads are logged, once per epoch, in one directory per worker id; epochs add no directory."""
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
