"""The frameworks' own tests of their TensorBoard loggers: where they are, and which need not pass with ours.

No code of the frameworks is kept here: the sources are those of the tag of the installed version.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from session import TroubleError


@dataclass(frozen=True)
class Suite:
    """The tests of a framework."""

    package: str  # name on the package index
    repository: str  # on GitHub
    tag: str  # of a version, as a format string
    tests: str  # folder of the tests


LIGHTNING = "Lightning-AI/pytorch-lightning"
SUITES = {
    "lightning": Suite("lightning", LIGHTNING, "{}", "tests/tests_pytorch"),
    "fabric": Suite("lightning", LIGHTNING, "{}", "tests/tests_fabric"),
    "accelerate": Suite("accelerate", "huggingface/accelerate", "v{}", "tests"),
    "transformers": Suite("transformers", "huggingface/transformers", "v{}", "tests/trainer"),
}

MOCKED = "replaces torch's writer by a mock, and ours does not use that writer"
EXPECTED = {  # (suite, column, end of the name of the test) -> why it need not pass
    ("lightning", "ours", "::test_tensorboard_finalize"): MOCKED,
    ("lightning", "ours", "::test_logger_with_prefix_all"): MOCKED,
    ("lightning", "ours", "::test_cli_distributed_save_config_callback[ddp_spawn-logger1]"): (
        "unpickles in a spawned process, in which theirs is not replaced"
    ),
    ("fabric", "ours", "::test_tensorboard_finalize"): MOCKED,
    ("fabric", "ours", "::test_tensorboard_expand_home"): (
        "in the logger for the Trainer, theirs and ours, root_dir contains the name of the experiment"
    ),
    ("transformers", "ours", "::test_push_to_hub_with_tensorboard_logs"): (
        "looks for runs/ in what the Trainer pushes; ours uploads to tensorboard/"
    ),
}


def sources(suite: Suite, given: Mapping[str, Path], directory: Path) -> Path:
    """Return the sources of the installed version of a framework; clone them if they are not given."""
    if suite.package in given:
        return given[suite.package]
    target = directory / suite.package
    if not target.is_dir():
        tag = suite.tag.format(version(suite.package))
        url = f"https://github.com/{suite.repository}"
        clone = ["git", "clone", "--quiet", "--depth", "1", "--branch", tag, url, str(target)]
        if subprocess.run(clone, check=False).returncode:
            raise TroubleError(f"cannot clone {url} at {tag}; --source {suite.package}=DIR names a copy")
    return target


def expected(suite: str, column: str, test: str) -> str:
    """Return why this test need not pass with ours, empty if it must."""
    return next(
        (why for (*where, ending), why in EXPECTED.items() if where == [suite, column] and test.endswith(ending)), ""
    )
