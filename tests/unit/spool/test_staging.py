"""The records of a staged run."""

from __future__ import annotations

from staged import stage

from hf_mpwriter.delivery.sinks import LogdirSink
from hf_mpwriter.spool.staging import MirrorRecord


def test_the_first_logdir_that_is_recorded_stays(tmp_path):
    """Racing workers of one run name the same; another run directory is not staged at all."""
    spool = stage(tmp_path / "run", "s3://bucket/exp1")
    MirrorRecord("s3://other", 1.0).publish(spool)
    assert MirrorRecord.read(spool).to == LogdirSink(spool).to == "s3://bucket/exp1"
