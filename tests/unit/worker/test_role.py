"""The role of a process: its rank, the number of ranks, and whether it is a child."""

from __future__ import annotations

import multiprocessing
import os
import time
from functools import partial

import pytest
from forks import in_child
from hypothesis import example, given
from hypothesis import strategies as st
from programs import succeed

from hf_mpwriter.base.job import LAUNCHERS, GivenRank, rank_of, world_size_of
from hf_mpwriter.spool.workers.member_lines import MemberName
from hf_mpwriter.spool.workers.members import OBSERVER, SUPERVISOR
from hf_mpwriter.system import process as process_module
from hf_mpwriter.worker import role as role_module
from hf_mpwriter.worker.role import Role, role_of

RAY = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "5"}  # of a worker of Ray, and of what it starts


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({}, None),
        ({"RANK": "3"}, 3),
        ({"RANK": "0", "SLURM_PROCID": "7", "SLURM_STEP_ID": "0"}, 0),
        ({"LOCAL_RANK": "2"}, None),
        ({"RANK": ""}, None),
        ({"RANK": "x"}, None),
        ({"RANK": "-1"}, None),
        ({"OMPI_COMM_WORLD_RANK": "4"}, 4),
        ({"PMI_RANK": "5"}, 5),
        ({"MV2_COMM_WORLD_RANK": "6"}, 6),
        ({"PMIX_RANK": "7"}, 7),
        ({"JSM_NAMESPACE_RANK": "8"}, 8),
        ({"PALS_RANKID": "1", "PMI_RANK": "1"}, 1),
        ({"FLUX_TASK_RANK": "2"}, 2),
        ({"HOROVOD_RANK": "3"}, 3),
        ({"RANK": "4", "CROSS_RANK": "0", "LOCAL_RANK": "4"}, 4),
        ({"SLURM_PROCID": "9", "SLURM_STEP_ID": "0"}, 9),
        ({**RAY, "RANK": "5"}, 5),
        ({**RAY, "RANK": "5", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "PMIX_RANK": "1"}, 5),
        ({**RAY, "SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "PMIX_RANK": "1"}, None),
        ({**RAY, "OMPI_COMM_WORLD_RANK": "2"}, 2),
        ({"SLURM_PROCID": "9", "SLURM_STEPID": "3"}, 9),
        ({"SLURM_PROCID": "0"}, None),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967291"}, None),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"}, None),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "batch"}, None),
    ],
)
def test_the_rank_is_the_one_that_the_launcher_gave(environ, rank):
    """Every launcher's own variable counts; SLURM's only within a step (a batch script has SLURM_PROCID=0, too).

    A daemon of Ray that `srun` has started passes on the rank of its own: all its workers would have the same.
    """
    assert rank_of(environ) == rank


@pytest.mark.parametrize(
    ("environ", "world"),
    [
        ({}, None),
        ({"WORLD_SIZE": "4"}, None),
        ({"RANK": "0", "WORLD_SIZE": "4"}, 4),
        ({"RANK": "0", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, None),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "WORLD_SIZE": "64"}, 2),
        ({"PMI_RANK": "0", "PMI_SIZE": "8"}, 8),
        ({"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "8"}, 8),
        ({"JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_SIZE": "8"}, 8),
        ({"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "8"}, 8),
        ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "8"}, 8),
        ({"PMIX_RANK": "0"}, None),
        ({"PMIX_RANK": "0", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "16"}, 16),
        ({"RANK": "0", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "16"}, 16),
        ({"RANK": "8", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}, None),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "16"}, 16),
        ({"SLURM_NTASKS": "16"}, None),
        ({**RAY, "RANK": "0", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}, None),
    ],
)
def test_the_number_of_ranks_comes_from_the_launcher_that_gave_the_rank(environ, world):
    """What an outer launcher has left in the environment would rewind directories of ranks that are at work."""
    assert world_size_of(environ) == world


