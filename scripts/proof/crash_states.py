#!/usr/bin/env python3
"""Crash the uploader on a modelled disk, many thousand times, and see that its invariants hold and all arrives.

This is the state machine of `tests/proof/test_durability.py`, at length: kills and power cuts at any change on disk, changes
that the disk refuses, requests that get lost, lose their answer or arrive late.

    scripts/crash_states.py --examples 1500 --seed 1      more than 10,000 faults

Exit code 0 if all promises held; else the steps that lead to the failure are shown.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

import hypothesis
from durability import FATES, QUICK, Durability
from hypothesis.stateful import run_state_machine_as_test

NO_FAULTS = {"applied"}  # of what can happen


def report(began: float) -> None:
    """What was done."""
    made = Durability.made
    at_a_change = made["kill at a change"]
    faults = sum(made.values()) - sum(made[name] for name in NO_FAULTS) - at_a_change
    print(f"{faults} faults in {time.monotonic() - began:.0f} s:")
    print(f"  {made['kill']} kills and {made['power cut']} power cuts, {at_a_change} of them in the midst of a change")
    print(f"  {made['enospc at a change']} times a full disk, {made['eio at a change']} times an error of the disk")
    print("  requests: " + ", ".join(f"{made[fate]} {fate}" for fate in sorted(set(FATES))))


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1500, help="runs of up to 40 steps")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    phases = [hypothesis.Phase.generate, hypothesis.Phase.shrink]
    settings = hypothesis.settings(QUICK, max_examples=args.examples, derandomize=False, phases=phases)
    began = time.monotonic()
    try:
        run_state_machine_as_test(hypothesis.seed(args.seed)(Durability), settings=settings)
    except Exception:  # noqa: BLE001 - whatever it has found
        traceback.print_exc()
        print(f"FOUND with --seed {args.seed}")
        return 1
    finally:
        report(began)
    print("nothing was lost, nothing shrank, nothing hung")
    return 0


if __name__ == "__main__":
    sys.exit(main())
