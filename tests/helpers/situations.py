"""Situations of an uploader."""

from __future__ import annotations

from hf_mpwriter.uploader.decision import Situation

NOW = 1000.0
QUIET = Situation(
    now=NOW,
    next_try=0.0,
    next_commit=NOW + 300,
    fresh=False,
    frozen=False,
    queued=0,
    urgent=False,
    living=1,
    abandoned_since=NOW,
    settling=False,
    terminating=False,
    tried=False,
)
