"""Variables of the environment: those that do not exist are found, with the nearest one."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import hf_mpwriter
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.base.arguments import variables

PACKAGE = Path(hf_mpwriter.__file__).parent


def test_every_variable_of_the_package_is_known():
    """One that is added must be added there too: else each use of it would be called a mistake."""
    named = {name for path in PACKAGE.rglob("*.py") for name in re.findall(r"HF_MPWRITER_[A-Z_]+", path.read_text())}
    assert named - variables.KNOWN - {variables.PREFIX} == set()


def test_a_misspelt_variable_is_found_with_the_nearest_one():
    """In any case of letters; a variable of another program is none of ours."""
    environ = {
        "HF_MPWRITER_GRACE": "5",
        "HF_MPWRITER_EXIT_TIMOUT": "5",
        "HF_MPWRITER_repo_id": "me/run",
        "HF_MPWRITER_XYZ": "1",
        "HF_TOKEN": "x",
        "MY_HF_MPWRITER_GRACE": "5",
    }
    assert variables.unknown(environ) == {
        "HF_MPWRITER_EXIT_TIMOUT": "Did you mean 'HF_MPWRITER_EXIT_TIMEOUT'?",
        "HF_MPWRITER_XYZ": "",
        "HF_MPWRITER_repo_id": "Did you mean 'HF_MPWRITER_REPO_ID'?",
    }


def test_a_parameter_that_has_no_variable_is_named():
    """Rather than a variable that is spelt alike. What is listed is a parameter of writers, and no variable."""
    said = "commit_every is a parameter of the writer, and has no variable."
    assert variables.unknown({"HF_MPWRITER_COMIT_EVERY": "5"}) == {"HF_MPWRITER_COMIT_EVERY": said}
    parameters = inspect.signature(HFSummaryWriter.__init__).parameters
    assert {name.lower() for name in variables.PARAMETERS} <= set(parameters)
    assert not set(variables.PARAMETERS) & set(variables.SETTINGS)
