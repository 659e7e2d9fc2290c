"""Names of arguments: a wrong one is refused with the nearest one."""

from __future__ import annotations

import inspect
import json
import pickle

import pytest

from hf_mpwriter.base.arguments.names import check_known, named_for_users, naming, nearest

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
    with pytest.raises(
        TypeError, match=r"add\(\) got an unexpected keyword argument 'secnd'\. Did you mean 'second'\?$"
    ):
        add(1, secnd=3)


def test_a_name_that_is_a_word_of_a_longer_one_is_found():
    """`step` is less like `global_step` than difflib asks for; a name that is alike comes first."""
    assert nearest("step", ["tag", "global_step"]) == "global_step"
    assert nearest("step", ["global_step", "steps"]) == "steps"


class Inner:
    """A base, which users do not know by its name."""

    def log(self, step):
        """Log."""

    @naming
    def add(self, step):
        """Add."""

    def _keep(self, step):
        """Keep."""


@named_for_users
class Outer(Inner, json.JSONEncoder):
    """What users hold."""


def test_errors_name_the_class_that_users_hold():
    """Also beneath a decorator; what another package or nobody but us calls keeps its own name."""
    for call in (Outer().log, Outer().add):
        with pytest.raises(TypeError, match=rf"^Outer\.{call.__name__}\(\) "):
            call()
        with pytest.raises(TypeError, match=rf"^Outer\.{call.__name__}\(\) got an unexpected keyword argument 'stp'"):
            call(stp=1)
    assert Outer._keep.__qualname__ == "Inner._keep"
    assert Outer.iterencode.__qualname__ == "JSONEncoder.iterencode"
    assert json.JSONEncoder.iterencode.__module__ == "json.encoder"


def test_a_method_can_be_pickled_by_its_new_name():
    """As a target of multiprocessing is."""
    for method in (Outer.log, Outer.add):
        assert pickle.loads(pickle.dumps(method)) is method  # noqa: S301
