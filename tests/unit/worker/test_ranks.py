"""The rank of a process in one run directory: what the program says, and what it learns after it has joined."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from forks import in_child

from hf_mpwriter import SummaryWriter
from hf_mpwriter.base.errors import SettingsError


def directories(run_dir: Path) -> set[str]:
    """Where event files are."""
    return {str(path.parent.relative_to(run_dir)) for path in run_dir.rglob("*tfevents*")}


@pytest.fixture
def group(monkeypatch):
    """A stand-in for torch.distributed: gives this process a rank, as `init_process_group` does."""

    def initialise(rank: int, size: int = 2) -> None:
        module = ModuleType("torch.distributed.distributed_c10d")
        module.GroupMember = SimpleNamespace(WORLD=SimpleNamespace(rank=lambda: rank, size=lambda: size))
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return initialise


def test_what_the_program_says_is_the_rank(run_dir):
    """Of an actor that no launcher has numbered; a second writer of the process need not say it again."""
    with SummaryWriter(run_dir, rank=np.int64(3)) as writer, SummaryWriter(run_dir) as other:
        writer.add_scalar("loss", 1.0, 1)
        other.add_scalar("loss", 1.0, 2)
    assert directories(run_dir) == {"rank_00003"}


@pytest.mark.parametrize("rank", [-1, True, "3", 1.0, 100_000])
def test_what_is_no_rank_is_refused(run_dir, rank):
    """Before anything is created."""
    with pytest.raises(SettingsError, match="rank is"):
        SummaryWriter(run_dir, rank=rank)
    assert not run_dir.exists()


def test_a_process_is_one_rank_of_a_run_at_a_time(run_dir):
    """Another one is refused while a writer is open, and logs beside it once that is closed."""
    with SummaryWriter(run_dir, rank=3) as writer:
        writer.add_scalar("loss", 1.0, 1)
        with pytest.raises(SettingsError, match=r"logs in .* as rank 3 already"):
            SummaryWriter(run_dir, rank=4)
        with SummaryWriter(run_dir.parent / "other", rank=4) as other:
            other.add_scalar("loss", 1.0, 1)
    with SummaryWriter(run_dir, rank=4) as writer:
        writer.add_scalar("loss", 1.0, 1)
    assert directories(run_dir) == {"rank_00003", "rank_00004"}
    assert directories(run_dir.parent / "other") == {"rank_00004"}


def test_a_rank_that_comes_before_the_first_record_names_the_process(run_dir, group):
    """Many programs build the writer first; the steps of that rank are purged, not those of the name it had."""
    with SummaryWriter(run_dir, rank=1) as earlier:
        earlier.add_scalar("loss", 1.0, 5)
    assert in_child(lambda: _log_as_rank_1(run_dir, group)) == 0
    assert directories(run_dir) == {"rank_00001"}


def _log_as_rank_1(run_dir: Path, group) -> None:
    with SummaryWriter(run_dir, purge_step=3) as writer:
        group(1)
        writer.add_scalar("loss", 1.0, 3)
        assert writer.last_step() == 3


def test_a_process_that_has_begun_to_log_keeps_its_name_and_says_so_once(run_dir, group, caplog):
    """Its curve is one; a later writer of the process goes on with it, too."""
    for step in range(2):
        with SummaryWriter(run_dir) as writer:
            writer.add_scalar("loss", 1.0, step)
            group(1)
            for _ in range(2):
                writer._worker.keep_house()
    assert directories(run_dir) == {"."}
    assert caplog.text.count("has logged as main before torch.distributed gave it rank 1, and keeps that name") == 1


def test_the_first_rank_needs_no_warning(run_dir, group, caplog):
    """A process alone has its name already."""
    with SummaryWriter(run_dir) as writer:
        writer.add_scalar("loss", 1.0, 0)
        group(0)
        writer._worker.keep_house()
    assert (directories(run_dir), caplog.text) == ({"."}, "")


def _log(writer: SummaryWriter) -> None:
    with writer:
        writer.add_scalar("loss", 1.0, 1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_that_is_given_a_writer_is_a_child_of_its_rank(run_dir, method):
    """The environment tells it nothing of what the program has said to its parent."""
    with SummaryWriter(run_dir, rank=3) as writer:
        process = multiprocessing.get_context(method).Process(target=_log, args=(writer,), name="loader")
        process.start()
        process.join()
    assert process.exitcode == 0
    assert directories(run_dir) == {"rank_00003_loader"}


def test_a_writer_that_is_handed_to_a_rank_gives_it_the_name(run_dir):
    """As `mp.spawn(train, args=(writer,))` does: the parent has only built it, and rank 0 is one of its children."""
    writer = SummaryWriter(run_dir)
    process = multiprocessing.get_context("spawn").Process(target=_log_as_rank_0, args=(writer, run_dir))
    process.start()
    process.join()
    assert (process.exitcode, directories(run_dir)) == (0, {"."})
    with writer:
        writer.add_scalar("loss", 1.0, 1)


def _log_as_rank_0(writer: SummaryWriter, run_dir: Path) -> None:
    SummaryWriter(run_dir, rank=0)
    with writer:
        writer.add_scalar("loss", 1.0, 1)


def test_a_closed_writer_logs_again_as_the_rank_that_it_was_given(run_dir):
    """Another writer may have made the process another rank meanwhile."""
    first = SummaryWriter(run_dir, rank=1)
    for rank, writer in ((1, first), (2, SummaryWriter)):
        with writer if rank == 1 else writer(run_dir, rank=rank) as one:
            one.add_scalar("loss", 1.0, 1)
    first.add_scalar("loss", 1.0, 2)
    first.close()
    assert directories(run_dir) == {"rank_00001", "rank_00002"}
    assert len(list((run_dir / "rank_00001").iterdir())) == 2
