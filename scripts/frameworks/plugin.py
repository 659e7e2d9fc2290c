"""A pytest plugin that runs those of a framework's own tests that are about TensorBoard, with its class or with ours.

    pytest -p plugin --outcomes FILE --framework lightning [--ours] .../test_tensorboard.py

A test is about TensorBoard if that word is in its name, in the name of its class or module, or in its source. With
--ours, our class replaces theirs in every module before the tests are imported: the same lines test both.
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
    """Add the options."""
    parser.addoption("--framework", required=True, choices=[*REPLACEMENTS], help="whose tests to run")
    parser.addoption("--ours", action="store_true", help="replace their class by ours")
    parser.addoption("--outcomes", required=True, metavar="FILE", help="write outcomes there, as lines of JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Replace their class, before any test is imported."""
    framework = config.getoption("--framework")
    if framework == "transformers":
        _give_transformers_a_hub()
    if config.getoption("--ours"):
        REPLACEMENTS[framework]()
    config.addinivalue_line("markers", "flaky: a marker of pytest-rerunfailures, which is not needed")
    config.pluginmanager.register(_Recorder(config.getoption("--outcomes")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is not about TensorBoard."""
    others = [item for item in items if WORD not in (item.nodeid + _source(item)).lower()]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def _source(item: pytest.Item) -> str:
    with contextlib.suppress(OSError, TypeError):
        return inspect.getsource(item.obj)  # type: ignore[attr-defined]
    return ""


class _Recorder:
    """Writes one line per phase of a test, and one at the end."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open until the process ends

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the outcome of a phase of a test."""
        self._write(report, "error" if report.failed and report.when != "call" else report.outcome)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Write that a module could not be imported."""
        if report.failed:
            self._write(report, "error")

    def _write(self, report: pytest.TestReport | pytest.CollectReport, outcome: str) -> None:
        name = report.nodeid.replace("HubTensorBoard", "TensorBoard")  # parameters are named after the class
        self._append({"test": name, "outcome": outcome})

    def pytest_unconfigure(self) -> None:
        """Write how many run directories our writers had in this process."""
        workers = sys.modules.get("hf_mpwriter.worker.registry")
        self._append({"runs": len(workers._workers) if workers else 0})  # noqa: SLF001 - there is no public way

    def _append(self, line: dict[str, object]) -> None:
        self._file.write(json.dumps(line) + "\n")


def _replace(theirs: type, ours: type) -> None:
    """Replace their class in all modules; its subclasses stay as they are."""
    others = [module for name, module in sys.modules.items() if not name.startswith("hf_mpwriter")]
    for module in others:
        for name in [name for name, value in vars(module).items() if value is theirs]:
            setattr(module, name, ours)


def _lightning() -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    from hf_mpwriter.integrations.lightning import HubTensorBoardLogger

    _replace(TensorBoardLogger, HubTensorBoardLogger)


def _fabric() -> None:
    from lightning.fabric.loggers import TensorBoardLogger as Theirs

    from hf_mpwriter.integrations.lightning import HubTensorBoardLogger

    class TensorBoardLogger(HubTensorBoardLogger):
        """Our logger with the argument names of Fabric: `save_dir` is `root_dir`."""

        def __init__(self, root_dir: Any, name: Any = "lightning_logs", version: Any = None, **kwargs: Any) -> None:
            super().__init__(root_dir, name, version, **kwargs)

    _replace(Theirs, TensorBoardLogger)


def _accelerate() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker

    from hf_mpwriter.integrations.accelerate import HubTensorBoardTracker

    class NamedAsTheirs(HubTensorBoardTracker):
        """Our tracker under the name of theirs, for `log_with="tensorboard"`."""

        name = "tensorboard"

    LOGGER_TYPE_TO_CLASS["tensorboard"] = NamedAsTheirs
    _replace(TensorBoardTracker, NamedAsTheirs)


def _transformers() -> None:
    from transformers.integrations import TensorBoardCallback
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from hf_mpwriter.integrations.transformers import HubTensorBoardCallback

    INTEGRATION_TO_CALLBACK["tensorboard"] = HubTensorBoardCallback
    _replace(TensorBoardCallback, HubTensorBoardCallback)


def _give_transformers_a_hub() -> None:
    """Run the tests that push: they need a staging Hub, and the local one will do."""
    from transformers import testing_utils

    from hf_mpwriter.localhub.config import USER

    testing_utils._run_staging = True  # noqa: SLF001 - the variable that sets it also points the client to their Hub
    testing_utils.USER = USER
    testing_utils.require_tensorboard = lambda test: test  # theirs returns no test, so the result always passes


REPLACEMENTS = {"accelerate": _accelerate, "fabric": _fabric, "lightning": _lightning, "transformers": _transformers}
