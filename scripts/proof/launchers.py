#!/usr/bin/env python3
"""Every way in which a launcher starts, kills and restarts ranks, with real processes; the oracle judges each.

    scripts/proof/launchers.py                          all cases: some ten minutes
    scripts/proof/launchers.py --only hosts             one of them; can be repeated
    scripts/proof/launchers.py --list

Each case has a Hub and a folder of its own and prints a line for each kill: the seconds from it, or from the end of
training, until all that was logged is on the Hub. The cases are in `tests/helpers/launching/`; the tests of launchers
run most of them, with shorter waits. Process 1 of a container and hosts are namespaces, which only root can make; what
torchrun starts needs torch. A case that lacks something is skipped, and says why.

Exit code 0 if no case failed, else 1: its folder is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_directory, add_seed, make_parser
from lib.isolation import isolate
from lib.paths import HELPERS

sys.path.insert(0, str(HELPERS))
import pytest
from launching import first, hosts, preemption, torchrun
from launching.stage import Laps, Stage
from supervised import why_no_namespace

from hf_mpwriter.localhub import LocalHub

NAMESPACE, TORCH = "namespace", "torch"
GRACES = (5, 15, 30)  # seconds

CASES: dict[str, tuple[Callable[[Stage], Laps], tuple[str, ...]]] = {  # and what it needs
    "first": (first.signalled, (NAMESPACE,)),
    "first-shell": (first.signalled_below_a_shell, (NAMESPACE,)),
    "first-ignores": (first.ignored, (NAMESPACE,)),
    "first-no-hub": (first.without_hub, (NAMESPACE,)),
    "first-exits": (first.exits_at_once, (NAMESPACE,)),
    "kubernetes": (first.of_kubernetes, (NAMESPACE,)),
    "torchrun-2x2": (torchrun.two_agents_of_two, (TORCH,)),
    "elastic": (torchrun.elastic, (TORCH,)),
    "slurm": (hosts.requeued, ()),
    "hosts": (hosts.take_over, (NAMESPACE,)),
    **{f"preemption-{grace}": (partial(preemption.preempted, grace=grace), (NAMESPACE, TORCH)) for grace in GRACES},
}


def missing(needs: tuple[str, ...]) -> str:
    """What a case lacks here, "" for nothing."""
    if NAMESPACE in needs and (reason := why_no_namespace()):
        return reason
    return "torch is not installed" if TORCH in needs and importlib.util.find_spec("torch") is None else ""


def run(name: str, folder: Path, seed: int) -> bool:
    """Run a case and print its lines; whether it held."""
    case, needs = CASES[name]
    if reason := missing(needs):
        print(f"{name:20} skipped: {reason}", flush=True)
        return True
    (folder / name).mkdir()
    began, said = time.monotonic(), io.StringIO()
    with LocalHub(folder / f"{name}.hub") as hub:
        os.environ["HF_ENDPOINT"] = hub.endpoint
        stage = Stage(folder / name, hub, hurry=False, seed=seed)
        try:
            with contextlib.redirect_stderr(said):
                laps = case(stage)
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - a finding can be any exception
            print(f"{name:20} FAILED after {time.monotonic() - began:.0f} s\n{traceback.format_exc()}", flush=True)
            return False
        finally:
            stage.close()
    seconds = time.monotonic() - began
    for what, lap in laps.items():
        print(f"{name:20}{lap:7.1f} s  from {what} to all on the Hub", flush=True)
    if not laps:
        print(f"{name:20}     held, in {seconds:.0f} s", flush=True)
    return True


def parse() -> argparse.Namespace:
    """The options."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", action="append", choices=CASES, metavar="CASE", help="this case; can be repeated")
    parser.add_argument("--list", action="store_true", help="print the cases")
    add_seed(parser)
    add_directory(parser)
    return parser.parse_args()


def main() -> int:
    """Run the cases; 1 if one failed."""
    options = parse()
    if options.list:
        print("\n".join(CASES))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="launchers_", dir=options.dir))
    isolate(folder)
    print(f"seed {options.seed}, in {folder}", flush=True)
    began = time.monotonic()
    failed = [name for name in options.only or CASES if not run(name, folder, options.seed)]
    print(f"{len(options.only or CASES)} cases, {len(failed)} failed, {time.monotonic() - began:.0f} s")
    if not failed:
        shutil.rmtree(folder)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
