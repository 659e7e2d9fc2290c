"""Disks whose power can be cut, as parameters of tests."""

from __future__ import annotations

import pytest

from hf_mpwriter.testing.power_cut import why_not

KINDS = [
    pytest.param(kind, marks=[pytest.mark.root, pytest.mark.skipif(bool(why_not(kind)), reason=why_not(kind) or "-")])
    for kind in ("ext4", "xfs")
]
