"""Transcripts: what training prints. What differs from run to run stands as HUB, RUN, LOG, SIZE, N and TIME."""

from __future__ import annotations

import os
import re
from pathlib import Path

LINK = "HUB/me/run/tree/main/tensorboard/exp1"
CREATED = "created HUB/me/run"
VISIBLE = "HUB/me/run is PUBLIC: everybody can read it"
STARTS = f"uploading RUN to {LINK} (public)"
STARTS_IN_AN_OUTAGE = f"RUN goes to {LINK}"
DONE = f"done: SIZE in N commits: {LINK}"
LATER = "it is tried again by itself; log: LOG"
VALID_TOKEN = "set HF_TOKEN, or the token that the writer is given, to one that is valid"
WRONG_TOKEN = f"not uploading: token refused (401): {VALID_TOKEN}; log: LOG"
UNREACHABLE = f"not uploading: the Hub cannot be reached at HUB: check the network; {LATER}"
UNSENT = (
    "SIZE in 1 file of RUN are not on the Hub yet. What is on disk stays there, and an uploader goes on trying, "
    "until TIME at least; to wait for it: close(wait=True), or: hf-mpwriter sync RUN"
)


def normalised(line: str, run: Path, endpoint: str) -> str:
    """A line that training has printed, without what differs from run to run."""
    prefix, _, text = line.rstrip("\n").partition(": ")
    assert prefix == "hf_mpwriter", line
    for path in (str(run), os.path.relpath(run)):
        text = re.sub(rf"{re.escape(path)}(/\w+)?/\.hf_mpwriter/hosts/[^/]+/uploader\.log", "LOG", text)
        text = text.replace(path, "RUN")
    text = text.replace(endpoint, "HUB")
    text = re.sub(r"events\.out\.tfevents\.[\w.-]+?(?=[: ])", "events.out.tfevents", text)
    text = re.sub(r"\b[\d.]+ (B|kB|MB)\b", "SIZE", text)
    text = re.sub(r"in \d+ commits?\b", "in N commits", text)
    text = re.sub(r"after \d+ (s|min)\b", "after TIME", text)
    text = re.sub(r"tries again (in \d+ s|at \d\d:\d\d|now and then)", "goes on trying", text)
    return re.sub(r"until \d\d:\d\d", "until TIME", text)
