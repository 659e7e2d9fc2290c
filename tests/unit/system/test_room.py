"""Room: a disk that takes nothing more is known as one, and what cannot be told is not."""

from __future__ import annotations

import errno
import os

import pytest

from hf_mpwriter.system.filesystem.room import LEAST, explained, is_full

BLOCK = 4096
PLENTY, FEW = 10 * LEAST // BLOCK, LEAST // BLOCK - 1


@pytest.mark.parametrize(
    ("blocks", "free", "names", "free_names", "expected"),
    [
        pytest.param(1000, PLENTY, 100, 100, False, id="room"),
        pytest.param(1000, FEW, 100, 100, True, id="no block"),
        pytest.param(1000, PLENTY, 100, 0, True, id="no inode"),
        pytest.param(1000, PLENTY, 0, 0, False, id="btrfs counts no inodes"),
        pytest.param(0, 0, 0, 0, False, id="a mount that tells nothing"),
    ],
)
def test_a_disk_without_blocks_or_names_is_full(tmp_path, monkeypatch, blocks, free, names, free_names, expected):
    """A mount that tells nothing is not."""
    found = os.statvfs_result((BLOCK, BLOCK, blocks, free, free, names, free_names, free_names, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    assert is_full(tmp_path) is expected


def test_a_directory_that_is_gone_is_not_full(tmp_path):
    """Nor is one with room."""
    assert not is_full(tmp_path)
    assert not is_full(tmp_path / "gone")


def test_a_full_disk_has_a_sentence():
    """Another error has its own."""
    full, other = (OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EIO))
    assert explained(full, "cannot start") == "the disk is full: free some space"
    assert explained(other, "cannot start") == f"cannot start: {other}"
