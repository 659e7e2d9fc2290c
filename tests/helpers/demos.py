"""What tests of the demo share, and those of other programs that train on digits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

DIGITS = """
from types import SimpleNamespace
import numpy
def load_digits(return_X_y=False):
    data, target = numpy.random.default_rng(1).uniform(0, 16, (1797, 64)), numpy.arange(1797) % 10
    return (data, target) if return_X_y else SimpleNamespace(data=data, target=target)
"""
METRICS = "roc_curve = None"  # transformers imports it, and uses it where texts are generated


def without_sklearn(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put other digits in place of scikit-learn, whose import costs more than the rest of a short training."""
    package = packages / "sklearn"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "datasets.py").write_text(DIGITS)
    (package / "metrics.py").write_text(METRICS)
    monkeypatch.setenv("PYTHONPATH", str(packages), prepend=os.pathsep)


def listen_to_ctrl_c() -> None:
    """Heed SIGINT: a shell that runs the tests in the background ignores it, and the demo would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def processes_of(directory: Path) -> list[psutil.Process]:
    """The processes that run in a demo's directory: ranks, uploader, push, Hub, boards."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(directory) in word for word in process.info["cmdline"] or ()) and process.pid != os.getpid()
    ]
