"""Hazards of a writer that was inherited, copied or sent.

The rows h01 ... h16 are those of the hazards that were measured in tensorboardX and torch.
"""

from __future__ import annotations

from hazards import PRELUDE, run_file, runs, steps
from programs import succeed


def test_children_may_log_flush_and_close_what_they_inherited(run_dir):
    """h02: the parent's file has the parent's records, each once; a child's are in its own; no process blocks."""
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
    signal.alarm(180)
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
    """h03: the thread that holds the locks does not exist in the child; the child logs, flushes, closes and ends."""
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
    signal.alarm(180)
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
