"""The Python of uploaders and pushes is found without starting a program, and records survive any start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from hf_mpwriter.system import launch
from hf_mpwriter.system.launch import PYTHON_VARIABLE, interpreter


def script(path) -> str:
    """A launcher of a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/bin/sh\nexec /usr/bin/env python3 /train.py "$@"\n')
    path.chmod(0o755)
    return str(path)


def binary(path) -> str:
    """A program that is no Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(shutil.which("true"), path)
    return str(path)


def test_the_interpreter_of_an_ordinary_process_is_its_own():
    """With its virtual environment: the path is not resolved."""
    assert interpreter({}) == sys.executable


@pytest.mark.parametrize("name", ["python3.11", "train", "python-train"])
@pytest.mark.parametrize("make", [script, binary])
def test_what_is_no_python_is_not_taken_for_one(tmp_path, monkeypatch, make, name):
    """A launcher, a program that embeds Python: the Python of this process is found in another way."""
    monkeypatch.setattr(sys, "executable", make(tmp_path / "bin" / name))
    found = interpreter({})
    assert not found.startswith(str(tmp_path))
    assert subprocess.check_output([found, "-c", "print(6 * 7)"]) == b"42\n"


def test_an_executable_that_links_to_another_program_is_none(tmp_path, monkeypatch):
    """Its name says python, the file does not."""
    binary(tmp_path / "launcher")
    (tmp_path / "python3").symlink_to(tmp_path / "launcher")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    assert not interpreter({}).startswith(str(tmp_path))


@pytest.mark.parametrize("executable", [None, "", "python", "/nonexistent/python3", "/"])
def test_without_a_usable_executable_the_running_one_is_found(monkeypatch, executable):
    """As in a program that embeds Python and was told nothing."""
    monkeypatch.setattr(sys, "executable", executable)
    assert os.path.isabs(interpreter({}))


def test_a_program_in_which_no_python_is_found_is_told_what_helps(tmp_path, monkeypatch):
    """An embedding program with the library beside it and no interpreter; a frozen one."""
    monkeypatch.setattr(sys, "executable", binary(tmp_path / "bin" / "train"))
    monkeypatch.setattr(sys, "_base_executable", sys.executable)
    for name in ("exec_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, name, str(tmp_path))
    monkeypatch.setattr(os, "readlink", lambda _: sys.executable)
    with pytest.raises(OSError, match=f"train', .*set {PYTHON_VARIABLE}"):
        interpreter({})
    monkeypatch.undo()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(OSError, match=PYTHON_VARIABLE):
        interpreter({})
    assert interpreter({PYTHON_VARIABLE: sys.executable}) == sys.executable


def test_the_users_choice_is_a_program_by_path_or_name(tmp_path):
    """It is searched like a command; a wrapper script is the user's own business."""
    wrapper = script(tmp_path / "bin" / "my-python")
    for named in (wrapper, "my-python"):
        assert interpreter({PYTHON_VARIABLE: named, "PATH": f"relative:{tmp_path / 'bin'}"}) == wrapper
    for named in ("nothing", "/nonexistent/python", str(tmp_path), "./python"):
        with pytest.raises(OSError, match=f"{PYTHON_VARIABLE} is"):
            interpreter({PYTHON_VARIABLE: named, "PATH": str(tmp_path / "bin")})


@pytest.mark.parametrize("taken", [(), (0,), (0, 1, 2)])
def test_a_record_is_on_a_descriptor_above_the_standard_ones(taken):
    """A program may have closed those: whatever it prints would go into the record."""
    pid = os.fork()
    if not pid:
        try:
            for fd in taken:
                os.close(fd)
            with launch.unnamed_file(b"head\nbody\n") as fd:
                os._exit(0 if fd > 2 and launch.read_record(os.dup(fd)) == b"body\n" else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
