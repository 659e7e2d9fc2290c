"""What helps against a cause: no token is judged that was not tried."""

from __future__ import annotations

import os
import time

import pytest

from hf_mpwriter.base.verdicts import Cause
from hf_mpwriter.spool.causes import LOGIN, SET, TABLE, UNLESS, cure, cure_here

VARIABLE, NOTHING = {"HF_TOKEN": "hf_x"}, dict[str, str]()
VALID, WRITES = "is valid", "may write"


@pytest.mark.parametrize(
    ("cause", "then", "here", "has_file", "expected"),
    [
        (Cause.NO_TOKEN, NOTHING, NOTHING, False, LOGIN),
        (Cause.NO_TOKEN, NOTHING, VARIABLE, False, ""),
        (Cause.NO_TOKEN, NOTHING, NOTHING, True, ""),
        (Cause.TOKEN, VARIABLE, VARIABLE, False, UNLESS.format(VALID)),
        (Cause.TOKEN, VARIABLE, NOTHING, False, SET.format(VALID)),
        (Cause.TOKEN, VARIABLE, NOTHING, True, ""),
        (Cause.TOKEN, NOTHING, VARIABLE, True, ""),
        (Cause.TOKEN, NOTHING, NOTHING, True, LOGIN),
        (Cause.RIGHTS, NOTHING, NOTHING, True, TABLE[Cause.RIGHTS][1]),
        (Cause.RIGHTS, VARIABLE, VARIABLE, False, UNLESS.format(WRITES)),
        (Cause.DNS, NOTHING, VARIABLE, True, TABLE[Cause.DNS][1]),
    ],
)
def test_a_token_that_was_not_tried_is_not_judged(tmp_path, cause, then, here, has_file, expected):
    """`then`: the environment of the uploader that has failed; `here`: that of who looks at the run."""
    (path := tmp_path / "token").write_text("hf_y")
    environ = here | {"HF_TOKEN_PATH": str(path if has_file else tmp_path / "none")}
    assert cure_here(cause, cure(cause, then), time.time() + 1, environ) == expected


def test_a_login_since_the_failure_was_not_tried(tmp_path):
    """The file has another token by now."""
    (path := tmp_path / "token").write_text("hf_y")
    os.utime(path, (1000, 1000))
    environ = {"HF_TOKEN_PATH": str(path)}
    assert cure_here(Cause.TOKEN, LOGIN, 1001.0, environ) == LOGIN
    assert cure_here(Cause.TOKEN, LOGIN, 999.0, environ) == ""
