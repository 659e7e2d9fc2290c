"""`pull`: a run comes back from the Hub; nothing here or there is overwritten."""

from __future__ import annotations

import json
import os
import posixpath
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from attached import quarantined, write
from click.testing import Result
from programs import wait_for
from runs import LOG_AND_EXIT, check_oracle, no_uploader, run
from support import event_file, keys

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.pulled import pulled_files

EVERYTHING = LOG_AND_EXIT.replace("logdir=", "repo_allow_patterns=None, logdir=")
NAME = "events.out.tfevents.1000000000.there.1.0123abcd"
FOLDER = "tensorboard/exp1"


def pull(run_dir, *options):
    """Run `hf-mpwriter pull` of the repository in this process."""
    return run("pull", run_dir, "--repo-id", "me/run", *options)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Inode and content of each file of a run directory, without the spool."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".hf_mpwriter" not in path.parts)
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes()) for path in files}


def on_its_way(run_dir, directory: str) -> bool:
    """Whether a pull is bringing a file of a directory."""
    return any(run_dir.glob(f".hf_mpwriter/pulling/.cache/**/{directory}/*.incomplete"))


@pytest.fixture
def stored(hub, api, tmp_path):
    """Store a file of a run on the Hub; return its content."""
    api.create_repo("me/run")

    def store(name: str, count: int, tag: str = "loss") -> bytes:
        path = tmp_path / "stored"
        event_file(path, count, tag)
        api.upload_file(
            path_or_fileobj=str(path), path_in_repo=posixpath.normpath(f"{FOLDER}/{name}"), repo_id="me/run"
        )
        return path.read_bytes()

    return store


def test_what_is_here_stays(hub, run_dir, stored):
    """Equal and longer files are not touched, beginnings are extended, and what differs is named."""
    names = [f"events.out.tfevents.100000000{n}.there.1.0123abcd" for n in range(5)]
    contents = [stored(f"rank_00001/{name}", 10 + n, f"tag{n}") for n, name in enumerate(names)]
    here = run_dir / "rank_00001"
    here.mkdir(parents=True)
    equal, longer, beginning, differing, _ = contents
    (here / names[0]).write_bytes(equal)
    (here / names[1]).write_bytes(longer + longer)
    (here / names[2]).write_bytes(beginning[:300])
    (here / names[3]).write_bytes(b"x" + differing[1:200])
    (here / names[4]).mkdir()
    before = tree(run_dir)
    result = pull(run_dir)
    assert (result.exit_code, result.output.count("it differs from the Hub's copy")) == (1, 1), result.output
    assert "2 of 5 files were not pulled" in result.output
    assert f"rank_00001/{names[4]}: something that is no regular file is in its place" in result.output
    assert pulled_files(Spool(str(run_dir))) == {f"rank_00001/{names[2]}": len(beginning)}
    after = tree(run_dir)
    assert after.pop(f"rank_00001/{names[2]}")[1] == beginning
    del before[f"rank_00001/{names[2]}"]
    assert after == before
    (here / names[3]).unlink()
    (here / names[4]).rmdir()
    assert pull(run_dir).exit_code == 0
    assert [tree(run_dir)[f"rank_00001/{name}"][1] for n, name in enumerate(names) if n != 1] == [
        content for n, content in enumerate(contents) if n != 1
    ]
    status = json.loads(run("status", run_dir, "--json").output)
    assert [(file["on_hub"] > 0, file["pulled"]) for file in status["files"]] == [(True, n > 1) for n in range(5)]
    assert not list(run_dir.glob(".hf_mpwriter/pulling"))


def test_only_some_workers(hub, run_dir, stored):
    """Those of a rank and its children; what names no rank belongs to rank 0. A spool that is there is not followed."""
    for place in ("", "many/a/", "proc_00001/", "rank_00002/", "rank_00002_Process-1/many/b/", "rank_00003/"):
        stored(place + NAME, 1)
    stored(".hf_mpwriter/run.json", 1)
    assert pull(run_dir, "--worker", "rank_00002").exit_code == 0
    assert {os.path.dirname(path) for path in tree(run_dir)} == {"rank_00002", "rank_00002_Process-1/many/b"}
    assert pull(run_dir, "--worker", "main", "--worker", "rank_00003").exit_code == 0
    assert len(tree(run_dir)) == 6
    assert b"me/run" in (run_dir / ".hf_mpwriter" / "run.json").read_bytes()


