"""The waits of the processes that tests start: a test need not wait for minutes, and a slow machine is no failure."""

from __future__ import annotations

HURRIED = {  # seconds, as in `base/timing`
    "housekeeping_every": 0.6,
    "disk_retry_longest": 2.0,
    "quiet_wait": 1000.0,  # a slow machine announces its waits; tests of that set it
    "logdir_wait": 60.0,  # a slow machine
    "heartbeat_every": 2.0,
    "uploader_tick": 0.2,
    "first_scan_after": 0.4,
    "push_retry_first": 1.0,
    "moved_retry": 1.0,
    "refused_retry_first": 2.0,
    "refused_retry": 4.0,
    "sibling_look": 8.0,  # a slow machine
    "sibling_search": 120.0,  # a slow machine
    "mirror_tick": 0.2,
    "copy_retry_first": 0.5,
    "copy_refused_retry_first": 1.0,
    "copy_limit": 30.0,
    "sampler_tick": 0.1,
    "sample_every": 1.0,
    "first_sample_after": 0.2,
    "ranks_joining": 1.0,
    "ranks_look_every": 0.3,
    "ranks_tick": 0.2,
}


def timing(**others: float) -> str:
    """The value of HF_MPWRITER_TIMING in a hurry, with other waits."""
    return " ".join(f"{name}={seconds}" for name, seconds in (HURRIED | others).items())
