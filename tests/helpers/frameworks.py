"""What tests of frameworks share: programs that train, and what was logged, as events and as TensorBoard sees it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from demos import without_sklearn
from filelock import FileLock
from repository import EXAMPLES
from support import events

from hf_mpwriter.localhub import LocalHub, Store

LIMIT = 900  # seconds for a test: where much else runs, the imports of two ranks alone were seen to take three minutes


def needs(*packages: str) -> list[pytest.MarkDecorator]:
    """The marks of a module whose tests need these; none is imported here."""
    missing = [name for name in ("torch", *packages) if importlib.util.find_spec(name) is None]
    reason = f"{', '.join(missing)} not installed"
    return [pytest.mark.torch, pytest.mark.skipif(bool(missing), reason=reason), pytest.mark.timeout(LIMIT)]


@pytest.fixture
def frameworks(monkeypatch, hub, tmp_path):
    """The local Hub, in an environment in which programs can train, on one core each."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))  # with the real torch, and `digits`
    without_sklearn(tmp_path / "packages", monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("HF_MPWRITER_EXIT_TIMEOUT", "240")  # tests check the Hub after the exit, on a busy machine too
    return hub


def command(program: str | Path, *arguments: object, ranks: int = 1) -> list[str]:
    """The command line of a program (its path or its source); torchrun starts several ranks."""
    script = [str(program)] if isinstance(program, Path) else ["-c", program]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *torchrun, *script, *map(str, arguments)]


@contextmanager
def running(command: list[str], **options: object) -> Iterator[subprocess.Popen]:
    """Run a program that leaves no process behind, however its test ends."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen) -> None:
    """Kill a program that still runs, and all that it has started; its uploader is not among its children."""
    if process.poll() is None:
        parent = psutil.Process(process.pid)
        parent.suspend()  # so that it starts no other process
        for member in (*parent.children(recursive=True), parent):
            with suppress(psutil.NoSuchProcess):
                member.kill()


def train(program: str | Path, *arguments: object, cwd: Path, ranks: int = 1, env: dict[str, str] | None = None) -> str:
    """Run a program to its end, which must be a good one; return what it printed."""
    started, pipe = command(program, *arguments, ranks=ranks), subprocess.PIPE
    with running(started, cwd=cwd, env=os.environ | (env or {}), stdout=pipe, stderr=pipe, text=True) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, output[-2000:] + errors[-4000:]
    return output


@pytest.fixture(scope="session")
def common(tmp_path_factory) -> Path:
    """A directory that all test processes share, for what takes long and is made once."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def train_once(program: Path, *scenarios: str, cwd: Path) -> tuple[SimpleNamespace, Path, list[list]]:
    """Run scenarios of a program, unless another test has; the Hub's store, the directory, the printed JSON."""
    place = cwd / program.stem
    place.mkdir(exist_ok=True)
    root, printed = place / f"hub_{scenarios[0]}", place / f"printed_{scenarios[0]}"
    with FileLock(f"{printed}.lock"):
        if not root.exists():
            with LocalHub(root) as hub:
                output = train(program, *scenarios, cwd=place, env={"HF_ENDPOINT": hub.endpoint})
            printed.write_text(output)
    assert printed.exists(), "it failed in the first test that needed it"
    lines = [json.loads(line) for line in printed.read_text().splitlines() if line.startswith("[")]
    return SimpleNamespace(store=Store(root)), place, lines


def logged(logdir: str | Path) -> list[tuple[str, int, str, object]]:
    """Everything in the event files below a directory, in the order of writing: subdirectory, step, tag, value.

    A scalar's value is a number; anything else is compared by its bytes. Wall times are left out.
    """
    top = Path(logdir)
    found = []
    for path in sorted(top.rglob("*tfevents*"), key=lambda path: (str(path.parent), path.name)):
        found += [(str(path.parent.relative_to(top)), *value) for value in _values(path)]
    return found


def together(logdir: str | Path) -> list[set[str]]:
    """The tags of each record of a run that holds several values."""
    found = [
        {value.tag for value in event.summary.value}
        for path in Path(logdir).glob("*tfevents*")
        for event in events(path)
    ]
    return [tags for tags in found if len(tags) > 1]


def _values(path: Path) -> Iterator[tuple[int, str, object]]:
    for event in events(path):
        for value in event.summary.value:
            scalar = value.WhichOneof("value") == "simple_value"
            yield event.step, value.tag, value.simple_value if scalar else value.SerializeToString(deterministic=True)


def shown(logdir: str | Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """The points that TensorBoard's Python reader shows, purged ones left out: run -> tag -> (step, value)."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    reader = EventMultiplexer(size_guidance={"scalars": 0}).AddRunsFromDirectory(str(logdir)).Reload()
    return {
        run: {tag: [(point.step, point.value) for point in reader.Scalars(run, tag)] for tag in tags["scalars"]}
        for run, tags in reader.Runs().items()
    }