@pytest.mark.parametrize(("times", "code"), [(0, 1), (1, 0)])
def test_a_corrupted_download_is_refused(hub, run_dir, stored, times, code):
    """Nothing of it is kept, and the file is named; if it comes right the second time, all is well."""
    content = stored(NAME, 3)
    other = stored("rank_00001/" + NAME, 2)
    hub.fault(f"GET /resolve/[^/]+/{FOLDER}/events 200 times={times} body={'x' * len(content)}")
    result = pull(run_dir)
    assert result.exit_code == code, result.output
    assert (f"{NAME}: what came does not have the digest" in result.output) == bool(code)
    found = {path: data for path, (_, data) in tree(run_dir).items()}
    assert found == {f"rank_00001/{NAME}": other} | ({} if code else {NAME: content})
    assert HubSink(Spool(str(run_dir))).ledger().files.keys() == found.keys()
    assert not on_its_way(run_dir, "exp1")


def test_a_connection_that_breaks_is_taken_up_again(hub, run_dir, stored):
    """Within one pull, and with a Hub that answers errors for a while."""
    content = stored(NAME, 20)
    hub.fault("GET /resolve/ 503 times=1")
    hub.fault("GET /resolve/ reset times=1 when=after")
    result = pull(run_dir)
    assert (result.exit_code, result.stderr.count("\n")) == (0, 1), result.output
    assert tree(run_dir)[NAME][1] == content


def kill_a_pull(run_dir) -> None:
    """Start a pull, and kill it while a file of rank 1 is on its way."""
    command = [sys.executable, "-m", "hf_mpwriter", "pull", str(run_dir), "--repo-id", "me/run"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: on_its_way(run_dir, "rank_00001"), "a part of the file")
    finally:
        process.kill()
        process.wait()


def test_a_pull_that_was_killed_goes_on(hub, run_dir, stored):
    """SIGKILL in mid-transfer: nothing stands at the path; the next one brings that file, and keeps those that came."""
    content, first = stored(f"rank_00001/{NAME}", 10_000), stored(NAME, 5)
    hub.fault("GET /resolve/.*rank_00001 slow seconds=40 times=1")
    kill_a_pull(run_dir)
    before = tree(run_dir)
    assert {path: data for path, (_, data) in before.items()} == {NAME: first}
    hub.clear_faults()
    assert "1 file (" in pull(run_dir).output
    after = tree(run_dir)
    assert after.pop(f"rank_00001/{NAME}")[1] == content
    assert after == before
    assert not list(run_dir.glob(".hf_mpwriter/pulling"))


def test_a_pull_takes_no_file_that_differs_for_one_of_the_hub_wherever_it_is_killed(hub, run_dir, stored):
    """So `verify` names what is only here, and no other machine as its writer; what was taken for that before, too."""
    for place in ("", "rank_00001/", "rank_00002/"):
        stored(place + NAME, 10_000)
    differing = run_dir / "rank_00002" / NAME
    event_file(differing, 20, "only here")
    hub.fault("GET /resolve/.*rank_00001 slow seconds=40 times=1")
    kill_a_pull(run_dir)
    hub.clear_faults()
    assert pulled_files(Spool(str(run_dir))).keys() == {NAME, f"rank_00001/{NAME}"}
    result = run("verify", run_dir)
    assert (result.exit_code, result.output.count("written by another machine")) == (1, 1), result.output
    assert f"rank_00002/{NAME}: the Hub's copy" in result.output
    differing.unlink()
    assert pull(run_dir).exit_code == 0
    assert f"rank_00002/{NAME}" in pulled_files(Spool(str(run_dir)))
    event_file(differing, 20, "only here")
    assert pull(run_dir).exit_code == 1
    assert pulled_files(Spool(str(run_dir))).keys() == {NAME, f"rank_00001/{NAME}"}


def test_two_pulls_at_once_bring_all_once(hub, run_dir, stored):
    """Each task of a node pulls before it starts."""
    contents = {f"rank_0000{n}/{NAME}": stored(f"rank_0000{n}/{NAME}", 2000 * n) for n in range(1, 4)}
    command = [sys.executable, "-m", "hf_mpwriter", "pull", str(run_dir), "--repo-id", "me/run"]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert {path: data for path, (_, data) in tree(run_dir).items()} == contents


def test_what_there_is_not(hub, api, run_dir, monkeypatch):
    """No repository, an empty one, another one than before, no name, and offline: a line each, and no spool."""
    nothing = pull(run_dir)
    assert (nothing.exit_code, "is not there yet, or this token may not see it" in nothing.output) == (4, True)
    api.create_repo("me/run")
    result = pull(run_dir)
    assert (result.exit_code, result.output.endswith("exp1 has nothing of this run.\n")) == (4, True), result.output
    assert not run_dir.exists()
    assert "--repo-id NAME" in run("pull", run_dir).output
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "nothing was pulled" in pull(run_dir).output


