#!/usr/bin/env python3
"""Take the picture of a sweep: what TensorBoard shows of its trials under HPARAMS.

    scripts/pictures/sweep.py        half a minute; needs chromium, see ./scripts/packages

Runs scripts/examples/sweep.py against a local Hub, and opens the board of its repository. Writes docs/images/sweep.png.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import make_parser
from lib.isolation import variables
from lib.paths import ROOT
from lib.pictures import SETTLED, rows_of_trials, save
from lib.waiting import wait_for

from hf_mpwriter.localhub import LocalHub

TRIALS = 8
EXAMPLE = ROOT / "scripts" / "examples" / "sweep.py"


def main() -> None:
    """Run the sweep, and take the picture."""
    from browser import browser

    make_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name, LocalHub(Path(name) / "hub") as hub:
        env = os.environ | variables(Path(name)) | {"HF_ENDPOINT": hub.endpoint, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, EXAMPLE, "--repo-id", "me/sweep"], cwd=name, env=env, check=True)
        with browser(1250, 620) as driver:
            driver.get(f"{hub.endpoint}/me/sweep/tensorboard/board/#hparams")
            wait_for(lambda: rows_of_trials(driver) >= TRIALS, "a row for each trial")
            time.sleep(SETTLED)
            save(driver.get_screenshot_as_png(), "sweep.png")


if __name__ == "__main__":
    main()
