"""Values of arguments: refused by the name of the argument, or taken as they are meant."""

from __future__ import annotations

import fractions

import numpy as np
import pytest

from hf_mpwriter.base.arguments import patterns, switch, text_or_none, token_or_none, whole
from hf_mpwriter.base.errors import SettingsError


@pytest.mark.parametrize(
    ("value", "meant"), [(True, True), (0, False), (1, True), (np.True_, True), (np.False_, False)]
)
def test_a_switch_is_true_or_false(value, meant):
    """Also as a number, and as a bool of numpy."""
    assert switch("on", value) is meant


@pytest.mark.parametrize("value", [None, "false", "", 2, -1, 1.0, [], np.zeros(2, bool), np.int64(1)])
def test_what_is_neither_is_no_switch(value):
    """`bool("false")` would be true."""
    with pytest.raises(SettingsError, match=r"^on is "):
        switch("on", value)


def test_a_text_is_a_string_or_none():
    """Bytes are none."""
    assert (text_or_none("name", None), text_or_none("name", "x")) == (None, "x")
    with pytest.raises(SettingsError, match=r"^name is b'x'"):
        text_or_none("name", b"x")


def test_a_token_of_a_wrong_type_is_not_shown():
    """It may be the secret, in another form."""
    assert (token_or_none(None), token_or_none("hf_x")) == (None, "hf_x")
    with pytest.raises(SettingsError, match=r"^token must be a string, not a value of type list") as found:
        token_or_none(["hf_secret"])
    assert "hf_secret" not in str(found.value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, ()),
        ("a/", ("a/*",)),
        (["a", "b/"], ("a", "b/*")),
        (("a",), ("a",)),
        ({"a"}, ("a",)),
        (iter(["a"]), ("a",)),
    ],
)
def test_patterns_are_one_or_several(value, found):
    """A trailing slash means all below."""
    assert patterns("allow", value) == found


@pytest.mark.parametrize("value", [5, True, b"a", {"a": 1}, ["a", 3], [b"a"], [None]])
def test_patterns_are_strings(value):
    """The error names the argument."""
    with pytest.raises(SettingsError, match=r"^allow "):
        patterns("allow", value)


class OnlyInt:
    """Converts to an int, and to nothing else."""

    def __int__(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3),
        (True, 1),
        (2.0, 2),
        ("5", 5),
        (10**400, 10**400),
        (-(2**62) - 1, -(2**62) - 1),
        (np.int64(2**62 + 1), 2**62 + 1),
        (np.float32(4), 4),
        (fractions.Fraction(4, 2), 2),
        (OnlyInt(), 7),
    ],
)
def test_a_whole_number_is_an_int_of_equal_value(value, number):
    """Of any type that Python converts."""
    assert whole("step", value) == number
    assert type(whole("step", value)) is int


@pytest.mark.parametrize("value", [1.5, -0.5, float("nan"), float("inf"), np.float16(1.5), fractions.Fraction(1, 2)])
def test_a_fraction_is_no_whole_number(value):
    """`int` would cut it off."""
    with pytest.raises(ValueError, match=r"^step is .* must be a whole number"):
        whole("step", value)


@pytest.mark.parametrize("value", [None, [1], object(), {}, 1j])
def test_what_is_no_number_is_a_type_error(value):
    """With the name of the argument."""
    with pytest.raises(TypeError, match=r"^step is "):
        whole("step", value)


def test_what_an_object_of_the_program_raises_passes():
    """An exception of a class of its own."""

    class StopError(ValueError):
        pass

    class Stops:
        def __int__(self) -> int:
            raise StopError

    with pytest.raises(StopError):
        whole("step", Stops())
