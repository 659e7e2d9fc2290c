"""Announcement: both places, and what is at stake."""

from __future__ import annotations

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.storage import Layout, Storage, direct
from hf_mpwriter.worker.registry import announcement

SPOOL = "/scratch/x/exp1/.hf_mpwriter"
STAGED = Storage("s3://b/exp1", Layout.STAGED, "/scratch/x/exp1", SPOOL, "a URL is no directory")
ASIDE = Storage("/data/exp1", Layout.LOCAL_SPOOL, "/data/exp1", SPOOL, "lustre has no file locks")


def test_both_places_and_the_interval_are_told():
    """And what is lost with the machine."""
    assert announcement(STAGED, Settings(commit_every=0.5), uploads=True) == (
        "s3://b/exp1: a URL is no directory. Event files are written to /scratch/x/exp1, and copied to the logdir "
        "every 0.5 minutes, less often in a long run, at push() and at the end. If this machine is lost, so is what it "
        "has logged since."
    )
    assert SPOOL in announcement(ASIDE, Settings(), uploads=True)
    assert announcement(direct("/data/exp1"), Settings(), uploads=True) == ""


def test_patterns_that_allow_more_than_event_files_are_told_about():
    """What is in the logdir only is not uploaded."""
    wide = Settings(allow_patterns=None)
    assert "none that is in the logdir" in announcement(STAGED, wide, uploads=True)
    assert "none that is in the logdir" not in announcement(STAGED, wide, uploads=False)
