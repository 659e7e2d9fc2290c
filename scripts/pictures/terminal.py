#!/usr/bin/env python3
"""Draw the terminal of a run as SVG, from what the commands really print.

    scripts/pictures/terminal.py        some seconds

The commands run in a new directory, which the picture calls `~`, against a local Hub, at port 8765 if that is free.
Writes docs/images/terminal.svg. Run it again when what training or a command prints has changed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import make_parser
from lib.isolation import variables
from lib.paths import ROOT

from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.localhub.child import listen
from hf_mpwriter.localhub.config import ServerError

PICTURE = ROOT / "docs" / "images" / "terminal.svg"
PORT = 8765  # the default of `hf-mpwriter hub`
COLUMNS = 110
CHARACTER, LINE = 8.4, 20  # pixels at FONT_SIZE
FONT_SIZE, MARGIN, BAR = 14, 20, 36  # pixels
TRAIN = """
from hf_mpwriter import HFSummaryWriter

with HFSummaryWriter("me/run", logdir="runs/exp1") as writer:
    for step in range(100):
        writer.add_scalar("loss", 1 / (1 + step), step)
"""
COMMANDS = ("python train.py", "hf-mpwriter status runs/exp1", "hf-mpwriter verify runs/exp1")
STYLE = (
    "text { font: %dpx ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #d4d4d8; white-space: pre }"
)


def free_port() -> int:
    """Return PORT, or 0 if it is taken."""
    try:
        listen(PORT, deadline=0).close()
    except ServerError:
        return 0
    return PORT


def transcript() -> list[str]:
    """Run the commands; return their lines, each command after a `$`."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as name, LocalHub(Path(name) / "hub", port=free_port()) as hub:
        home = Path(name).resolve()
        (home / "train.py").write_text(TRAIN)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = os.environ | variables(home) | {"HF_ENDPOINT": hub.endpoint, "PATH": path}
        for command in COMMANDS:
            done = subprocess.run(
                command.split(), cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
            )
            shown = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode()).replace(str(home), "~")
            lines += [f"$ {command}", *shown.rstrip().splitlines(), ""]
    return lines[:-1]


def drawn(lines: list[str]) -> str:
    """Return an SVG of a terminal with these lines; longer ones go on in the next row, as a terminal shows them."""
    rows = [
        row
        for line in lines
        for row in textwrap.wrap(line, COLUMNS, drop_whitespace=False, break_on_hyphens=False) or [""]
    ]
    width = round(COLUMNS * CHARACTER + 2 * MARGIN)
    height = BAR + len(rows) * LINE + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<style>{STYLE % FONT_SIZE} .prompt {{ fill: #86efac }}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#18181b"/>',
        *(
            f'<circle cx="{MARGIN + 18 * number}" cy="18" r="6" fill="{colour}"/>'
            for number, colour in enumerate(("#f87171", "#fbbf24", "#4ade80"))
        ),
        *(_text(row, BAR + LINE * (number + 1) - 5) for number, row in enumerate(rows) if row),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(row: str, y: int) -> str:
    """Return the element of a row; commands have a colour."""
    kind = ' class="prompt"' if row.startswith("$ ") else ""
    return f'<text x="{MARGIN}" y="{y}"{kind} xml:space="preserve">{escape(row)}</text>'


def main() -> None:
    """Draw the picture."""
    make_parser(__doc__).parse_args()
    lines = transcript()
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
