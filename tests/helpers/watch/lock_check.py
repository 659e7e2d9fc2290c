"""The lock check: no thread calls `logging` while it holds a thread lock of ours.

    pytest              conftest calls `install`
    its children        `sitecustomize` beside this module calls `install_on_import`
    both                append what they find to the file that REPORT names

The fixture `lock_report` fails the test if there is such a file.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from importlib.machinery import PathFinder

REPORT = "HF_MPWRITER_TEST_LOCK_CHECK"  # variable of the environment: path of the report
LOCKS = "hf_mpwriter.system.process_state"


def install(locks: object) -> None:
    """Check each log call of this process from now on; all of them ask `isEnabledFor` first."""
    is_enabled_for = logging.Logger.isEnabledFor

    def checked(self: logging.Logger, level: int) -> bool:
        if locks.is_any_held():
            report(f"process {os.getpid()} calls the logger {self.name!r} while it holds a thread lock\n")
        return is_enabled_for(self, level)

    logging.Logger.isEnabledFor = checked


def report(what: str) -> None:
    """Append a finding, with the stack, to the report."""
    text = what + "".join(traceback.format_stack()[:-1])
    with open(os.environ[REPORT], "a") as file:
        file.write(text)


class OnImport:
    """Find modules as usual; install the check when the module of the locks is loaded."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        """The spec of the module of the locks; other modules are left alone."""
        if name != LOCKS or (spec := PathFinder.find_spec(name, path, target)) is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: object) -> None:
            load(module)
            if REPORT in os.environ:
                install(module)

        spec.loader.exec_module = exec_module
        return spec


def install_on_import() -> None:
    """Install the check when this process imports the locks; processes without them load nothing."""
    sys.meta_path.insert(0, OnImport)