def pasted(output: str) -> Result:
    """Run the command in which an output ends."""
    return run(*shlex.split(output.rpartition(": hf-mpwriter ")[2]))


def test_a_name_that_the_repository_does_not_have_is_answered_with_those_that_it_has(hub, run_dir, stored):
    """Exit code 4, the nearest first, and the command that brings it; of workers, too. A run that is here is there."""
    for name in ("zebra", "exp1_old", *(f"other{number}" for number in range(5))):
        stored(f"../{name}/{NAME}", 1)
    result = pull(run_dir.with_name("exp2"), "--worker", "rank_00001")
    assert (result.exit_code, result.stdout) == (4, ""), result.output
    assert "tensorboard/exp2 has nothing of this run. Runs in tensorboard: exp1_old, " in result.stderr
    assert " and 2 more. To pull the first: " in result.stderr
    assert pasted(result.stderr).exit_code == 0
    assert (run_dir.with_name("exp1_old") / NAME).exists()
    stored(NAME, 1)
    result = pull(run_dir, "--worker", "rank_00001")
    assert (result.exit_code, "has nothing of rank_00001, but: main." in result.output) == (4, True)
    spool = Spool(str(run_dir.with_name("exp2")))
    spool.create()
    spool.record_destination(Destination(hub.endpoint, "me/run", path_in_repo="tensorboard/exp2"))
    hub.fault("GET /tree/[^/]+/tensorboard$ 503 times=0")
    result = pull(run_dir.with_name("exp2"))
    assert (result.exit_code, result.stderr.endswith("nothing of this run.\n")) == (4, True), "what only helps may fail"
    event_file(run_dir.with_name("exp2") / NAME, 1)
    result = pull(run_dir.with_name("exp2"))
    assert (result.exit_code, "has nothing of this run yet.\n" in result.stderr) == (0, True), result.output


AS_LIGHTNING = """
import sys
from hf_mpwriter import SummaryWriter
with SummaryWriter(sys.argv[1], repo_id="me/run", path_in_repo=sys.argv[2]) as writer:
    last = writer.last_step("loss")
    for step in range(3 if last is None else last + 1, 6):
        writer.add_scalar("loss", step, step)
print(last, writer.url)
"""


def test_a_run_in_a_folder_of_a_folder_comes_to_a_directory_of_that_path(hub, tmp_path, start):
    """As Lightning has its versions: another name is answered with the command, and the run goes on in its folder."""
    first = tmp_path / "here" / "lruns" / "exp1" / "version_0"
    machines = [{"XDG_CACHE_HOME": str(tmp_path / f"cache{number}")} for number in range(3)]
    start(AS_LIGHTNING, first, "tensorboard/exp1", env=machines[0]).succeed()
    wait_for(lambda: no_uploader(first), "the uploader leaves")
    there = tmp_path / "there" / "lruns"
    for wrong in ("exp1/version_1", "exp2/version_0", "version_0"):
        result = pull(there / wrong)
        assert (result.exit_code, "Runs in tensorboard: exp1/version_0. To pull" in result.output) == (4, True)
    assert not there.exists()
    result = pasted(pull(there / "exp2" / "version_0").output)
    assert (result.exit_code, (there / "exp1" / "version_0").exists()) == (0, True), result.output
    second, third = there / "exp1" / "version_0", tmp_path / "third" / "exp1" / "version_0"
    for run_dir, machine, above in ((second, machines[1], "tensorboard/exp1"), (third, machines[2], "tensorboard")):
        assert pull(run_dir).exit_code == 0
        last, url = start(AS_LIGHTNING, run_dir, above, env=machine).succeed().split()
        assert (last, url.rpartition("/main/")[2]) == ("5", "tensorboard/exp1/version_0")
        wait_for(lambda run_dir=run_dir: no_uploader(run_dir), "the uploader leaves")
        for command in ("status", "verify"):
            result = run(command, run_dir)
            assert result.exit_code == 0, result.output
        check_oracle(run_dir, hub, folder="tensorboard/exp1/version_0")


def test_a_directory_of_a_run_does_not_come_as_a_run(hub, run_dir, stored):
    """Of a rank, or of a child: it is named where it is."""
    for place in ("", "many/a/", "rank_00001/"):
        stored(f"{place}{NAME}", 1)
    stored(f"../exp2/rank_00001/{NAME}", 1)
    for part in (run_dir / "many" / "a", run_dir / "rank_00001", run_dir.with_name("exp2") / "rank_00001"):
        result = pull(part)
        assert (result.exit_code, "in tensorboard: exp1, exp2. To pull" in result.output) == (4, True), result.output


