"""`pull --follow`: a run comes from its bucket while it goes on, each file a beginning of what is logged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser

import pytest
from programs import DEADLINE, wait_for
from runs import LOG_FOR_EVER, finished, run
from support import event_file

from hf_mpwriter.cli import follow as following
from hf_mpwriter.events import framing
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.pulled import pulled_files

LOGS = LOG_FOR_EVER.replace("commit_every=0.01", "commit_every=60, live=True").replace("0.002", "0.01")
BUCKET = "me/run-live"
FOLDER = "tensorboard/exp1"
NAMES = [f"events.out.tfevents.100000000{number}.there.1.0123abcd" for number in range(4)]


def contents(folder):
    """The event files below a folder, by their paths."""
    found = (path for path in folder.rglob("*tfevents*") if path.is_file() and ".hf_mpwriter" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture
def there(tmp_path):
    """Where a follower brings the run."""
    return tmp_path / "live" / "exp1"


@pytest.fixture
def follow(there):
    """Start the command; what runs at the end is killed."""
    started = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in the background of a shell

    def begin(*options):
        command = [sys.executable, "-m", "hf_mpwriter", "pull", str(there), "--repo-id", "me/run", "--follow", *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, **pipes, text=True))
        return started[-1]

    yield begin
    signal.signal(signal.SIGINT, before)
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def put(hub, api, tmp_path):
    """Put event files of so many records into the bucket; None deletes one. What each holds is returned."""
    api.create_repo("me/run")
    api.create_bucket(BUCKET)

    def change(files, folder=FOLDER):
        held = {}
        for path, count in files.items():
            if count is not None:
                event_file(tmp_path / "made", count)
                held[path] = (tmp_path / "made").read_bytes()
        gone = [f"{folder}/{path}" for path, count in files.items() if count is None]
        added = [(data, f"{folder}/{path}") for path, data in held.items()]
        api.batch_bucket_files(BUCKET, add=added, delete=gone)
        return held

    return change


def follow_here(there, *options):
    """Follow in this process until nothing comes any more."""
    return run("pull", there, "--repo-id", "me/run", "--follow", "--until-quiet", "1", *options)


def is_whole(path):
    """Whether a file ends with a whole record."""
    with open(path, "rb") as file:
        return framing.whole_length(file.fileno()) == os.path.getsize(path)


def test_what_is_logged_is_elsewhere_within_seconds_whatever_is_killed(
    hub, api, run_dir, tmp_path, start, follow, there
):
    """The files grow in place, are a beginning at each moment, and equal the run at its end. A second is refused."""
    worker = start(LOGS, run_dir, tmp_path / "journals")
    wait_for(lambda: [one.id for one in api.list_buckets()] and list(api.list_bucket_tree(BUCKET)), "a first round")
    rng, inodes, follower = random.Random(7), {}, follow()
    for _ in range(4):
        before = contents(there) if there.exists() else {}
        wait_for(lambda: sum(map(len, contents(there).values())) > sum(map(len, before.values())), "more comes")  # noqa: B023
        for path, data in contents(there).items():
            assert (run_dir / path).read_bytes().startswith(data)
            assert is_whole(there / path)
            assert inodes.setdefault(path, os.stat(there / path).st_ino) == os.stat(there / path).st_ino
        time.sleep(rng.uniform(0, 1.5))  # a random moment, no condition
        follower.kill()
        follower.communicate()
        follower = follow()
    wait_for(lambda: "works in" in run("pull", there).output, "it holds the lock")
    refused = follow_here(there)
    assert (refused.exit_code, "works in" in refused.output) == (1, True), refused.output
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: finished(run_dir), "the end")
    wait_for(lambda: contents(there) == contents(run_dir), "all of it")
    follower.send_signal(signal.SIGINT)
    out, err = follower.communicate(timeout=DEADLINE)
    assert (follower.returncode, "came, in" in out, "Traceback" in err) == (0, True, False), err
    assert contents(there).keys() == pulled_files(Spool(str(there))).keys(), "no uploader takes them for its own"


@pytest.mark.parametrize("fault", ["/events 503 times=0", "/events 501 times=0", "/events close times=0"])
def test_without_a_feed_it_goes_by_listing(hub, put, follow, there, fault):
    """What comes later is seen within seconds."""
    hub.fault(fault)
    first = put({NAMES[0]: 3})
    follower = follow()
    wait_for(lambda: contents(there) == first, "the first")
    both = put({NAMES[0]: 9, NAMES[1]: 2})
    wait_for(lambda: contents(there) == both, "both")
    follower.send_signal(signal.SIGTERM)
    assert follower.communicate(timeout=DEADLINE)[0].count("in 2 files") == 1


def test_a_late_request_and_a_deleted_file_take_nothing_away(put, there):
    """What is here stays, whatever the bucket has now; a later file appears when the earlier one is whole again."""
    held = put({NAMES[0]: 50})
    assert follow_here(there).exit_code == 0
    put({NAMES[0]: 3})
    assert follow_here(there).exit_code == 0
    assert contents(there) == held
    held |= put({NAMES[0]: None, NAMES[1]: 5})
    assert follow_here(there).exit_code == 0
    assert contents(there) == held


def test_a_torn_tail_is_completed_and_another_file_is_swapped_or_left(put, there):
    """A pulled file that the bucket's does not continue is replaced, one that was not pulled is named."""
    first = put({NAMES[0]: 5, f"rank_00001/{NAMES[0]}": 5})
    follow_here(there)
    os.truncate(there / NAMES[0], len(first[NAMES[0]]) - 3)
    (there / f"rank_00001/{NAMES[0]}").write_bytes(first[NAMES[0]][:20] + b"x" * 40)
    inode = os.stat(there / NAMES[0]).st_ino
    (there / NAMES[1]).write_bytes(b"mine")
    held = put({NAMES[0]: 9, NAMES[1]: 9, f"rank_00001/{NAMES[0]}": 9})
    result = follow_here(there)
    assert f"{NAMES[1]}: it differs" in result.output
    assert contents(there) == held | {NAMES[1]: b"mine"}
    assert os.stat(there / NAMES[0]).st_ino == inode


