"""Limits of the process: file size and descriptors. Training has them too, and must not notice us."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
from hazards import PRELUDE, runs, steps
from programs import succeed, wait_for
from runs import check_oracle, no_uploader, uploader_pid

LIMITED = (
    PRELUDE
    + """
from hf_mpwriter import HFSummaryWriter
place, megabytes, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def limit():
    soft = int(megabytes * 2**20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
if when == "start": limit()
with HFSummaryWriter("me/run", logdir=place) as writer:
    log(writer, 0, 1000)
    limit()
    log(writer, 1000, 120_000)
    for step in range(3):  # one is larger than any file may be
        writer.add_text("text", "x" * 1_500_000, step)
        writer.add_text("text", "x" * 4_500_000, step)
    log(writer, 120_000, 120_100)
print(writer.dropped)
"""
)


@pytest.mark.parametrize(("megabytes", "when"), [(3, "start"), (4, "later")])
def test_a_limit_on_file_size_costs_no_record_that_fits(hub, run_dir, megabytes, when):
    """Files grow up to the limit, then the next begins; all is on the Hub, through an uploader without the limit."""
    assert int(succeed(LIMITED, run_dir, megabytes, when)) == 3
    report = check_oracle(run_dir, hub)
    assert len(report.files) >= 3
    assert max(file.local_bytes for file in report.files.values()) <= megabytes << 20
    (found,) = runs(run_dir).values()
    scalars = [key for key in found if key[0] == "a"]
    assert scalars == steps(0, 120_100)
    assert [key for key in found if key[0] != "a"] == [("text/text_summary", step) for step in range(3)]


def test_the_uploader_raises_its_own_limits(hub, run_dir):
    """It starts with those of training; a hard limit stays."""
    source = (
        PRELUDE
        + """
from hf_mpwriter import HFSummaryWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 9 << 20))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 777))
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
log(writer, 0, 10)
sys.stdin.read()
os._exit(0)
"""
    )
    with subprocess.Popen([sys.executable, "-c", source, str(run_dir)], stdin=subprocess.PIPE) as program:
        pid = wait_for(lambda: uploader_pid(run_dir), "the uploader's first status")
        uploader = psutil.Process(pid)
        assert uploader.rlimit(psutil.RLIMIT_FSIZE) == (9 << 20, 9 << 20)
        assert uploader.rlimit(psutil.RLIMIT_NOFILE) == (777, 777)
        program.communicate()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
