"""The end of a session of tests leaves no mount behind."""

from __future__ import annotations

import os
import subprocess

import pytest
from mounts import detach_below


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_mounts_below_a_directory_are_detached_although_files_are_open_there(tmp_path):
    """One inside another, with a space in its name; a mount elsewhere stays."""
    inside, beside = tmp_path / "in side", tmp_path / "beside"
    inner = inside / "disk" / "inner"
    for place in (beside, inside / "disk", inner):
        place.mkdir(parents=True)
        if subprocess.run(["mount", "-t", "tmpfs", "test", place], capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
    with open(inside / "disk" / "file", "w"):
        assert detach_below(inside) == [str(inside / "disk"), str(inner)]
    assert not os.path.ismount(inside / "disk")
    assert os.listdir(inside / "disk") == []
    assert os.path.ismount(beside)
    assert detach_below(tmp_path) == [str(beside)]
    assert detach_below(tmp_path) == []
