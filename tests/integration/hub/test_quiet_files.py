"""Files that go by their paths and grow after all: the Hub's copy ends with a whole record, whenever they grow."""

from __future__ import annotations

import dataclasses

import pytest
from pushing import NAME, Pushes, hits, is_as

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.verdicts import Done

pytest_plugins = ("pushing",)

GROWS = """
import os
import huggingface_hub
upload = huggingface_hub.HfApi.preupload_lfs_files

def upload_while_it_grows(self, *args, additions, **options):
    for addition in additions:
        if isinstance(addition.path_or_fileobj, str):
            with open(os.path.realpath(addition.path_or_fileobj), "ab") as file:
                file.write(b"half a record")
    upload(self, *args, additions=additions, **options)

huggingface_hub.HfApi.preupload_lfs_files = upload_while_it_grows
"""


@pytest.fixture(scope="module", params=["0", "1"], ids=["xet", "lfs"])
def growing(running, request):
    """Pushes of files to which their writer appends between two reads of the client."""
    made = Pushes(running.endpoint, prelude=GROWS, env={"HF_HUB_DISABLE_XET": request.param})
    yield made
    made.end()


def test_a_file_that_grows_while_it_is_sent_is_committed_as_long_as_its_snapshot(run, hub, growing):
    """What was read is not committed, not even once; the same push sends the length of the snapshot."""
    run, whole = dataclasses.replace(run, pushes=growing), (run.root / NAME).read_bytes()
    hub.fault("POST /commit/ slow seconds=0.1 times=0")
    verdict = run.push(files=(LocalFile(NAME, run.length, growing=False),))
    assert is_as(verdict, Done, own=True)
    assert verdict.files[NAME].length == run.length
    assert (run.root / NAME).read_bytes() == whole + b"half a record"
    assert run.on_hub(hub) == whole
    assert hits(hub) == [1], "the first commit was not asked for"


def test_a_file_that_has_grown_since_the_scan_is_cut(run, hub):
    """Before the push: it is not handed over by its path at all."""
    whole = (run.root / NAME).read_bytes()
    (run.root / NAME).write_bytes(whole + b"half a record")
    verdict = run.push(files=(LocalFile(NAME, run.length, growing=False),))
    assert is_as(verdict, Done, own=True)
    assert run.on_hub(hub) == whole
