"""Jobs and verdicts on their way between uploader and push."""

from __future__ import annotations

import dataclasses
import json

import pytest
from jobs import ONE, TWO, job, part

from hf_mpwriter.base import state
from hf_mpwriter.base.verdicts import Done, Moved, Quarantine, Refused, Retry, Sent, Split, Unknown
from hf_mpwriter.push.job import Job, Notice, from_line


@pytest.mark.parametrize(
    "message",
    [
        Done("c" * 40, own=True, repo_id="me/run", files={"a.tfevents": Sent(5, "00")}),
        Retry("why", 3.0),
        Unknown("why"),
        Refused("why", "what to do"),
        Quarantine({"a.tfevents": "why"}),
        Moved("why\nand how"),
        Split("why"),
        Notice("created me/run"),
        Notice("me/run is private", 2),
    ],
)
def test_a_message_survives_the_pipe(message):
    """What the push writes is what the uploader reads, in one line."""
    line = state.to_line(message)
    assert b"\n" not in line
    assert from_line(line) == message


def test_garbage_is_no_verdict():
    """A verdict that cannot be read is none; the uploader then takes the outcome as unknown."""
    for line in (
        b'Sent {"length": 1, "sha256": "", "blob_id": "", "foreign": false}',
        b"nonsense",
        b"Done",
        b"Done {}",
        b"",
    ):
        assert from_line(line) is None


def test_a_job_survives_its_way_to_the_push(run_dir):
    """What the uploader writes is what the push reads; a digest that is none is refused."""
    one = job(run_dir, files=(TWO,), known={"a.tsv": ONE.content}, uncertain={"a.tsv": [ONE.content, TWO.content]})
    one = dataclasses.replace(one, parts=(*one.parts, part(run_dir, folder="other")))
    assert state.load(Job, state.dump(one)) == one
    data = json.loads(state.dump(one))
    data["parts"][0]["files"][0]["sha256"] = "../../etc/passwd"
    with pytest.raises(state.DamagedError, match="not the digests"):
        state.load(Job, json.dumps(data).encode())
