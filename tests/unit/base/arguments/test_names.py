"""Names of arguments: a wrong one is refused with the nearest one."""

from __future__ import annotations

import inspect

import pytest

from hf_mpwriter.base.arguments.names import check_known, naming, nearest

KNOWN = ["logdir", "repo_id", "repo_type", "token"]


@pytest.mark.parametrize(
    ("name", "found"),
    [("repoid", "repo_id"), ("REPO_ID", "repo_id"), ("log_dir", "logdir"), ("tokens", "token"), ("colour", None)],
)
def test_the_nearest_name_is_found(name, found):
    """Whatever its case; a name that is like none has none."""
    assert nearest(name, KNOWN) == found


def test_the_nearest_name_is_as_it_is_written():
    """In its own case."""
    assert nearest("HF_mpwriter_graze", ["HF_MPWRITER_GRACE"]) == "HF_MPWRITER_GRACE"


def test_a_function_that_takes_any_name_is_asked_nothing():
    """What a subclass of the user passes on is not ours to judge."""

    def takes_all(first, **others):
        """Take everything."""

    check_known(["whatever"], takes_all)


def test_a_decorated_function_is_called_as_it_is():
    """Its signature, its result and its own errors stay."""

    @naming
    def add(first: int, second: int = 2) -> int:
        """Add."""
        return first + second

    assert add(1) == 3
    assert add(1, second=3) == 4
    assert list(inspect.signature(add).parameters) == ["first", "second"]
    with pytest.raises(TypeError, match="first"):
        add()
    with pytest.raises(TypeError, match=r"^unexpected argument 'secnd'\. Did you mean 'second'\?$"):
        add(1, secnd=3)
