"""`hf-mpwriter sync` of folders that no writer of ours has logged into."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from programs import DEADLINE, wait_for
from runs import check_oracle, hub_view, no_uploader
from support import event_file
from tensorboardX import SummaryWriter

from hf_mpwriter.cli.runs import spool_at
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import SUPERVISOR, Members


def sync(*words):
    """Run `hf-mpwriter sync`."""
    command = [sys.executable, "-m", "hf_mpwriter", "sync", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


def left_alone(folder) -> bool:
    """Whether no uploader is at work for a folder."""
    return not HubSink(spool_at(str(folder))).is_alive()


def test_a_folder_of_tensorboardx_is_uploaded_while_it_is_written(hub, run_dir):
    """Whole records only, each time all that is there; the second time no repository need be named."""
    writer = SummaryWriter(str(run_dir))
    writer.add_scalars("loss", {"train": 1.0, "eval": 2.0}, 1)
    writer.flush()
    (path,) = run_dir.glob("*tfevents*")
    with path.open("ab") as half:
        half.write(b"\x18\0\0\0")  # a record that has begun
    done = sync(run_dir, "--repo-id", "me/run")
    assert done.returncode == 0, done.stderr
    view = hub_view(hub)
    before = dict(view.tree(view.commits()[0]))
    assert len(before) == 3
    assert before[path.name].size == path.stat().st_size - 4
    with path.open("r+b") as half:
        half.truncate(path.stat().st_size - 4)
    writer.add_scalar("more", 1.0, 2)
    writer.close()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    again = sync(run_dir)
    assert again.returncode == 0, again.stderr
    assert view.tree(view.commits()[0])[path.name].size == path.stat().st_size > before[path.name].size
    check_oracle(run_dir, hub)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_of_another_user_is_uploaded_and_nothing_is_written_into_it(hub, run_dir, monkeypatch, tmp_path):
    """Nor is it changed in any other way; a second `sync` finds what the first one knew."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run_dir.mkdir(parents=True)
    event_file(run_dir / "events.out.tfevents.1700000000.host", 3)
    os.chown(run_dir, 12345, -1)
    before = run_dir.stat()
    for words in (("--repo-id", "me/run"), ()):
        done = sync(run_dir, *words)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: left_alone(run_dir), "the uploader leaves")
    after = run_dir.stat()
    assert (after.st_mtime_ns, after.st_nlink) == (before.st_mtime_ns, before.st_nlink)
    assert os.listdir(run_dir) == ["events.out.tfevents.1700000000.host"]
    view = hub_view(hub)
    assert set(view.tree(view.commits()[0])) == {"events.out.tfevents.1700000000.host"}


FOLLOW = """
import sys
from hf_mpwriter.cli.main import main
from hf_mpwriter.cli import folders
from hf_mpwriter.supervisor import drain
drain.ROUND, folders.LOOK_EVERY, folders.QUIET = 2.0, 0.2, 0.5
main(["sync", sys.argv[1], "--repo-id", "me/run", "--follow"])
"""


def test_follow_uploads_beside_training_and_ends_when_the_writer_has_gone(hub, run_dir):
    """What is logged meanwhile arrives while the writer lives; all of it is there in the end."""
    writer = SummaryWriter(str(run_dir))
    writer.add_scalar("loss", 1.0, 1)
    writer.flush()
    (path,) = run_dir.glob("*tfevents*")
    view = hub_view(hub)

    def held() -> int:
        tree = view.tree(view.commits()[0]) if view.commits() else {}
        return tree[path.name].size if path.name in tree else 0

    beside = subprocess.Popen([sys.executable, "-c", FOLLOW, str(run_dir)])
    try:
        for step in (2, 3):
            wait_for(lambda: held() == path.stat().st_size, "what was logged is on the Hub")
            writer.add_scalar("loss", 1.0, step)
            writer.flush()
        assert beside.poll() is None
        spool = Spool(str(run_dir))
        members = lambda: {member.name.worker for member in Members(spool).all() if member.alive}  # noqa: E731
        wait_for(lambda: SUPERVISOR in members(), "it follows when its first round is over")
        writer.close()
        assert beside.wait(DEADLINE) == 0
    finally:
        beside.kill()
        beside.wait()
    assert held() == path.stat().st_size
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    check_oracle(run_dir, hub)


@pytest.mark.parametrize("content", [b"", bytes(248)], ids=["empty", "of zero bytes"])
def test_a_finished_file_that_others_replaced_on_the_hub_is_sent_again_or_told(hub, run_dir, api, content):
    """Nothing that is not there counts as there, though the ledger knew of it: 0 is the answer only if all is sent."""
    run_dir.mkdir(parents=True)
    path = run_dir / "events.out.tfevents.1700000000.theirs"
    event_file(path, 5)
    assert sync(run_dir, "--repo-id", "me/run").returncode == 0
    where = f"tensorboard/{run_dir.name}/{path.name}"
    api.upload_file(path_or_fileobj=content, path_in_repo=where, repo_id="me/run")
    done = sync(run_dir)
    there = hub.store.read_blob("model", "me/run", where, "main")
    if content:
        assert (done.returncode, there) == (1, content), done.stderr
        assert f"{path.name}: the Hub's copy ({len(content)} bytes) is not the beginning" in done.stderr
    else:
        assert (done.returncode, there) == (0, path.read_bytes()), done.stderr
