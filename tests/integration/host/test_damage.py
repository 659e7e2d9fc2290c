"""Damage in event files of this disk: told with file, offset and size; what is before it is on the Hub."""

from __future__ import annotations

import json
import os

import pytest
from hazards import event_paths
from programs import succeed, wait_for
from runs import LOG_AND_EXIT, check_oracle, no_uploader, run

from hf_mpwriter.events import framing

DAMAGED = 3  # exit code of `sync` and `verify`
NEEDS_YOU = 4  # of `status`


def ends(path) -> list[int]:
    """Where the records of an event file end."""
    found = [0]
    for payload in framing.payloads(str(path)):
        found.append(found[-1] + len(framing.frame(payload)))
    return found


def spoil(path, *, in_the_middle: bool) -> tuple[int, int]:
    """Damage an event file; the offset behind the last whole record, and the bytes from there on."""
    boundaries = ends(path)
    at = boundaries[len(boundaries) // 2] if in_the_middle else boundaries[-1]
    with open(path, "r+b") as file:
        if in_the_middle:
            file.seek(at + 5)
            file.write(b"\xff")
        else:
            file.seek(0, os.SEEK_END)
            file.write(bytes(8192))
    return at, os.path.getsize(path) - at


def assert_named(text: str, name: str, offset: int, size: int) -> None:
    """Assert that a text names a damaged file, where it is damaged, and how many bytes that are."""
    assert name in text
    assert f"offset {offset}" in text
    assert f"{size} bytes" in text


def test_every_command_tells_damage(hub, run_dir, start):
    """`status`, `sync` and `verify`, with an exit code; records before it are uploaded, and so is what comes later."""
    start(LOG_AND_EXIT, run_dir, 40, env={"HF_MPWRITER_DISABLED": "1"}).succeed()
    (path,) = event_paths(run_dir)
    offset, size = spoil(path, in_the_middle=False)
    for result in (run("sync", run_dir, "--repo-id", "me/run"), run("verify", run_dir)):
        assert result.exit_code == DAMAGED, result
        assert_named(result.stderr, path.name, offset, size)
        assert "Traceback" not in result.stderr
    shown, as_json = run("status", run_dir), run("status", run_dir, "--json")
    for result in (shown, as_json):
        assert (result.exit_code, result.stderr) == (NEEDS_YOU, ""), result
    lines = shown.stdout.splitlines()
    assert_named(next(line for line in lines if line.startswith(path.name)), path.name, offset, size)
    assert lines[-1].startswith(f"next: restore {path.name}")
    assert "everything that is whole" in shown.stdout
    found = json.loads(as_json.stdout)
    assert_named(f"{path.name} {found['damaged'][path.name]}", path.name, offset, size)
    assert found["state"] == "needs you"
    code, _, told = start(LOG_AND_EXIT, run_dir, 7).finish()
    assert (code, f"{size} bytes" in told) == (0, True), "a lone process answers for what others left"
    report = check_oracle(run_dir, hub)
    assert report.files[path.name].hub_bytes == offset
    (later,) = report.files.keys() - {path.name}
    whole = os.path.getsize(run_dir / later)
    offset, _ = spoil(run_dir / later, in_the_middle=True)
    for result in (run("sync", run_dir), run("verify", run_dir)):
        assert (result.exit_code, f"offset {offset}" in result.stderr) == (DAMAGED, True), "also of what the Hub holds"
    assert hub.store.tree("model", "me/run", "main")[f"tensorboard/exp1/{later}"].size == whole


CUT_WHILE_IT_IS_WRITTEN = """
import glob, os, sys
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.system import locks
sent_before = sys.argv[2] == "sent"
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
held = locks.try_exclusive(writer._worker.spool.uploader_lock)  # no uploader sends it before it is cut
for step in range(1000):
    writer.add_scalar("loss", 1.0, step)
if sent_before:
    locks.release(held)
    assert writer.push(wait=150), writer.status()
(path,) = glob.glob(f"{sys.argv[1]}/events*")
os.truncate(path, os.path.getsize(path) // 2)
if not sent_before:
    locks.release(held)
assert writer.push(wait=1 if not sent_before else 150) == sent_before, writer.status()
writer.add_scalar("loss", 1.0, 1000)
assert writer.push(wait=10 if not sent_before else 150) == sent_before, writer.status()
status, future = writer.status(), writer.scheduler.trigger()
if sent_before:
    assert not status.error and future.result(150), status
else:
    assert "records are lost" in status.error and os.path.basename(path) in status.error, status
    assert "records are lost" in str(future.exception(150))
writer.close()
"""


@pytest.mark.parametrize("when", ["sent", "not sent"])
def test_what_was_cut_off_before_it_was_sent_is_not_on_the_hub(hub, run_dir, when):
    """`push`, `status` and the Future know it; what the Hub had before is delivered all the same."""
    succeed(CUT_WHILE_IT_IS_WRITTEN, run_dir, when)
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
