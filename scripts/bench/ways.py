#!/usr/bin/env python3
"""The ways of a scalar, of `push()` and of `status`: modules that run, and calls that climb.

    scripts/bench/ways.py             this tree
    scripts/bench/ways.py CHECKOUT    the tree of another checkout, by its own .venv

| row | what is counted |
|---|---|
| scalar | modules with a function that runs in a call of `add_scalar` that is not the first |
| push | modules that run in training during `push()` |
| to the Hub | modules that run in any process between the first `add_scalar` and the commit |
| status | modules that run during `hf-mpwriter status` |
| facts | modules of the package that the collector of `status` imports |
| climbs | pairs of modules, of which the lower one calls the upper one by a function that was handed down |
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
from lib.arguments import make_parser
from lib.paths import ROOT
from lib.waiting import wait_for

TIMEOUT = 120.0  # seconds of one program
PACKAGE = "hf_mpwriter"
# Notes in each process which module calls which: caller, callee. Neither the body of a class counts nor `__init__`.
WATCH = """
import atexit, json, os, sys, threading
calls, known, phases = set(), set(), {}
note_path = os.path.join(os.environ["WAYS"], f"{os.getpid()}.json")
open(note_path, "w").close()
def note(frame, event, _):
    code = frame.f_code
    if event == "call" and code.co_flags & 1 and not code.co_name.startswith("__"):
        name = frame.f_globals.get("__name__", "")
        if name.startswith("hf_mpwriter"):
            above = frame.f_back
            pair = above.f_globals.get("__name__", "") if above else "", name
            calls.add(pair)
            if pair not in known:
                known.add(pair)
                write()
def write():
    with open(note_path, "w") as file:
        json.dump(phases | {"all": sorted(known)}, file)
atexit.register(write)
threading.setprofile(note)
sys.setprofile(note)
"""
TRAIN = """
import sys, sitecustomize as ways
from hf_mpwriter import HFSummaryWriter
def phase(name, call):
    ways.calls.clear()
    result = call()
    ways.phases[name] = sorted(ways.calls)
    return result
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
writer.add_scalar("loss", 1.0, 0)
phase("scalar", lambda: writer.add_scalar("loss", 0.5, 1))
assert phase("push", lambda: writer.push(wait=60))
writer.close()
"""
SERVE = """
import subprocess, sys
from hf_mpwriter.localhub import LocalHub
with LocalHub(sys.argv[1]) as hub:
    print(hub.endpoint, flush=True)
    sys.stdin.read()
"""
Calls = set[tuple[str, str]]


@contextlib.contextmanager
def local_hub(checkout: Path, folder: Path) -> Iterator[str]:
    """Serve a Hub of the checkout; its URL."""
    command = [checkout / ".venv" / "bin" / "python", "-c", SERVE, folder / "hub"]
    with subprocess.Popen(command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip() if server.stdout else ""
        server.communicate()


def floors(checkout: Path) -> dict[str, int]:
    """Return the height of each folder of the package, by the contract of its imports."""
    settings = tomllib.loads((checkout / "pyproject.toml").read_text())
    (layers,) = (one["layers"] for one in settings["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
    return {name.strip(): -depth for depth, names in enumerate(layers) for name in names.split("|")}


def climbs(calls: Calls, heights: dict[str, int]) -> set[tuple[str, str]]:
    """Return the pairs of modules of which the lower one calls the upper one."""
    height = lambda module: heights.get(module.partition(".")[2].partition(".")[0])  # noqa: E731 - of the folder of a module
    found = set()
    for caller, callee in calls:
        below, above = height(caller), height(callee)
        if below is not None and above is not None and below < above:
            found.add((caller, callee))
    return found


def imports(checkout: Path, path: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    found = set()
    for node in ast.walk(ast.parse((checkout / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE):
            inside = checkout / node.module.replace(".", "/")
            parts = {alias.name for alias in node.names if (inside / alias.name).with_suffix(".py").exists()}
            found |= {f"{node.module}.{part}" for part in parts} or {node.module}
    return found


def watched(checkout: Path, folder: Path, name: str, *command: object, endpoint: str) -> list[dict[str, Calls]]:
    """Run a program; return what it and the processes that it starts have called."""
    notes = folder / name
    notes.mkdir()
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hf_home"),
        "HF_TOKEN": "hf_local",
        "PYTHONPATH": str(folder / "watch"),
        "WAYS": str(notes),
    }
    python = checkout / ".venv" / "bin" / "python"
    subprocess.run([python, *map(str, command)], env=environment, cwd=checkout, check=True, timeout=TIMEOUT)
    wait_for(lambda: not any(psutil.pid_exists(int(path.stem)) for path in notes.iterdir()), "the end of all processes")
    texts = filter(None, (path.read_text() for path in notes.iterdir()))
    return [{phase: set(map(tuple, calls)) for phase, calls in json.loads(text).items()} for text in texts]


def modules(calls: Calls) -> set[str]:
    """Return the modules that ran."""
    return {callee for _, callee in calls}


def main() -> None:
    """Print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("checkout", type=Path, nargs="?", default=ROOT, help="with an environment in .venv")
    checkout = parser.parse_args().checkout.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "watch").mkdir()
        (folder / "watch" / "sitecustomize.py").write_text(WATCH)
        run = folder / "runs" / "exp1"
        with local_hub(checkout, folder) as endpoint:
            trained = watched(checkout, folder, "train", "-c", TRAIN, run, endpoint=endpoint)
            looked = watched(checkout, folder, "status", "-m", PACKAGE, "status", run, endpoint=endpoint)
    training = next(process for process in trained if "scalar" in process)
    everything = set().union(*(process["all"] for process in trained))
    rows = {
        "scalar": modules(training["scalar"]),
        "push": modules(training["push"]),
        "to the Hub": modules(everything),
        "status": modules(set().union(*(process["all"] for process in looked))),
        "facts": imports(checkout, "hf_mpwriter/cli/facts.py"),
    }
    for row, found in rows.items():
        print(f"{row:12} {len(found):4}")
    found = climbs(everything, floors(checkout))
    print(f"{'climbs':12} {len(found):4}")
    for caller, callee in sorted(found):
        print(f"    {caller.removeprefix(PACKAGE)} -> {callee.removeprefix(PACKAGE)}")


if __name__ == "__main__":
    main()