def test_a_run_in_a_folder_of_its_own_comes_to_a_directory_of_that_path(hub, tmp_path, stored):
    """Another machine knows only the names on the Hub: the longest that fits is meant, and nothing is guessed."""
    for name in ("exp1", "sweepB_exp1", "x_sweepB_exp1"):
        stored(f"../{name}/{NAME}", 1, tag=name)
    run_dir = tmp_path / "x" / "sweepB" / "exp1"
    hub.fault("GET /tree/[^/]+/tensorboard$ 403 times=1")
    assert (pull(run_dir).exit_code, run_dir.exists()) == (1, False)
    assert pull(run_dir).exit_code == 0
    assert Spool(str(run_dir)).destination().path_in_repo == "tensorboard/x_sweepB_exp1"
    assert keys(run_dir / NAME)[0][0] == "x_sweepB_exp1"
    asked = Destination(hub.endpoint, "me/run", path_in_repo=FOLDER)
    assert Spool(str(run_dir)).record_destination(asked).path_in_repo == "tensorboard/x_sweepB_exp1"
    assert pull(tmp_path / "sweepA" / "exp1").exit_code == 0
    assert keys(tmp_path / "sweepA" / "exp1" / NAME)[0][0] == "exp1"


def test_a_worker_that_lives_is_left_alone(hub, run_dir, stored, start):
    """Files of its directory are not brought while it writes; it is named."""
    stored(NAME, 5)
    stored("rank_00001/" + NAME, 5)
    writing = start(
        "import sys, time\nfrom hf_mpwriter import SummaryWriter\n"
        "SummaryWriter(sys.argv[1]).add_scalar('a', 1, 1)\ntime.sleep(600)",
        run_dir,
    )
    wait_for(lambda: list(run_dir.glob("*tfevents*")), "the event file")
    result = pull(run_dir)
    assert (result.exit_code, "a worker that lives" in result.output) == (1, True), result.output
    assert NAME not in tree(run_dir)
    assert f"rank_00001/{NAME}" in tree(run_dir)
    writing.process.kill()
    writing.process.wait()
    assert pull(run_dir).exit_code == 0


def test_a_pulled_attachment_is_replaced_only_if_the_run_has_sent_it(hub, api, tmp_path, start):
    """What others have put into its folder stays as it is there, though it came and was changed here."""
    one, two = tmp_path / "a" / "exp1", tmp_path / "b" / "exp1"
    write(one, "state.txt", b"first")
    start(EVERYTHING, one, 1).succeed()
    wait_for(lambda: no_uploader(one), "the uploader leaves")
    api.upload_file(path_or_fileobj=b"theirs", path_in_repo=f"{FOLDER}/notes.txt", repo_id="me/run")
    assert pull(two).exit_code == 0
    for name in ("state.txt", "notes.txt"):
        write(two, name, b"second")
    start(EVERYTHING, two, 1).succeed()
    wait_for(lambda: no_uploader(two), "the uploader leaves")
    contents = [hub.store.read_blob("model", "me/run", f"{FOLDER}/{name}") for name in ("state.txt", "notes.txt")]
    assert contents == [b"second", b"theirs"]
    assert quarantined(two).keys() == {"notes.txt"}


def test_verify_knows_the_files_of_other_machines(hub, tmp_path, start):
    """Two machines with a run directory each: what the other one writes is no problem, here or pulled."""
    one, two = tmp_path / "a" / "exp1", tmp_path / "b" / "exp1"

    def machine(rank: int) -> dict[str, str]:
        return {"RANK": str(rank), "WORLD_SIZE": "2", "XDG_CACHE_HOME": str(tmp_path / f"cache{rank}")}

    for run_dir, rank in ((one, 0), (two, 1)):
        start(LOG_AND_EXIT, run_dir, 10, env=machine(rank)).succeed()
    assert pull(one).exit_code == 0
    start(LOG_AND_EXIT, two, 10, env=machine(1)).succeed()
    for run_dir in (one, two):
        wait_for(lambda run_dir=run_dir: no_uploader(run_dir), "the uploader leaves")
        result = run("verify", run_dir)
        assert (result.exit_code, "written by another machine" in result.output) == (0, True), result.output
    min(two.glob("rank_00001/*tfevents*")).unlink()
    result = run("verify", two)
    assert (result.exit_code, "has no local file" in result.output) == (1, True), result.output