@pytest.mark.parametrize(
    ("environ", "inherited", "child", "role", "worker"),
    [
        ({}, None, None, Role(None, None), "main"),
        ({"RANK": "0"}, None, None, Role(0, None), "main"),
        ({"RANK": "3"}, None, None, Role(3, None), "rank_00003"),
        ({"RANK": "3"}, 3, "Process-1", Role(3, "Process-1"), "rank_00003_Process-1"),
        ({"RANK": "0"}, 0, "Process-1", Role(0, "Process-1"), "rank_00000_Process-1"),
        ({}, None, "Process-1", Role(None, "Process-1"), "Process-1"),
        ({}, None, "", Role(None, ""), "proc_00001"),
        ({}, None, "main", Role(None, "main"), "proc_main"),
        ({}, None, "rank_00001", Role(None, "rank_00001"), "proc_rank_00001"),
        ({"RANK": "2"}, None, "Process-3", Role(2, None), "rank_00002"),
        ({"RANK": "2"}, 0, "Process-3", Role(2, None), "rank_00002"),
        ({"RANK": "0"}, None, "Process-1", Role(0, None), "main"),
    ],
)
def test_a_child_is_a_rank_only_if_it_was_given_one_after_its_start(environ, inherited, child, role, worker):
    """What it inherited makes it a child of that rank; what it was given (mp.spawn scripts) makes it that rank."""
    assert role_of(environ, at_start=inherited, child=child) == role
    assert role.worker == worker
    assert role.is_child == (role.child is not None)


LIGHTNING = {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "4"}
GROUP = GivenRank(5, 8)


@pytest.mark.parametrize(
    ("found", "role", "worker"),
    [
        (
            partial(role_of, {"RANK": "1"}, said=3, at_start=1, group=GROUP, child="Process-1"),
            Role(3, None),
            "rank_00003",
        ),
        (partial(role_of, {"RANK": "1"}, group=GROUP, child="SpawnProcess-1"), Role(1, None), "rank_00001"),
        (partial(role_of, {"RANK": "1"}, at_start=1, group=GROUP, child="SpawnProcess-1"), Role(5, None), "rank_00005"),
        (partial(role_of, {}, group=GROUP, child="SpawnProcess-1"), Role(5, None), "rank_00005"),
        (partial(role_of, {}, group=GROUP), Role(5, None), "rank_00005"),
        (partial(role_of, {}, group=GivenRank(0, 2)), Role(0, None), "main"),
        (partial(role_of, LIGHTNING), Role(1, None), "rank_00001"),
        (partial(role_of, LIGHTNING | {"NODE_RANK": "1"}), Role(None, None), "main"),
        (partial(role_of, {}, child="Process-1", parent=4), Role(4, "Process-1"), "rank_00004_Process-1"),
        (
            partial(role_of, {"RANK": "2"}, at_start=2, child="Process-1", parent=4),
            Role(2, "Process-1"),
            "rank_00002_Process-1",
        ),
        (partial(role_of, {}, child="ForkPoolWorker-3", is_task=True), Role(None, None, is_task=True), "main"),
        (
            partial(role_of, {"RANK": "2"}, at_start=2, child="ForkPoolWorker-3", is_task=True),
            Role(2, ""),
            "rank_00002_proc_00001",
        ),
        (partial(role_of, {}, group=GROUP, child="ForkPoolWorker-3", is_task=True), Role(5, None), "rank_00005"),
        (partial(role_of, {}, said=7, child="ForkPoolWorker-3", is_task=True), Role(7, None), "rank_00007"),
    ],
)
def test_a_rank_is_what_is_known_first(found, role, worker):
    """What the program says, what was given after the start, torch.distributed, the environment; a task has no name."""
    assert found() == role
    assert role.worker == worker


