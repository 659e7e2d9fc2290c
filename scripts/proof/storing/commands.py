"""Commands of `hf-mpwriter`, each in a fork of one server that has loaded it: a Python takes seconds to start."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([f"hf_mpwriter.cli.{name}" for name in ("main", "status", "sync", "verify")])


class Done(NamedTuple):
    """What a command has shown."""

    code: int | None  # its exit code, below 0 if it hung
    said: str
    errors: str


def run(environment: dict[str, str], patience: float, *words: str) -> Done:
    """Run a command to its end, or so many seconds."""
    with tempfile.TemporaryDirectory(prefix="command-") as folder:
        said = Path(folder, "said"), Path(folder, "errors")
        process = _FORKS.Process(target=_run, args=(environment, said, words))
        process.start()
        process.join(patience)
        process.kill()
        process.join()
        return Done(process.exitcode, *(path.read_text() if path.exists() else "" for path in said))


def _run(environment: dict[str, str], said: tuple[Path, Path], words: tuple[str, ...]) -> None:
    from hf_mpwriter.cli import main

    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    main.main(words)
