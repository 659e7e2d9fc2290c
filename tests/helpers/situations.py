"""Situations of an uploader."""

from __future__ import annotations

from hf_mpwriter.uploader.decision import Attached, Ending, Outgoing, Situation

QUIET = Situation(
    living=1,
    abandoned_for=0.0,
    may_try=True,
    due=False,
    outgoing=Outgoing.NONE,
    settling=False,
    attached=Attached.LATER,
    ending=Ending.NOT_ASKED,
    orphaned=False,
)
