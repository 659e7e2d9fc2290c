"""The facts of a run that is complete, and variations of them."""

from __future__ import annotations

import dataclasses

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli.facts import FileFacts, LastCommit, RunFacts
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system.process import Process

NOW = 1_700_000_000.0
HERE = dataclasses.replace(Process.current(), pid=7)
RUNNING = UploaderStatus(phase="idle", beat=NOW - 3, process=HERE)
FILE = FileFacts("events.out.tfevents.1", 100, 100, None, growing=False, pulled=False, beginning=False)
HALF = (dataclasses.replace(FILE, on_hub=40),)
FACTS = RunFacts(
    "/runs/exp1",
    "/runs/exp1",
    NOW,
    Destination("https://hub", "me/run", path_in_repo="tensorboard/exp1"),
    "public",
    LastCommit("3f2a1b0c99", NOW - 120, "https://hub/me/run/commit/3f2a1b0c99"),
    files=(FILE,),
)
