"""Runs whose logdir is a URL, on an S3 on loopback."""

from __future__ import annotations

import os
import re

import pytest
import s3_server
import staged
from runs import run
from s3_server import S3Server
from support import keys
from tensorboard.backend.event_processing import event_accumulator

from hf_mpwriter.mirror.remote import RemoteTarget
from hf_mpwriter.mirror.targets import CopySource
from hf_mpwriter.spool.copies import Item
from hf_mpwriter.system.directory import Directory

LIKE_TENSORBOARDX = """
import sys
import numpy as np
from hf_mpwriter import SummaryWriter
writer = SummaryWriter("s3://this/is/apen")
points, labels, images = np.array([[1.0, 2, 3], [5, 4, 1], [3, 7, 7]]), [33, 44, 55], np.zeros((3, 3, 5, 5))
writer.add_embedding(points, metadata=labels, label_img=images, global_step=2)
rows = list(zip(labels, ["test", "test", "train"]))
writer.add_embedding(points, metadata=rows, label_img=images, metadata_header=["digit", "dataset"], global_step=3)
for step in range(40):
    writer.add_scalar("loss", 1 / (step + 1), step)
print(writer.logdir, flush=True)
writer.flush()
writer.close()
"""

needs_s3 = pytest.mark.skipif(bool(s3_server.why_not("s3fs")), reason=s3_server.why_not("s3fs") or "-")


@pytest.fixture
def s3(monkeypatch, tmp_path):
    """An S3 on loopback with the bucket `this`, for this process and its children; runs are staged in `tmp_path`."""
    with S3Server() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "local").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "local"))
        server.client().create_bucket(Bucket="this")
        yield server


def records(objects: dict[str, bytes], folder) -> list[tuple[str, int]]:
    """(tag, step) of all scalars in the event files among objects."""
    found = []
    for name in sorted(objects):
        if "tfevents" in name:
            (folder / "copy").write_bytes(objects[name])
            found += [key for key in keys(folder / "copy") if key[0] == "loss"]
    return found


@needs_s3
def test_what_tensorboardx_does_with_s3(s3, start, tmp_path):
    """The calls of its S3 tests: what was logged is in the bucket below the path of the URL; TensorBoard reads it.

    No directory `s3:` is made here.
    """
    assert start(LIKE_TENSORBOARDX).succeed() == "s3://this/is/apen\n"
    assert run("sync", "s3://this/is/apen").exit_code == 0
    objects = s3.objects("this", "is/apen/")
    assert records(objects, tmp_path) == [("loss", step) for step in range(40)]
    assert not os.path.exists("s3:")
    config = objects["projector_config.pbtxt"].decode()
    named = re.findall(r'_path: "(.*)"', config)
    assert len(named) == 6
    assert set(named) <= objects.keys()
    assert objects["00002/default/metadata.tsv"] == b"33\n44\n55\n"
    accumulator = event_accumulator.EventAccumulator("s3://this/is/apen").Reload()
    assert [event.step for event in accumulator.Scalars("loss")] == list(range(40))


@needs_s3
def test_a_bucket_that_is_mistyped_is_not_made(s3, tmp_path):
    """Nobody would look there; the error names what is missing."""
    (tmp_path / "file").write_text("x")
    source = CopySource(Directory(tmp_path), Item("file", 1))
    with pytest.raises(FileNotFoundError, match="bucket does not exist"):
        RemoteTarget("s3://thsi/exp1").put(source, None)
    assert [bucket["Name"] for bucket in s3.client().list_buckets()["Buckets"]] == ["this"]


TWICE = """
import sys
from hf_mpwriter import SummaryWriter
for first in (0, 5):
    with SummaryWriter(sys.argv[1]) as writer:
        print(writer.last_step())
        for step in range(first, first + 5):
            writer.add_scalar("loss", step, step)
        print(writer.push(100))
"""


@needs_s3
def test_a_start_on_another_machine_continues_behind_what_is_there(s3, tmp_path, start):
    """Without anything on its own disk; nothing that is in the bucket is written again."""
    found: dict[str, bytes] = {}
    for machine, known in (("A", ["None", "True", "4", "True"]), ("B", ["9", "True", "4", "True"])):
        told = start(TWICE, "s3://this/exp1", env=staged.machine(tmp_path / machine)).succeed(200)
        assert told.split() == known
        before, found = found, {path: data for path, data in s3.objects("this", "exp1/").items() if "tfevents" in path}
        assert before.items() <= found.items()
    assert records(found, tmp_path) == [("loss", step) for step in range(10)] * 2
