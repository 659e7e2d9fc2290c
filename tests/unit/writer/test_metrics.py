"""Metrics: names and numbers of what is given, or a reason with the name; and encoders, which are bounded."""

from __future__ import annotations

import collections
import decimal
import enum
import fractions
import math
import types

import numpy as np
import pytest

from hf_mpwriter.writer import metrics
from hf_mpwriter.writer.metrics import Encoders, read, tags_of


class Split(str, enum.Enum):  # noqa: UP042 - unlike StrEnum, `str` of it is not its value
    """A name as many programs have it."""

    TRAIN = "train"


def test_nested_mappings_become_paths():
    """Of any kind and depth, in their order; empty ones hold nothing."""
    given = {
        "loss": 1.0,
        "eval": types.MappingProxyType({"acc": 0.5, "deep": collections.OrderedDict(x=1, none={})}),
        "lr": 2,
    }
    assert read(given) == (("loss", "eval/acc", "eval/deep/x", "lr"), [1.0, 0.5, 1.0, 2.0])
    assert read({}) == ((), [])
    assert read({"a": {}}) == ((), [])
    assert read(collections.ChainMap({"a": 1.0}, {"b": 2.0}))[0] == ("b", "a")


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *((1, 1.0), (True, 1.0), (-0.5, -0.5), (10**400, math.inf), (decimal.Decimal("0.25"), 0.25)),
        *((fractions.Fraction(1, 4), 0.25), (np.float16(0.5), 0.5), (np.int64(7), 7.0), (np.bool_(1), 1.0)),
        *((np.array(1.5), 1.5), (np.array([2.5]), 2.5), (np.float64(0.5), 0.5)),
    ],
)
def test_what_is_one_number_is_taken(value, number):
    """As in `add_scalar`, and always as a float of Python."""
    for given in ({"a": value}, {"b": 0.5, "a": value}, {"a": {"a": value}}):
        found = read(given)[1][-1]
        assert (found, type(found)) == (number, float)


@pytest.mark.torch
def test_tensors_of_one_element_are_taken():
    """On any device that has values, of types that numpy lacks too, with a gradient."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    given = {
        "a": torch.tensor(0.5, requires_grad=True),
        "b": torch.tensor([2], dtype=torch.int8),
        "c": torch.tensor(0.25, dtype=torch.bfloat16),
        "d": torch.empty((), device="meta"),
    }
    *found, last = read(given)[1]
    assert found == [0.5, 2.0, 0.25]
    assert math.isnan(last)
    for wrong in (torch.zeros(2), torch.tensor(1j), torch.zeros(0)):
        with pytest.raises(TypeError, match="'x/y' is no scalar: Tensor"):
            read({"x": {"y": wrong}})


@pytest.mark.parametrize(
    "value",
    [
        *(None, "0.5", b"1", bytearray(b"1"), [1.0], (1.0,), {1.0}, object(), 1j, np.complex64(1), np.complex128(1)),
        *(np.zeros(2), np.zeros(0), np.array("x"), np.array(1j), decimal.Decimal("sNaN"), np.datetime64(1, "s"), float),
        np.timedelta64(1, "s"),
    ],
)
def test_what_is_no_scalar_is_refused_by_its_name(value):
    """Wherever it is."""
    for given in ({"a": 0.5, "b/c": value}, {"b": {"c": value}}):
        with pytest.raises(TypeError, match="'b/c' is no scalar"):
            read(given)


def test_the_shape_of_an_array_is_told():
    """It is the usual mistake: a mean is missing."""
    with pytest.raises(TypeError, match=r"'a' is no scalar: ndarray of shape \(2, 3\)"):
        read({"a": np.zeros((2, 3))})


@pytest.mark.parametrize("given", [None, 1.0, [("a", 1.0)], "a", {"a"}])
def test_what_is_no_mapping_is_refused(given):
    """Lists of pairs included."""
    with pytest.raises(TypeError, match="not a mapping"):
        read(given)


@pytest.mark.parametrize("name", [1, None, b"a", ("a",)])
def test_a_name_is_a_string(name):
    """At any depth; where all values are floats, it is seen when the tags are made."""
    with pytest.raises(TypeError, match="not a string"):
        read({"a": {name: 1.0}})
    with pytest.raises(TypeError, match="not a string"):
        tags_of(read({name: 1.0})[0])


def test_a_name_may_be_a_string_of_a_class_of_its_own():
    """Its value is logged, not its representation."""
    assert tags_of(read({Split.TRAIN: 1.0})[0]) == ["train"]
    assert read({Split.TRAIN: {Split.TRAIN: 1.0}})[0] == ("train/train",)


def test_names_are_cleaned_as_add_scalar_does():
    """Spaces and odd characters become underscores, leading slashes go, letters of any script stay."""
    assert tags_of(("/a b", "löss/%", "c.d-e_f", "")) == ["a_b", "löss/_", "c.d-e_f", ""]


@pytest.mark.parametrize("given", [{"a/b": 1.0, "a": {"b": 2.0}}, {"a b": 1.0, "a_b": 2.0}, {"/a": 1, "a": 2}])
def test_names_that_are_equal_in_the_file_are_refused(given):
    """Flattened or cleaned: one of the values would hide the other."""
    with pytest.raises(ValueError, match="the same name in the event file"):
        tags_of(read(given)[0])


def test_encoders_are_made_once_while_there_is_room(monkeypatch):
    """Training and evaluation with thousands of names each; names that never come back end with the growth."""
    encoders = Encoders()
    sets = ["tag", *(tuple(f"{start}/{number}" for number in range(2500)) for start in ("train", "eval", "test"))]
    first = [encoders[one] for one in sets]
    assert [encoders[one] for one in sets] == first
    monkeypatch.setattr(metrics, "NAMES_KEPT", 100)
    for number in range(100):
        encoders[str(number)]
        encoders[str(number), "b"]
        assert len(encoders) <= 100 / (metrics.ENCODER_COST + 1)
    huge = tuple(map(str, range(200)))
    assert encoders[huge] is encoders[huge], "one set above the limit is still made once"


def test_names_that_cannot_be_logged_leave_nothing():
    """Refused each time."""
    encoders = Encoders()
    for _ in range(2):
        with pytest.raises(ValueError, match="the same name"):
            encoders["a b", "a_b"]
    assert len(encoders) == 0
