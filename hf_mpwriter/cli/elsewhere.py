"""A command as a child process: what the demo runs on its other machine."""

from __future__ import annotations

import json

from hf_mpwriter.cli.main import main as command
from hf_mpwriter.system import launch


def main() -> None:
    """Entry point of the process, see `system/launch`; it ends with the demo."""
    launch.answer()
    command(json.loads(launch.read_record()))
