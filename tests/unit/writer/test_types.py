"""What a type checker tells users; `scripts/lint` checks the files of tests/typing with mypy and with pyright."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest
from repository import ROOT

from hf_mpwriter import SummaryWriter

WRONG = ROOT / "tests" / "typing" / "wrong_calls.py"
PUBLIC = sorted(name for name in dir(SummaryWriter) if name.startswith("add_"))


def test_each_wrong_call_is_found_by_mypy(tmp_path):
    """Without the comments that silence them: one error a line, and the nearest name for those that are misspelt."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    source = WRONG.read_text()
    expected = {number for number, line in enumerate(source.splitlines(), 1) if "# type: ignore" in line}
    path = tmp_path / "calls.py"
    path.write_text(re.sub(r"# type: ignore\[.*\]", "", source))
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    errors = re.findall(r"calls\.py:(\d+): error: (.*)", result.stdout)
    assert {int(number) for number, _ in errors} == expected, result.stdout + result.stderr
    told = "\n".join(text for _, text in errors)
    assert 'Unexpected keyword argument "repoid" for "HFSummaryWriter"; did you mean "repo_id"?' in told
    assert 'Unexpected keyword argument "globalstep" for "add_scalar" of "ScalarMethods"' in told


def test_a_constructor_has_no_holes():
    """Neither `*args` nor `**kwargs`, and a type for each argument."""
    found = inspect.signature(SummaryWriter).parameters.values()
    assert {one.kind for one in found} <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    assert [one.name for one in found if one.annotation is inspect.Parameter.empty] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_a_method_tells_its_arguments(name):
    """`help` shows a docstring of ours with each argument and what is raised; each argument has a type."""
    method = getattr(SummaryWriter, name)
    text = inspect.getdoc(method)
    assert method.__module__.startswith("hf_mpwriter.")
    assert "Raises:" in text
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        assert re.search(rf"^ +\*?{parameter.name}: ", text, re.MULTILINE), parameter
