"""Jobs and verdicts on their way between uploader and push."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
from jobs import ONE, TWO, job

from hf_mpwriter.push import handle, process
from hf_mpwriter.base.verdicts import Done, Quarantine, Refused, Retry, Sent, Unknown
from hf_mpwriter.push.job import Job


@pytest.mark.parametrize(
    "verdict",
    [
        Done("c" * 40, own=True, repo_id="me/run", files={"a.tfevents": Sent(5, "00")}),
        Retry("why", 3.0),
        Unknown("why"),
        Refused("why", "what to do"),
        Quarantine({"a.tfevents": "why"}),
    ],
)
def test_a_verdict_survives_the_pipe(verdict):
    """What the push writes is what the uploader reads."""
    read, write = os.pipe()
    process.Notify(write).verdict(verdict)
    assert handle.parse_verdict(json.loads(os.read(read, 10_000))) == verdict
    os.close(read)
    os.close(write)


def test_garbage_is_no_verdict():
    """A verdict that cannot be read is none; the uploader then takes the outcome as unknown."""
    assert handle.parse_verdict({"verdict": "Sent", "length": 1, "sha256": "", "x": 1}) is None
    assert handle.parse_verdict({"verdict": "nonsense"}) is None
    assert handle.parse_verdict({"verdict": "Done"}) is None


def test_a_job_survives_its_way_to_the_push(run_dir):
    """What the uploader writes is what the push reads; a digest that is none is refused."""
    one = dataclasses.replace(
        job(run_dir), files=(TWO,), known={"a.tsv": ONE.content}, uncertain={"a.tsv": [ONE.content, TWO.content]}
    )
    data = json.loads(json.dumps(one.to_json()))
    assert Job.from_json(data) == one
    data["files"][0]["sha256"] = "../../etc/passwd"
    with pytest.raises(ValueError, match="not the digests"):
        Job.from_json(data)