def test_nothing_of_a_stranger_leads_out(put, there, tmp_path):
    """A path upwards, a spool, a run of its own, a name that is too long, what is no event file, and garbage."""
    put({NAMES[0]: 1})
    other = there / "rank_00009"
    Spool(str(other)).create()
    before = sorted(path for path in tmp_path.rglob("*") if "hub" not in path.parts)
    paths = [f"a/{'x' * 260}/{NAMES[0]}", f".hf_mpwriter/{NAMES[0]}", f"rank_00009/{NAMES[1]}", "model.safetensors"]
    put(dict.fromkeys(paths, 3))
    result = follow_here(there)
    assert result.exit_code == 0, result.output
    new = {path for path in tmp_path.rglob("*tfevents*") if "hub" not in path.parts} - set(before)
    assert new == {there / NAMES[0]}
    assert "is another run here" in result.output


def test_without_a_bucket_the_repository_is_pulled_and_one_line_says_so(hub, api, there, tmp_path, monkeypatch):
    """404, for a while; what is committed comes, and grows in its place."""
    monkeypatch.setattr(following, "PULL_EVERY", 0.1)
    api.create_repo("me/run")
    event_file(tmp_path / "made", 3)
    api.upload_file(path_or_fileobj=str(tmp_path / "made"), path_in_repo=f"{FOLDER}/{NAMES[0]}", repo_id="me/run")
    result = follow_here(there)
    assert (result.exit_code, result.output.count("is not there, or this token")) == (0, 1), result.output
    assert contents(there) == {NAMES[0]: (tmp_path / "made").read_bytes()}


def test_a_board_shows_what_comes_and_ends_with_the_follower(put, there, tmp_path, monkeypatch):
    """The browser gets its address, which answers; later nobody listens there."""
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}\n')
    browser.chmod(0o755)
    monkeypatch.setattr(webbrowser, "open", webbrowser.GenericBrowser([str(browser), "%s"]).open)
    put({NAMES[0]: 3})
    result = follow_here(there, "--open")
    assert result.exit_code == 0, result.output
    url = seen.read_text().strip()
    assert f"TensorBoard: {url}" in result.output
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(url, timeout=10)  # noqa: S310 - http of this machine


def test_options_of_a_follower_need_follow(there):
    """They mean nothing without it."""
    for options in (["--open"], ["--until-quiet", "3"]):
        result = run("pull", there, *options)
        assert (result.exit_code, "go with --follow" in result.output) == (2, True)
