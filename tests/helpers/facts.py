"""The facts of a run that is complete, and variations of them."""

from __future__ import annotations

import dataclasses

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli.status.facts import FileFacts, HubFacts, LastCommit, LogdirFacts, RunFacts
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system.process import Process

NOW = 1_700_000_000.0
HERE = dataclasses.replace(Process.current(), pid=7)
RUNNING = UploaderStatus(phase="idle", beat=NOW - 3, process=HERE)
FILE = FileFacts("events.out.tfevents.1", 100, 100, None, growing=False, pulled=False)
FACTS = RunFacts(
    "/runs/exp1",
    "/runs/exp1",
    NOW,
    HubFacts(
        Destination("https://hub", "me/run", path_in_repo="tensorboard/exp1"),
        "public",
        LastCommit("3f2a1b0c99", NOW - 120, "https://hub/me/run/commit/3f2a1b0c99"),
    ),
    LogdirFacts(),
    files=(FILE,),
)
PARTS = {"uploader_is_alive": "is_alive", "mirror_is_alive": "is_alive", "refused_there": "refused"}


def facts(**fields: object) -> RunFacts:
    """The facts of a complete run, but for these."""
    hub = {"destination", "visibility", "last_commit", "uploader", "uploader_is_alive", "quarantined"}
    there = {"to", "mirror", "mirror_is_alive", "refused_there"}
    return dataclasses.replace(
        FACTS,
        hub=dataclasses.replace(FACTS.hub, **{PARTS.get(name, name): fields[name] for name in hub & fields.keys()}),
        there=dataclasses.replace(
            FACTS.there, **{PARTS.get(name, name): fields[name] for name in there & fields.keys()}
        ),
        **{name: value for name, value in fields.items() if name not in hub | there},
    )
