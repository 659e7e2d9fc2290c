"""The commands on real runs: status, sync, verify."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hanging import hanging, why_not
from programs import DEADLINE, wait_for
from runs import LOG_AND_EXIT, check_oracle, kill_uploaders, living_uploader, no_uploader, run


def test_a_local_run_can_be_given_a_destination_later(hub, run_dir, start):
    """`sync --repo-id` uploads what a SummaryWriter without destination has written; status and verify agree."""
    start(
        "import sys\nfrom hf_mpwriter import SummaryWriter\nSummaryWriter(sys.argv[1]).add_scalar('a', 1, 1)", run_dir
    ).succeed()
    result = run("sync", run_dir, "--repo-id", "me/run")
    assert result.exit_code == 0, result.output
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert len(check_oracle(run_dir, hub).files) == 1
    status = json.loads(run("status", run_dir, "--json").output)
    assert status["files"][0]["bytes"] == status["files"][0]["on_hub"] > 0
    assert run("verify", run_dir).exit_code == 0
    assert "recorded for" in run("sync", run_dir, "--repo-id", "me/other").output


SKEWED = """
import sys, time
real = time.time
time.time = lambda: real() + 1000
from hf_mpwriter.cli.main import main
main(["sync", sys.argv[1], "--timeout", "150"])
"""


def test_verify_and_sync_of_a_run_that_is_on_the_hub(hub, run_dir, start):
    """Whatever the clock says `sync` asks anew; `verify` names a file that lacks something; nothing else is missing."""
    start(LOG_AND_EXIT, run_dir, 10).succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    code, out, err = start(SKEWED, run_dir).finish()
    assert (code, "are on the Hub" in out) == (0, True), err
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    (path,) = run_dir.glob("*tfevents*")
    content = path.read_bytes()
    path.write_bytes(content * 2)
    result = run("verify", run_dir)
    assert (result.exit_code, "hf-mpwriter sync" in result.output) == (1, True)
    assert run("verify", run_dir, "--running").exit_code == 0
    path.write_bytes(content)
    hub.stop()
    result = run("sync", run_dir, "--timeout", "2")
    assert (result.exit_code, "By what it last answered, everything is there" in result.output) == (1, True)
    assert result.output.count("on the Hub: ") == 1, "a bar without a terminal repeats no line"


@pytest.mark.root
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_a_command_opens_no_run_but_the_one_that_it_is_asked_about(hub, tmp_path, run_dir, start):
    """The uploader of another run is at work, and its mount hangs; so does a place where runs may be staged."""
    start(LOG_AND_EXIT, run_dir, 1).succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    other, state = tmp_path / "beside" / "exp2", tmp_path / "state"
    start(LOG_AND_EXIT, other, 1, env={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_MPWRITER_EXIT_TIMEOUT": "0"}).succeed()
    living_uploader(other)

    def codes() -> list[int]:
        env = os.environ | {"XDG_STATE_HOME": str(state), "HF_HUB_OFFLINE": "1"}
        commands = [("status",), ("clean",), *((name, str(run_dir)) for name in ("status", "doctor", "logs", "stop"))]
        asked = ([sys.executable, "-m", "hf_mpwriter", *command] for command in commands)
        return [
            subprocess.run(one, env=env, cwd=run_dir.parent, timeout=DEADLINE, check=False).returncode for one in asked
        ]

    expected = codes()
    try:
        with hanging(other.parent), hanging(state):
            assert codes() == expected
    finally:
        kill_uploaders(other)
    assert expected == [0, 0, 0, 4, 0, 0], "a Hub may not be asked"
