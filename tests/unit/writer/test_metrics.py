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
from hf_mpwriter.writer.metrics import Encoders, tags_of


class Split(str, enum.Enum):  # noqa: UP042 - unlike StrEnum, `str` of it is not its value
    """A name as many programs have it."""

    TRAIN = "train"


def read(given):
    """What `log` takes of it, all of which is a number."""
    return metrics.read(given, lambda *one: pytest.fail(f"{one} is left out"))


def left_out(given):
    """What is taken, and what is not."""
    out = []
    return metrics.read(given, lambda *one: out.append(one)), out


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
        assert left_out({"x": {"y": wrong}}) == (((), []), [("x/y", wrong)])


@pytest.mark.parametrize(
    "value",
    [
        *(None, "0.5", b"1", bytearray(b"1"), [1.0], (1.0,), {1.0}, object(), 1j, np.complex64(1), np.complex128(1)),
        *(np.zeros(2), np.zeros(0), np.array("x"), np.array(1j), decimal.Decimal("sNaN"), np.datetime64(1, "s"), float),
        np.timedelta64(1, "s"),
    ],
)
def test_what_is_no_scalar_is_left_out(value):
    """Wherever it is; the numbers beside it are taken."""
    for given in ({"a": 0.5, "b/c": value}, {"a": 0.5, "b": {"c": value}}):
        taken, [(name, out)] = left_out(given)
        assert (taken, name) == ((("a",), [0.5]), "b/c")
        assert out is value


def test_what_is_left_out_is_told_once_per_name(caplog):
    """With its shape: a mean that is missing is the usual mistake. Names without end are not told without end."""
    encoders = Encoders()
    for _ in range(2):
        metrics.read({"a": np.zeros((2, 3)), "b": None}, encoders.leave_out)
    assert [record.getMessage() for record in caplog.records] == [
        "log: 'a' is left out: it is no scalar, but of type ndarray of shape (2, 3)",
        "log: 'b' is left out: it is no scalar, but of type NoneType",
    ]
    for number in range(2 * metrics.MOST_TOLD):
        encoders.leave_out(str(number), None)
    assert len(caplog.records) == metrics.MOST_TOLD


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
def test_of_names_that_are_equal_in_the_file_the_second_gets_a_number(given, caplog):
    """Flattened or cleaned: none of the values hides the other, and one line tells it."""
    names = read(given)[0]
    first, second = tags_of(names)
    assert second == f"{first}_2"
    encoders = Encoders()
    encoders[names]
    encoders[(*names, "other")]
    assert [record.getMessage() for record in caplog.records] == [
        f"log: {names[1]!r} is logged as {second!r}, as {first!r} is the name of another value"
    ]
    assert tags_of((*names, second, names[1])) == [first, second, f"{second}_2", f"{first}_3"]


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
