#!/usr/bin/env python3
"""Crash the uploader on a modelled disk, many thousand times; check that its invariants hold and everything arrives.

This is a long run of the state machine of `tests/proof/test_durability.py`: kills and power cuts at any change on disk,
changes that the disk refuses, requests that are lost, lose their response or arrive late.

    scripts/proof/crash_states.py --examples 1500 --seed 1      more than 10,000 faults

Exit code 0 if all promises held, 3 if one was broken: the steps that lead to the failure are printed.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_seed, make_parser
from lib.paths import HELPERS

sys.path.insert(0, str(HELPERS))

import hypothesis
import sabotage
from durability import FATES, QUICK, Durability
from hypothesis.stateful import run_state_machine_as_test

NO_FAULTS = {"applied"}  # of the fates of a request


def report(seconds: float) -> None:
    """Print how often each fault was injected."""
    made = Durability.made
    at_a_change = made["kill at a change"]
    faults = sum(made.values()) - sum(made[name] for name in NO_FAULTS) - at_a_change
    print(f"{faults} faults in {seconds:.0f} s:")
    print(f"  {made['kill']} kills and {made['power cut']} power cuts, {at_a_change} of them during a change")
    print(f"  {made['enospc at a change']} writes to a full disk, {made['eio at a change']} errors of the disk")
    print("  requests: " + ", ".join(f"{made[fate]} {fate}" for fate in sorted(set(FATES))))


def main() -> int:
    """Run the state machine."""
    parser = make_parser(__doc__)
    parser.add_argument("--examples", type=int, default=1500, help="runs of up to 40 steps (default: %(default)s)")
    add_seed(parser)
    args = parser.parse_args()
    phases = [hypothesis.Phase.generate, hypothesis.Phase.shrink]
    settings = hypothesis.settings(QUICK, max_examples=args.examples, derandomize=False, phases=phases)
    started_at = time.monotonic()
    print(f"seed {args.seed}", flush=True)
    try:
        run_state_machine_as_test(hypothesis.seed(args.seed)(Durability), settings=settings)
    except Exception:  # noqa: BLE001 - a finding can be any exception
        traceback.print_exc()
        print(f"found with --seed {args.seed}")
        return sabotage.FOUND
    finally:
        report(time.monotonic() - started_at)
    print("nothing was lost, nothing shrank, nothing hung")
    return 0


if __name__ == "__main__":
    sys.exit(main())
