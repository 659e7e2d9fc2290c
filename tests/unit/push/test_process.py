"""The process of a push."""

from __future__ import annotations

from programs import run_python


def test_a_push_ends_at_once_and_what_libraries_have_printed_is_in_the_log():
    """Buffered text goes out; what Python would do at the end of an interpreter is not waited for."""
    program = """
import atexit, sys
from hf_mpwriter.push import process
atexit.register(print, "taken apart")
print("out", flush=False)
print("err", end="", file=sys.stderr, flush=False)
process.end()
"""
    ended = run_python(program, env={"PYTHONUNBUFFERED": ""})
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "out\n", "err")
