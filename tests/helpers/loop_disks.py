"""Disks whose power can be cut, as parameters of tests."""

from __future__ import annotations

import sys

import pytest
from repository import PROOF

sys.path.append(str(PROOF))

from power_cut_disk import LoopDisk, has_power, why_not

__all__ = ["KINDS", "LoopDisk", "has_power"]

KINDS = [
    pytest.param(kind, marks=[pytest.mark.root, pytest.mark.skipif(bool(why_not(kind)), reason=why_not(kind) or "-")])
    for kind in ("ext4", "xfs")
]