@pytest.mark.parametrize(
    ("found", "world"),
    [
        (partial(role_of, {}, group=GROUP), 8),
        (partial(role_of, {"RANK": "5", "WORLD_SIZE": "6"}, at_start=5, group=GROUP), 8),
        (partial(role_of, {"RANK": "5", "WORLD_SIZE": "6"}, at_start=5), 6),
        (partial(role_of, {"RANK": "2", "WORLD_SIZE": "6"}, said=2), 6),
        (partial(role_of, {"RANK": "2", "WORLD_SIZE": "6"}, said=3), None),
        (partial(role_of, LIGHTNING), 4),
    ],
)
def test_how_many_ranks_there_are_comes_from_what_gave_the_rank(found, world):
    """Directories of ranks that are at work would be rewound otherwise."""
    assert found().world == world


@pytest.mark.parametrize("kind", ["Process", "SpawnProcess", "ForkPoolWorker", "LokyProcess"])
def test_children_that_multiprocessing_counts_without_end_share_a_name(kind):
    """The first ones have names of their own, after a restart too; later ones take what is free."""
    assert {Role(None, f"{kind}-{number}").worker for number in range(1, 10_000)} == {
        kind,
        *(f"{kind}-{number}" for number in range(1, role_module.OWN_NAMES + 1)),
    }
    assert Role(3, f"{kind}-65").worker == Role(3, f"{kind}-1:2:3").worker == f"rank_00003_{kind}"
    assert Role(None, f"{kind}-{'9' * 5000}").worker == kind
    assert Role(None, f"{kind}-64:64").worker == f"{kind}-64_64"
    assert Role(None, "Reader-20251122").worker == "Reader-20251122"


@example("~sync", None)
@given(st.text(), st.none() | st.integers(0, 10**5))
def test_any_name_of_a_child_makes_a_worker_whose_member_file_can_be_read(text, rank):
    """Whatever multiprocessing calls a child, its worker is a plain directory name, and part of a member file name."""
    worker = Role(rank, text).worker
    assert worker not in ("", "main", ".", "..", OBSERVER, SUPERVISOR)
    name = MemberName(worker, process_module.host_id(), 1, 2, 3)
    assert MemberName.parse(str(name)) == name


def test_a_forked_child_knows_that_it_is_one(monkeypatch):
    """os.fork and multiprocessing's fork make children; a rank given in the child makes it a rank."""
    monkeypatch.setenv("RANK", "2")
    assert role_module.current_role() == Role(2, None)

    def child() -> None:
        assert role_module.current_role() == Role(2, "")
        os.environ["RANK"] = "5"
        assert role_module.current_role() == Role(5, None)
        assert in_child(lambda: os._exit(0 if role_module.current_role() == Role(5, "") else 1)) == 0

    assert in_child(child) == 0
    process = multiprocessing.get_context("fork").Process(target=_exit_if_child_of_rank_2, name="loader")
    process.start()
    process.join()
    assert process.exitcode == 10


def _exit_if_child_of_rank_2() -> None:
    os._exit(10 if role_module.current_role() == Role(2, "loader") else 1)


