"""The event files of a process: how large their smallest segments are."""

from __future__ import annotations

import dataclasses
import os

import pytest
from support import scalar

from hf_mpwriter.base.job import LAUNCHERS, SLURM
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.events import series
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.worker import files
from hf_mpwriter.worker.role import Role
from hf_mpwriter.worker.worker import Worker

MIB = 1 << 20


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A worker outside of any launcher."""
    for launcher in (*LAUNCHERS, SLURM):
        monkeypatch.delenv(launcher.rank, raising=False)
    spool = Spool(str(tmp_path / "exp1"))
    spool.create()
    made = Worker(spool, Limits())
    yield made
    made.leave_all()


@pytest.mark.parametrize(
    ("role", "ranks", "expected"),
    [
        (Role(None, None), None, 4),
        (Role(0, None), 1, 4),
        (Role(1, None), 2, 8),
        (Role(5, None), 64, 16),
        (Role(0, None), None, 16),
        (Role(None, "Process-1"), None, 16),
        (Role(0, "Process-1"), 1, 16),
    ],
)
def test_segments_are_small_where_few_processes_write(worker, role, ranks, expected):
    """A push reads the open one from its start; but a reader of all ranks keeps a descriptor for each file."""
    worker.membership.role = dataclasses.replace(role, world=ranks)
    assert worker.files.segment_min == expected * MIB


def test_segments_are_small_where_a_bucket_follows_them_while_they_are_few(worker, monkeypatch, tmp_path):
    """A round reads the open one from its start; but a reader keeps a descriptor for each file."""
    monkeypatch.setattr(files, "SEGMENT_OF_ONE", 1000)
    monkeypatch.setattr(files, "FEW", 3)
    worker.membership.settings = Settings(live="me/run-live")
    file = worker.files.open("", "", None)
    for step in range(1, 300):
        file.append(scalar(step))
        worker.membership.role = Role(0, None, world=64)
    sizes = sorted(path.stat().st_size for path in (tmp_path / "exp1").glob("events*"))
    assert len(sizes) == 4
    assert sizes[2] < 2000
    assert sizes[3] > 4000


def test_a_segment_of_a_lone_process_is_sealed_at_its_size(worker, monkeypatch, tmp_path):
    """The series asks its home."""
    monkeypatch.setattr(files, "SEGMENT_OF_ONE", 1000)
    file = worker.files.open("", "", None)
    for step in range(1, 100):
        file.append(scalar(step))
    sizes = sorted(os.path.getsize(path) for path in (tmp_path / "exp1").glob("events*"))
    assert len(sizes) > 3
    assert sizes[1] >= 1000
    assert sizes[-1] < 1100
    assert series.SEGMENT_MIN == 16 * MIB
