"""Failpoints: named points strike as the environment asks, and nowhere else."""

from __future__ import annotations

import errno

from forks import KILLED
from programs import run_python


def test_failpoints_come_from_the_environment():
    """Several points with commas; each acts at its n-th passage and only there."""
    source = (
        "from hf_mpwriter.system import failpoints\n"
        "for n in range(4):\n"
        "    for name in 'ab':\n"
        "        try: failpoints.reach(name)\n"
        "        except OSError as error: print(n, name, error.errno, flush=True)\n"
    )
    result = run_python(source, env={"HF_MPWRITER_FAILPOINT": " a=enospc:2, b = kill:3,"})
    assert result.returncode == KILLED
    assert result.stdout.split() == ["1", "a", str(errno.ENOSPC)]
    assert run_python(source, env={"HF_MPWRITER_FAILPOINT": ""}).stdout == ""
