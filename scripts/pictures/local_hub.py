#!/usr/bin/env python3
"""Take the pictures of the local Hub's pages: the demo's training metrics, and its commits.

    scripts/pictures/local_hub.py        one minute; needs chromium, see ./scripts/packages

It runs the demo, opens its links in a browser, and writes docs/images/hub_metrics.png and docs/images/hub_commits.png.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import make_parser
from lib.pictures import charts, save
from lib.waiting import wait_for

WIDTH, HEIGHT = 1180, 1080
SHORT = 620  # height of the window for the commits


def main() -> None:
    """Take both pictures."""
    make_parser(__doc__).parse_args()
    place = Path(tempfile.mkdtemp(prefix="digits-"))
    said = place / "output"
    command = [sys.executable, "-m", "hf_mpwriter", "demo", "--open", "--dir", str(place / "demo")]
    with said.open("wb") as output:
        demo = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_for(lambda: demo.poll() is not None or "Ctrl-C ends" in said.read_text(), "the demo is open")
        metrics, files, _ = re.findall(r"^  (http://\S+) ", said.read_text(), re.MULTILINE)
        take(metrics, files)
    finally:
        demo.send_signal(signal.SIGTERM)
        demo.wait()
        shutil.rmtree(place)


def take(metrics: str, files: str) -> None:
    """Open both pages in a browser and save what it shows."""
    from browser import browser

    with browser(WIDTH, HEIGHT) as driver:
        driver.get(metrics)
        driver.switch_to.frame(driver.find_element("css selector", "iframe"))
        wait_for(lambda: charts(driver).get("train/loss") == 4, "the chart of all four workers")
        driver.switch_to.default_content()
        save(driver.get_screenshot_as_png(), "hub_metrics.png")
        driver.set_window_size(WIDTH, SHORT)
        driver.get(files.replace("/tree/", "/commits/"))
        save(driver.get_screenshot_as_png(), "hub_commits.png")


if __name__ == "__main__":
    main()
