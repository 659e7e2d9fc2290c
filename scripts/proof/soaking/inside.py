"""What the soak puts into the processes under test: shorter waits, a disk that fails at random, clocks that are wrong.

    rank (forked by soak.py)  --posix_spawn-->  uploader  --subprocess-->  push

Each of them calls `install`. Waits of seconds or minutes become tenths or seconds, in the same proportions, so that
half an hour of soak is like a day of trouble.

    <control>/chance      "0.05 eio": each failpoint fails with this probability; no file: none does
    <control>/struck      one line per failure: action, failpoint, pid
    <control>/clock       seconds: each process is wrong by its own share of it; changed while processes run
    <control>/findings    one line per broken promise that a rank has found itself
    <control>/said        one line per warning of lost records: pid, text
    <control>/touched     paths on the Hub that other users have changed
"""

from __future__ import annotations

import importlib
import os
import random
import time
from collections.abc import Callable
from typing import Any

CONTROL = "HF_MPWRITER_SOAK"  # names the directory with the control files
HUB = "HF_MPWRITER_SOAK_HUB"  # names the directory of the Hub
TOUCHED, FINDINGS, CLOCK, SAID = "touched", "findings", "clock", "said"  # control files
CLOCK_EVERY = 0.2  # seconds until a process looks at the clock file again
REPO = "soak/run"
BUCKET = f"{REPO}-live"
MEMORY, LITTLE_MEMORY = 16 << 20, 4 << 10  # bytes of records that may wait in a rank, and in one of a gentle run
ENDING = 20.0  # seconds that a rank may wait for the Hub at its end

right_time = time.time

# see `base/timing`; the tests of each module use the real values
WAITS = {
    "housekeeping_every": 0.6,
    "disk_retry_first": 0.1,
    "disk_retry_longest": 1.0,
    "heartbeat_every": 2.0,
    "uploader_tick": 0.3,
    "first_scan_after": 1.0,
    "push_retry_first": 0.6,
}
# Other constants per process and module.
HASTE: dict[str, dict[str, dict[str, float]]] = {
    "rank": {
        "worker.membership": {"REQUEST_EVERY": 0.3},
        "spool.status": {"FIRST_PAUSE": 0.5, "LONGEST_PAUSE": 3.0, "STARTS_LIMIT": 1000},
        "events.series": {"SEGMENT_MIN": 24 << 10, "SEGMENT_MAX": 96 << 10},
    },
    "uploader": {
        "uploader.pacing": {
            "LONGEST_WAIT": 3.0,
            "REFUSED_WAIT": 1.5,
            "LONGEST_REFUSED_WAIT": 4.0,
            "XET_PAUSE": 10.0,
            "MOVED_LIMIT": 2,
        },
        "uploader.in_flight": {"SETTLE_TIME": 20.0},
        "uploader.live": {"ROUND": 0.5, "AT_LEAST": 3.0, "SHARE": 1.0, "LINGER": 6, "ASK_EVERY": 10.0},
    },
    "push": {
        "push.commit": {"MOVED_TRIES": 1},
        "push.classify": {"BUSY_WAIT": 0.5, "RATE_WAIT": 1.0, "QUOTA_WAIT": 1.0},
    },
}


class Chance:
    """Takes the place of `failpoints.reach`."""

    def __init__(self, control: str) -> None:
        self._chance, self._struck = os.path.join(control, "chance"), os.path.join(control, "struck")
        self._rng = random.Random()

    def __call__(self, name: str) -> None:
        """Fail or die here, by chance."""
        from hf_mpwriter.system import failpoints

        try:
            with open(self._chance, encoding="ascii") as file:
                chance, action = file.read().split()
        except (OSError, ValueError):
            return
        if self._rng.random() < float(chance):
            fd = os.open(self._struck, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.write(fd, f"{action} {name} {os.getpid()}\n".encode())
            os.close(fd)
            failpoints.strike(name, action)


class Clock:
    """Takes the place of `time.time`: wrong by a share of what the clock file says, of this process alone."""

    def __init__(self, control: str, real: Callable[[], float]) -> None:
        self._path, self._real, self._share = os.path.join(control, CLOCK), real, random.Random().uniform(-1, 1)
        self._wrong, self._until = 0.0, 0.0

    def __call__(self) -> float:
        """Return unix time as this process believes it to be."""
        now = time.monotonic()
        if now > self._until:
            self._until = now + CLOCK_EVERY
            try:
                with open(self._path, encoding="ascii") as file:
                    self._wrong = self._share * float(file.read() or 0)
            except (OSError, ValueError):
                self._wrong = 0.0
        return self._real() + self._wrong


def install(kind: str) -> None:
    """Prepare this process and the processes that it starts."""
    from hf_mpwriter.system import failpoints, launch

    failpoints.reach = Chance(os.environ[CONTROL])  # type: ignore[assignment]
    time.time = Clock(os.environ[CONTROL], right_time)
    if kind == "push":
        _hurry_with_the_environment()
        return
    _hurry(kind)
    if kind == "rank":
        os.environ["HF_MPWRITER_TIMING"] = " ".join(f"{name}={seconds}" for name, seconds in WAITS.items())
        _install_in(launch.BOOTS, "uploader")
    else:
        _keep_priority()
        _install_in(launch.BOOTS, "push")


def _hurry(kind: str) -> None:
    for module, constants in HASTE[kind].items():
        loaded = importlib.import_module(f"hf_mpwriter.{module}")
        for name, value in constants.items():
            if not hasattr(loaded, name):
                raise AttributeError(f"there is no {module}.{name}")
            setattr(loaded, name, value)


def _hurry_with_the_environment() -> None:
    """Import the client only when its environment is complete: it reads HF_HUB_DISABLE_XET at that moment."""
    from hf_mpwriter.push import process

    set_environment = process._set_environment  # noqa: SLF001 - the last step before the client is imported

    def set_and_hurry(*arguments: Any) -> None:
        set_environment(*arguments)
        _hurry("push")

    process._set_environment = set_and_hurry  # noqa: SLF001 - as above


def _install_in(boots: dict[str, str], kind: str) -> None:
    if boots[kind].count(";main()") != 1:
        raise AttributeError(f"cannot find where the {kind} begins")
    boots[kind] = boots[kind].replace(";main()", f";from soaking import inside;inside.install({kind!r});main()")


def _keep_priority() -> None:
    """Keep the normal priority: beside eight ranks and a soak, a low one gets no CPU time."""
    daemon = importlib.import_module("hf_mpwriter.daemon.background")
    if not hasattr(daemon, "lower_priority"):
        raise AttributeError("cannot find what lowers the priority of the uploader")
    daemon.lower_priority = lambda: None
