"""A pytest plugin: of a framework's own tests run those about TensorBoard, with our class in the place of theirs.

    pytest -p frameworks_plugin --outcomes FILE --framework lightning [--ours] .../test_tensorboard.py

A test is about TensorBoard if that word is in its name, in the name of its class or module, or in its source. Our class
is put wherever a module has theirs, and before the tests are imported; so theirs and ours are judged by the same lines.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
from typing import Any

import pytest

WORD = "tensorboard"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the head of this module."""
    parser.addoption("--framework", required=True, choices=[*PLACES], help="whose tests these are")
    parser.addoption("--ours", action="store_true", help="put our class in the place of theirs")
    parser.addoption("--outcomes", required=True, metavar="FILE", help="what became of the tests, in lines of JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Put ours in place, before any test is imported."""
    framework = config.getoption("--framework")
    if framework == "transformers":
        _let_transformers_meet_a_hub()
    if config.getoption("--ours"):
        PLACES[framework]()
    config.addinivalue_line("markers", "flaky: of pytest-rerunfailures, which is not needed")
    config.pluginmanager.register(_Recorder(config.getoption("--outcomes")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not about TensorBoard."""
    others = [item for item in items if WORD not in (item.nodeid + _source(item)).lower()]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def _source(item: pytest.Item) -> str:
    with contextlib.suppress(OSError, TypeError):
        return inspect.getsource(item.obj)  # type: ignore[attr-defined]
    return ""


class _Recorder:
    """Writes one line per phase of a test, and one in the end."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - until the process ends

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase of a test has ended."""
        self._write(report, "error" if report.failed and report.when != "call" else report.outcome)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module was imported, or could not be."""
        if report.failed:
            self._write(report, "error")

    def _write(self, report: pytest.TestReport | pytest.CollectReport, outcome: str) -> None:
        name = report.nodeid.replace("HubTensorBoard", "TensorBoard")  # parameters are named after their class
        self._tell({"test": name, "outcome": outcome})

    def pytest_unconfigure(self) -> None:
        """All tests have ended: how many run directories our writers had in this process."""
        workers = sys.modules.get("hf_mpwriter.worker.registry")
        self._tell({"runs": len(workers._workers) if workers else 0})  # noqa: SLF001 - nobody else needs to know

    def _tell(self, line: dict[str, object]) -> None:
        self._file.write(json.dumps(line) + "\n")


def _put(ours: type, theirs: type) -> None:
    """Whoever looks for their class finds ours; what was derived from theirs stays so."""
    others = [module for name, module in sys.modules.items() if not name.startswith("hf_mpwriter")]
    for module in others:
        for name in [name for name, value in vars(module).items() if value is theirs]:
            setattr(module, name, ours)


def _lightning() -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    from hf_mpwriter.integrations.lightning import HubTensorBoardLogger

    _put(HubTensorBoardLogger, TensorBoardLogger)


def _fabric() -> None:
    from lightning.fabric.loggers import TensorBoardLogger as Theirs

    from hf_mpwriter.integrations.lightning import HubTensorBoardLogger

    class TensorBoardLogger(HubTensorBoardLogger):
        """What the Trainer of Lightning calls `save_dir`, Fabric calls `root_dir`."""

        def __init__(self, root_dir: Any, name: Any = "lightning_logs", version: Any = None, **kwargs: Any) -> None:
            super().__init__(root_dir, name, version, **kwargs)

    _put(TensorBoardLogger, Theirs)


def _accelerate() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker

    from hf_mpwriter.integrations.accelerate import HubTensorBoardTracker

    class NamedAsTheirs(HubTensorBoardTracker):
        """What `log_with="tensorboard"` finds."""

        name = "tensorboard"

    LOGGER_TYPE_TO_CLASS["tensorboard"] = NamedAsTheirs
    _put(NamedAsTheirs, TensorBoardTracker)


def _transformers() -> None:
    from transformers.integrations import TensorBoardCallback
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from hf_mpwriter.integrations.transformers import HubTensorBoardCallback

    INTEGRATION_TO_CALLBACK["tensorboard"] = HubTensorBoardCallback
    _put(HubTensorBoardCallback, TensorBoardCallback)


def _let_transformers_meet_a_hub() -> None:
    """Their tests that push are for a Hub of their own; the local one is as good."""
    from transformers import testing_utils

    from hf_mpwriter.localhub.server.state import DEFAULT_USER

    testing_utils._run_staging = True  # noqa: SLF001 - the variable that sets it names their Hub to the client, too
    testing_utils.USER = DEFAULT_USER
    testing_utils.require_tensorboard = lambda test: test  # theirs forgets the test, and what is left always passes


PLACES = {"accelerate": _accelerate, "fabric": _fabric, "lightning": _lightning, "transformers": _transformers}
