"""Other waits in the processes that tests start: a test need not wait for minutes, and a slow machine is no failure.

This directory is on the PYTHONPATH of those processes, not of pytest itself. The `unhurried` fixture leaves it out.
The directory `watch`, with the lock check, is there too.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

from lock_check import install_on_import

WAITS = {  # seconds
    "hf_mpwriter.demo.story": {
        "SHORTEST": 16.0,
        "START_LIMIT": 150.0,
        "TAKEOVER_LIMIT": 150.0,
        "END_LIMIT": 150.0,
        "VERDICT_LIMIT": 150.0,
    },
    "hf_mpwriter.demo.training": {"EXIT_TIMEOUT": 120.0},
    "hf_mpwriter.demo.verdict": {"DOWNLOAD_LIMIT": 120.0},
    "hf_mpwriter.events.backlog": {"RETRY_LAST": 2.0},
    "hf_mpwriter.mirror.decision": {"FIRST_PAUSE": 0.5, "REFUSED_PAUSE": 1.0, "LIMIT_BASE": 30.0},
    "hf_mpwriter.mirror.handle": {"GRACE": 2.0},
    "hf_mpwriter.mirror.loop": {"TICK": 0.2},
    "hf_mpwriter.ranks": {"JOINING": 1.0, "EVERY": 0.3, "TICK": 0.2},
    "hf_mpwriter.sampler.loop": {"TICK": 0.1, "SAMPLE_EVERY": 1.0, "FIRST_SAMPLE": 0.2},
    "hf_mpwriter.spool.staging.logdir": {"ENSURE_EVERY": 0.3},
    "hf_mpwriter.spool.status": {"BEAT_EVERY": 2.0},
    "hf_mpwriter.spool.progress": {"ENSURE_EVERY": 0.3},
    "hf_mpwriter.uploader.loop": {"TICK": 0.2},
    "hf_mpwriter.uploader.pacing": {"FIRST_WAIT": 1.0, "MOVED_WAIT": 1.0},
    "hf_mpwriter.uploader.retries": {"RETRY_DISTANCE": 2.0, "RETRY_WAIT": 4.0},
    "hf_mpwriter.uploader.run_state": {"FIRST_DELAY": 0.4},
    "hf_mpwriter.uploader.siblings": {"PATIENCE": 8.0, "LIMIT": 120.0},
    "hf_mpwriter.worker.staging.looking": {"LONGEST": 60.0},  # a slow machine
    "hf_mpwriter.worker.shutdown": {"QUIET_WAIT": 1000.0},  # a slow machine announces its waits; tests of that set it
    "hf_mpwriter.worker.worker": {"HOUSEKEEPING_EVERY": 0.6},
}


SIBLINGS = "hf_mpwriter.uploader.siblings"


def search_for_something(siblings: object) -> None:
    """Start no search for unfinished runs beside one that is alone: in most tests it is, and a process costs."""
    from dataclasses import replace

    begin = siblings.Search.__init__

    def begin_if_there_is_something(self: object, start: object) -> None:
        place, name = os.path.split(start.run_dir)
        is_alone = os.listdir(place) == [name]
        begin(self, replace(start, seeks_siblings=False) if is_alone else start)

    siblings.Search.__init__ = begin_if_there_is_something


class Hurry:
    """Find modules as usual, and set their constants when they are loaded."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        """The spec of a module with waits; other modules are left alone."""
        if name not in WAITS or (spec := PathFinder.find_spec(name, path, target)) is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: object) -> None:
            load(module)
            for constant, value in WAITS[name].items():
                assert hasattr(module, constant), f"{name} has no {constant}"
                setattr(module, constant, value)
            if name == SIBLINGS:
                search_for_something(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Hurry)
install_on_import()