@pytest.mark.parametrize(("rank", "role"), [(None, Role(0, None)), (0, Role(0, None)), (2, Role(2, ""))])
def test_a_child_that_trains_is_the_first_rank_and_its_children_are_children(rank, role, monkeypatch):
    """`take_first_rank` counts where no launcher gave a rank; it changes nothing for the process itself."""
    for launcher in LAUNCHERS:
        monkeypatch.delenv(launcher.rank, raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(role_module, "_first_rank_pid", [])
    before = role_module.current_role()
    role_module.take_first_rank()
    assert role_module.current_role() == before == Role(rank, None)

    def child() -> None:
        assert role_module.current_role() == Role(rank, "")
        role_module.take_first_rank()
        assert role_module.current_role() == role
        assert in_child(lambda: os._exit(0 if role_module.current_role() == Role(rank, "") else 1)) == 0

    assert in_child(child) == 0


SPAWNING = """
import multiprocessing, os
from hf_mpwriter.worker import role

def show(rank=None):
    if rank is not None:
        os.environ["RANK"] = str(rank)
    found = role.current_role()
    print(found.rank, found.child, flush=True)

if __name__ == "__main__":
    show()
    for method in ("spawn", "forkserver"):
        for arguments in ((), (4,)):
            context = multiprocessing.get_context(method)
            process = context.Process(target=show, args=arguments, name="w")
            process.start()
            process.join()
"""


def test_a_spawned_child_knows_that_it_is_one(tmp_path):
    """Spawn and forkserver children of rank 1 are its children, until they are given a rank of their own."""
    program = tmp_path / "program.py"
    program.write_text(SPAWNING)
    out = succeed("import os,sys;os.execv(sys.executable,[sys.executable,sys.argv[1]])", program, env={"RANK": "1"})
    mine, child, ranked = "1 None", "1 w", "4 None"
    assert out.splitlines() == [mine, child, ranked, child, ranked]


def test_all_ranks_of_a_launcher_name_the_same_second():
    """Where no id names the job, its start does."""
    first, second = role_module.launch_time(0), role_module.launch_time(1)
    assert abs(first - second) < 1.0
    assert abs(role_module.launch_time(None) - time.time()) < 60.0


POOLS = """
import concurrent.futures, multiprocessing, sys
from hf_mpwriter.worker import role

def show(depth):
    found = [(role.current_role().worker, role.current_role().is_task)]
    if depth:
        with concurrent.futures.ProcessPoolExecutor(1) as pool:
            found += pool.submit(show, depth - 1).result()
    return found

def child(queue):
    queue.put(role.current_role().worker)

def with_child(_):
    queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=child, args=(queue,))
    process.start()
    return queue.get()

if __name__ == "__main__":
    for method in sys.argv[1:]:
        context = multiprocessing.get_context(method)
        with context.Pool(1, maxtasksperchild=1) as pool:
            print(pool.map(show, [0, 0], chunksize=1))
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            print(pool.submit(show, 1).result())
            if method == "fork":
                print([pool.submit(with_child, 0).result() for _ in range(2)])
"""


def test_a_task_of_a_pool_has_no_name_of_its_own(tmp_path):
    """Nor has one of a pool in a pool. A child of a task is counted by its worker of the pool, so its number goes."""
    program = tmp_path / "program.py"
    program.write_text(POOLS)
    run = "import os,sys;os.execv(sys.executable,[sys.executable,*sys.argv[1:]])"
    task = "('main', True)"
    tasks = [f"[[{task}], [{task}]]", f"[{task}, {task}]"]
    assert succeed(run, program, "fork").splitlines() == [*tasks, "['Process', 'Process']"]
    assert succeed(run, program, "spawn", "forkserver").splitlines() == tasks * 2


GROUPS = """
import multiprocessing, os, sys
import torch.distributed as dist
from hf_mpwriter.worker import role

def show(*_):
    print(role.current_role().worker, flush=True)

if __name__ == "__main__":
    show()
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    dist.init_process_group("gloo", rank=0, world_size=1, store=store)
    group = dist.GroupMember.WORLD
    class Second:
        rank, size = staticmethod(lambda: 1), staticmethod(lambda: 2)
    dist.distributed_c10d._world.default_pg = Second
    show()
    for method in ("fork", "spawn"):
        process = multiprocessing.get_context(method).Process(target=show, name="w")
        process.start()
        process.join()
    dist.distributed_c10d._world.default_pg = group
    dist.destroy_process_group()
    show()
"""


def test_a_process_group_is_of_the_process_that_made_it(tmp_path, monkeypatch):
    """A fork inherits it and is a child of that rank; a spawned child has none, and destroyed it is gone."""
    pytest.importorskip("torch.distributed", reason="torch is not installed")
    program = tmp_path / "program.py"
    program.write_text(GROUPS)
    monkeypatch.delenv("PYTHONPATH")  # torch is hidden there
    out = succeed("import os,sys;os.execv(sys.executable,[sys.executable,sys.argv[1]])", program)
    assert out.splitlines() == ["main", "rank_00001", "rank_00001_w", "w", "main"]
