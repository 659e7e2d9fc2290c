"""Hazards of many processes and many writers: the same second, names, restarts, a world of ranks.

The rows h01 ... h16 are those of the hazards that were measured in tensorboardX and torch.
"""

from __future__ import annotations

import os

import pytest
from hazards import PRELUDE, run_file, runs, steps
from programs import succeed

SAME_SECOND = (
    PRELUDE
    + """
def work(barrier, logdir):
    signal.alarm(180)
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


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_one_name_that_start_in_the_same_second_each_have_a_whole_file(tmp_path, run_dir, method):
    """h01: no process fails on a directory that another one makes, and none truncates another's file."""
    run_file(tmp_path, SAME_SECOND, method, run_dir)
    assert runs(run_dir) == {name: steps(0, 100) for name in ("work", *(f"work~{n}" for n in range(2, 6)))}


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
    """Two living children of one name are in two directories; later children of that name use these again."""
    source = """
first, last = int(sys.argv[2]), int(sys.argv[3])
writer = SummaryWriter(sys.argv[1])
context = multiprocessing.get_context("fork")
logged, over = context.Semaphore(0), context.Event()
def child():
    signal.alarm(180)
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


def test_sixty_four_ranks_at_once_on_one_run_directory(run_dir):
    """All start at one moment in a directory that does not exist: 64 files, every record once, every exit code 0."""
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


POOL = (
    PRELUDE
    + """
def work(step):
    writer = SummaryWriter(sys.argv[1])
    writer.add_scalar("a", 0.5, step)
    writer.close()

if __name__ == "__main__":
    signal.alarm(180)
    from hf_mpwriter.worker import role
    role.OWN_NAMES = 4
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        pool.map(work, range(60), chunksize=1)
        pool.close()
        pool.join()
    for step in range(60, 80):
        pid = os.fork()
        if not pid:
            work(step)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
"""
)


def test_workers_that_live_for_a_moment_use_a_bounded_number_of_names(tmp_path, run_dir):
    """Sixty of a pool that replaces them and twenty forks: no record is lost, few directories, no more claims."""
    run_file(tmp_path, POOL, run_dir)
    found = runs(run_dir)
    assert sorted(step for logged in found.values() for step in logged) == sorted(steps(0, 80))
    assert len(found) <= 4 + 4 + 1
    claims = os.listdir(run_dir / ".hf_mpwriter" / "claims")
    assert {name.partition(".")[0] for name in claims} <= {*found, "main"}


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
