"""Programs that run into a hazard, and what they left in their run directories."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import DEADLINE
from support import events, keys

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
WITH_TORCH = {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}

# Helpers of the programs. A process that hangs dies of SIGALRM, and the test fails.
PRELUDE = """
import atexit, errno, multiprocessing, os, resource, shutil, signal, stat, subprocess, sys, threading, time
import numpy as np
from hf_mpwriter import SummaryWriter

signal.alarm(180)

def log(writer, first, last, tag="a"):
    for step in range(first, last):
        writer.add_scalar(tag, 0.5, step)

def named(action, name=None, method="fork"):
    process = multiprocessing.get_context(method).Process(target=action, name=name)
    process.start()
    return process

def good(*processes):
    for process in processes:
        process.join()
        assert process.exitcode == 0, (process.name, process.exitcode)

def forked(action):
    if (pid := os.fork()) == 0:
        signal.alarm(180)
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return pid

def code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def run_file(directory: Path, source: str, *arguments: object, env: dict[str, str] | None = None) -> str:
    """Run a program from a file, as spawn and forkserver need it; return its output. It must end well."""
    program = directory / "program.py"
    program.write_text(source)
    return end_well([sys.executable, program, *map(str, arguments)], os.environ | (env or {}))


def end_well(command: list[object], env: dict[str, str] | None = None) -> str:
    """Run a command that must end well; return its output."""
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def event_paths(directory: Path) -> list[Path]:
    """The event files of one directory, in the order in which TensorBoard reads them."""
    return sorted(path for path in directory.iterdir() if "tfevents" in path.name)


def runs(root: Path) -> dict[str, list[tuple[str, int]]]:
    """(tag, step) of all scalars per TensorBoard run below `root`; no file may be torn."""
    found: dict[str, list[tuple[str, int]]] = {}
    for path in sorted(root.rglob("*tfevents*")):
        found.setdefault(str(path.parent.relative_to(root)), []).extend(keys(path))
    return found


def steps(first: int, last: int, tag: str = "a") -> list[tuple[str, int]]:
    """What `log` of a program has written."""
    return [(tag, step) for step in range(first, last)]


def numbers(directory: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of the scalars of one directory."""
    found = (event for path in event_paths(directory) for event in events(path))
    return [(value.tag, event.step, value.simple_value) for event in found for value in event.summary.value]


def shown(directory: Path, tag: str = "a") -> list[int]:
    """The steps that the readers of TensorBoard's Python library show; both must agree."""
    from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator

    legacy = event_accumulator.EventAccumulator(str(directory)).Reload()
    current = plugin_event_accumulator.EventAccumulator(str(directory)).Reload()
    found = [event.step for event in legacy.Scalars(tag)]
    assert [event.step for event in current.Tensors(tag)] == found
    return found
