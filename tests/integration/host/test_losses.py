"""What the disk has refused for good is told of the run until a person has seen it, whatever removes member files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from programs import run_python, succeed, wait_for
from runs import finished, no_uploader, run, sync
from supervised import RUN

from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.losses import losses, write_down
from hf_mpwriter.spool.workers.members import Members

FULL = """
import os, signal, sys
from hf_mpwriter import HFSummaryWriter, SummaryWriter
place, end = sys.argv[1:3]
make = SummaryWriter if end == "local" else lambda logdir, **more: HFSummaryWriter("me/run", logdir=logdir, **more)
writer = make(logdir=f"{place}/exp1", memory_limit=4096)
writer.add_scalar("loss", 1.0, 0)
with open(f"{place}/filler", "ab", buffering=0) as file:
    try:
        while True: file.write(bytes(1024))
    except OSError: pass
for step in range(1, 2000):
    writer.add_scalar("loss", 1.0, step)
if end == "killed":
    writer._worker.keep_house()
    print(writer.dropped + writer.status().in_memory, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
writer.close()
print(writer.dropped, flush=True)
"""


def told(result) -> int:
    """The number of lost records that a command tells, 0 if it tells none."""
    found = re.search(r"lost: (?:up to )?(\d+) records? of main since", result.output)
    return int(found[1]) if found else 0


@pytest.mark.root
@pytest.mark.parametrize("end", ["closed", "killed"])
def test_a_loss_is_told_until_it_was_seen(hub, small_disk, end):
    """Also after all that is on disk is on the Hub, and its member file is gone."""
    run_dir = small_disk / "exp1"
    ended = run_python(FULL, small_disk, end)
    lost = int(ended.stdout)
    assert lost > 100, ended
    (small_disk / "filler").unlink()
    first = sync(run_dir)
    assert (first.exit_code, told(first)) == (3, lost), first.output
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert not [name for name in os.listdir(Spool(str(run_dir)).members) if not name.endswith(".lost")]
    for command, code in (("status", 4), ("verify", 3)):
        again = run(command, run_dir)
        assert (again.exit_code, told(again)) == (code, lost), again.output
    (loss,) = json.loads(run("status", run_dir, "--json").stdout)["lost"]
    assert (loss["worker"], loss["records"], loss["why"]) == ("main", lost, "No space left on device")
    assert loss["is_exact"] == (end == "closed")
    assert run("status", run_dir, "--seen").exit_code == 0
    for command in ("status", "verify"):
        after = run(command, run_dir)
        assert (after.exit_code, "lost:" in after.output) == (0, False), after.output
    assert finished(run_dir), "no trace is left in the spool"


@pytest.mark.root
def test_a_loss_goes_with_the_run(hub, api, small_disk, tmp_path, monkeypatch):
    """Who pulls it is told until they have seen it, whatever others have seen; it is no work for an uploader."""
    first, second = small_disk / "exp1", tmp_path / "there" / "exp1"
    lost = int(succeed(FULL, small_disk, "closed"))
    (small_disk / "filler").unlink()
    assert run("status", first, "--seen").exit_code in (0, 3), "before or after its last commit"
    assert sync(first).exit_code == 0
    wait_for(lambda: no_uploader(first), "the uploader leaves")
    (name,) = os.listdir(first / "_lost")
    assert f"tensorboard/exp1/_lost/{name}" in api.list_repo_files("me/run")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pulled = run("pull", second, "--repo-id", "me/run")
    assert (pulled.exit_code, told(pulled)) == (0, lost), pulled.output
    for command, code in (("status", 4), ("verify", 3), ("sync", 3)):
        shown = run(command, second)
        assert (shown.exit_code, told(shown)) == (code, lost), shown.output
    (loss,) = json.loads(run("status", second, "--json").stdout)["lost"]
    assert (loss["worker"], loss["records"], loss["why"]) == ("main", lost, "No space left on device")
    assert run("status", second, "--seen").exit_code == 0
    for run_dir in (first, second):
        for words in (["pull", "--repo-id", "me/run"], ["status"], ["verify"]):
            shown = run(words[0], run_dir, *words[1:])
            assert (shown.exit_code, told(shown)) == (0, 0), shown.output


def written(run_dir) -> list[int]:
    """The counts that were written down."""
    return sorted(json.loads(path.read_text())["records"] for path in run_dir.glob("_lost/*.json"))


def test_what_is_written_down_grows_with_the_count(tmp_path):
    """Of a worker that lives, in another file, once it has doubled; what is no such file says nothing."""
    from hf_mpwriter import SummaryWriter

    writer, spool = SummaryWriter(tmp_path / "run"), Spool(str(tmp_path / "run"))
    writer.add_scalar("loss", 1.0, 0)
    looks = []
    for count in (5, 5, 3, 0):
        writer._worker.files.count_lost(count)
        writer._worker.keep_house()
        looks.append(Members(spool).all())
        write_down(spool, looks[-1])
    writer._worker.files.count_lost(1)
    writer.close()
    write_down(spool, looks[0])
    assert written(tmp_path / "run") == [5, 10, 14]
    assert [loss.records for loss in losses(spool)] == [14]
    for path in (tmp_path / "run" / "_lost").iterdir():
        if not path.name.endswith(".14.json"):
            path.unlink()
    (file,) = (tmp_path / "run" / "_lost").iterdir()
    whole = json.loads(file.read_text())
    for fields in ({"since": 1e300}, {"file": "../run.json"}, {"records": -1}, {"records": "many"}):
        file.write_text(json.dumps(whole | fields))
        assert losses(spool) == []
    file.write_text(json.dumps(whole | {"why": "\x1b[31mred" + "!" * 1000}))
    assert losses(spool)[0].why.isprintable()
    assert len(losses(spool)[0].why) < 100
    for found in (whole | {"why": "!" * 5000}, whole | {"file": f"main.h-1.{'1' * 5000}.1-1"}):
        file.write_text(json.dumps(found))
        assert losses(spool) == []
    name = f"main.h-1.{'1' * 200}.1-1"
    file.with_name(f"{name}.5.json").write_text(json.dumps(whole | {"file": name, "records": 5}))
    assert losses(spool) == []


def test_what_was_seen_stays_seen_whatever_becomes_of_its_file(tmp_path):
    """A person who removes what was written down is not told of it again, nor is what others have seen forgotten."""
    from hf_mpwriter import SummaryWriter

    spool = Spool(str(tmp_path / "run"))
    for count in (5, 7):
        writer = SummaryWriter(tmp_path / "run")
        writer.add_scalar("loss", 1.0, 0)
        writer._worker.files.count_lost(count)
        writer.close()
        assert [loss.records for loss in losses(spool)] == [count]
        assert run("status", tmp_path / "run", "--seen").exit_code == 0
        kept = {path: path.read_bytes() for path in (tmp_path / "run" / "_lost").iterdir()}
        for path in kept:
            path.unlink()
    for path, content in kept.items():
        path.write_bytes(content)
    assert losses(spool) == []


@pytest.mark.root
def test_the_end_of_a_later_attempt_and_hf_mpwriter_run_tell_it(hub, small_disk):
    """They tell what an earlier attempt has lost."""
    lost = int(succeed(FULL, small_disk, "closed"))
    (small_disk / "filler").unlink()
    source = (
        "import sys; from hf_mpwriter import HFSummaryWriter\n"
        "HFSummaryWriter('me/run', logdir=sys.argv[1]).add_scalar('later', 1.0, 0)"
    )
    command = [*RUN, "--", sys.executable, "-c", source, str(small_disk / "exp1")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    of_run = [line for line in ended.stderr.splitlines() if line.startswith("hf-mpwriter run: ")]
    of_worker = [line for line in ended.stderr.splitlines() if line not in of_run]
    for lines in (of_run, of_worker):
        assert f"lost: {lost} records of main since" in "\n".join(lines), ended.stderr
    assert " that the disk has taken of " in ended.stderr


@pytest.mark.root
def test_a_local_run_keeps_what_it_has_lost(small_disk):
    """No uploader comes, and its member file goes when the worker leaves."""
    lost = int(succeed(FULL, small_disk, "local"))
    shown = run("status", small_disk / "exp1")
    assert (shown.exit_code, told(shown)) == (4, lost), shown.output
    (small_disk / "filler").unlink()
    assert run("status", small_disk / "exp1", "--seen").exit_code == 0


TWICE = """
import os, shutil, sys
from hf_mpwriter import SummaryWriter
from hf_mpwriter.spool.workers.losses import write_down
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import failpoints
writer = SummaryWriter(sys.argv[1], memory_limit=0)
home = writer._worker.files
def refuse():
    raise OSError(28, "No space left on device")
def lose(count):
    home.directory, directory = refuse, home.directory
    for step in range(count):
        writer.add_scalar("loss", 1.0, step)
    home.directory = directory
    writer.flush()
    writer.add_scalar("there", 1.0, 0)
lose(3)
writer.close()
lose(4)
if sys.argv[2] != "closes":
    writer._worker.keep_house()
    path = writer._worker.membership._joined.file.files[0].path
    if sys.argv[2] == "was sent":
        write_down(writer._worker.membership.spool, Members(writer._worker.membership.spool).all())
    if sys.argv[2] in ("rejoins", "was sent"):
        os.unlink(path)
    else:  # as where a mount is made anew, and dies
        os.replace(shutil.copy(path, f"{sys.argv[1]}/copy"), path)
        step = "members.file.unlink" if sys.argv[2] == "cannot remove" else "members.file.rename"
        failpoints.armed[step] = "eio", 1
    writer._worker.keep_house()
print("lost", flush=True)
writer.close()
"""


@pytest.mark.parametrize("how", ["closes", "rejoins", "cannot remove", "cannot join", "was sent"])
def test_a_loss_counts_once(tmp_path, how):
    """A writer is used again, or a member file goes and is written anew, or not, refuses to go, or was sent."""
    succeed(TWICE, tmp_path / "run", how)
    assert sum(loss.records for loss in losses(Spool(str(tmp_path / "run")))) == 7
    assert run("status", tmp_path / "run", "--seen").exit_code == 0
    assert not losses(Spool(str(tmp_path / "run")))


def test_what_a_living_worker_loses_is_seen_up_to_then(tmp_path):
    """It tells again what is lost from then on; the count is not forgotten when the worker leaves."""
    from hf_mpwriter import SummaryWriter

    writer, spool = SummaryWriter(tmp_path / "run"), Spool(str(tmp_path / "run"))
    writer.add_scalar("loss", 1.0, 0)
    writer._worker.files.count_lost(5)
    writer._worker.keep_house()
    assert [loss.records for loss in losses(spool)] == [5]
    assert run("status", tmp_path / "run", "--seen").exit_code == 0
    assert not losses(spool)
    writer._worker.files.count_lost(2)
    writer.close()
    assert [loss.records for loss in losses(spool)] == [2]
    assert run("status", tmp_path / "run", "--seen").exit_code == 0
    assert not losses(spool)
