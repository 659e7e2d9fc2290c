"""The commands on real runs: status, sync, verify."""

from __future__ import annotations

import json

import pytest
from programs import wait_for
from runs import LOG_AND_EXIT, check_oracle, no_uploader, run


def test_a_local_run_can_be_given_a_destination_later(hub, run_dir, start):
    """`sync --repo-id` uploads what a SummaryWriter without destination has written; status and verify agree."""
    start(
        "import sys\nfrom hf_mpwriter import SummaryWriter\nSummaryWriter(sys.argv[1]).add_scalar('a', 1, 1)", run_dir
    )
    wait_for(lambda: list(run_dir.glob("*tfevents*")), "the event file")
    result = run("sync", run_dir, "--repo-id", "me/run")
    assert result.exit_code == 0, result.output
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert len(check_oracle(run_dir, hub).files) == 1
    status = json.loads(run("status", run_dir, "--json").output)
    assert status["files"][0]["bytes"] == status["files"][0]["on_hub"] > 0
    assert run("verify", run_dir).exit_code == 0
    assert "recorded for" in run("sync", run_dir, "--repo-id", "me/other").output


def test_verify_fails_when_something_is_missing(hub, run_dir, start):
    """A record beyond the acknowledged length: verify names the file and what to do."""
    start(LOG_AND_EXIT, run_dir, 10).succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    (path,) = run_dir.glob("*tfevents*")
    path.write_bytes(path.read_bytes() * 2)
    result = run("verify", run_dir)
    assert result.exit_code == 1
    assert "hf-mpwriter sync" in result.output
    assert run("verify", run_dir, "--running").exit_code == 0


def test_verify_without_access_says_so_and_nothing_of_the_data(hub, run_dir, start, monkeypatch):
    """A wrong token, a repository that is hidden or gone, a Hub that is down, and offline: one line each."""
    start(LOG_AND_EXIT, run_dir, 10).succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")

    def line(words: str) -> None:
        result = run("verify", run_dir)
        assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output
        assert result.output.startswith("Error: Nothing was compared"), result.output
        assert words in result.output

    hub.set_token("hf_another")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    line("Mend HF_TOKEN")
    monkeypatch.delenv("HF_TOKEN")
    line("hf auth login")
    hub.stop()
    line("the Hub cannot be reached")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set: nothing was compared" in run("verify", run_dir).output


def test_verify_of_a_run_that_was_never_sent_says_so(hub, run_dir, start):
    """There is no repository yet: nothing is lost, and `sync` creates it."""
    start(LOG_AND_EXIT, run_dir, 10, env={"HF_HUB_OFFLINE": "1"}).succeed()
    result = run("verify", run_dir)
    assert (result.exit_code, "nothing is known to have been sent" in result.output) == (1, True), result.output


def test_verify_of_another_content_does_not_advise_to_upload_what_is_missing(hub, api, run_dir, start):
    """Nothing is missing: another writer has replaced the Hub's copy."""
    start(LOG_AND_EXIT, run_dir, 10).succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    (path,) = run_dir.glob("*tfevents*")
    other = bytes(path.stat().st_size)
    api.upload_file(path_or_fileobj=other, path_in_repo=f"tensorboard/exp1/{path.name}", repo_id="me/run")
    result = run("verify", run_dir)
    assert (result.exit_code, "no upload replaces them" in result.output) == (1, True), result.output
    assert "what is missing" not in result.output


LOCAL = """
import sys
from hf_mpwriter import SummaryWriter
with SummaryWriter(sys.argv[1]) as writer:
    for step in range(50):
        writer.add_scalar("loss", 1.0, step)
"""


@pytest.mark.parametrize(("damage", "code", "words"), [(True, 3, "is damaged at offset"), (False, 0, "incomplete")])
def test_damage_is_told_and_has_an_exit_code(hub, run_dir, start, damage, code, words):
    """What is behind it is on no Hub; an incomplete last record is ordinary after a kill."""
    start(LOCAL, run_dir).succeed()
    (path,) = run_dir.glob("*tfevents*")
    data = path.read_bytes()
    path.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:] if damage else data[:-1])
    for name, *options in (["status"], ["sync", "--repo-id", "me/run"], ["verify"]):
        result = run(name, run_dir, *options)
        wanted = 4 if name == "status" and damage else code
        assert (result.exit_code, words in result.output) == (wanted, True), (name, result.output)
        wait_for(lambda: no_uploader(run_dir), "the uploader leaves")


def test_sync_gives_up_after_its_timeout_and_gives_the_reason(run_dir, start, monkeypatch):
    """With the Hub down: exit code 1, the reason, and nothing counts as missing that the Hub was known to hold."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start(LOG_AND_EXIT, run_dir, 10, env={"HF_MPWRITER_EXIT_TIMEOUT": "0"}).succeed()
    result = run("sync", run_dir, "--timeout", "5")
    assert result.exit_code == 1
    assert "The Hub could not be asked: the Hub cannot be reached at http://127.0.0.1:9. By what" in result.output
    assert "are not there yet" in result.output


def test_sync_of_what_is_known_to_be_there_counts_nothing_missing(hub, run_dir, start):
    """With the Hub down it is not certain, so it is no success; but nothing is reported as missing."""
    start(LOG_AND_EXIT, run_dir, 10).succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    hub.stop()
    result = run("sync", run_dir, "--timeout", "2")
    assert (result.exit_code, "By what it last answered, everything is there" in result.output) == (1, True)
    assert result.output.count("on the Hub: ") == 1, "a bar without a terminal repeats no line"


SKEWED = """
import sys, time
real = time.time
time.time = lambda: real() + 1000
from hf_mpwriter.cli.main import main
main(["sync", sys.argv[1], "--timeout", "150"])
"""


def test_sync_ends_although_clocks_differ(hub, run_dir, start):
    """With the clock of another host, or one that was set meanwhile, only a new request to the Hub counts."""
    start(LOG_AND_EXIT, run_dir, 5).succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    code, out, err = start(SKEWED, run_dir).finish()
    assert (code, "are on the Hub" in out) == (0, True), err
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
