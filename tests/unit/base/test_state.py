"""State: what is written is what is read, and damage of any kind is one exception."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import JSON

from hf_mpwriter.base import state
from hf_mpwriter.base.settings import Destination, Settings


@dataclass(frozen=True)
class Inner:
    """Checks itself."""

    count: int

    def __post_init__(self) -> None:
        if self.count == 13:
            raise ValueError("unlucky")


@dataclass(frozen=True)
class Outer:
    """One field of each type."""

    text: str
    number: int
    real: float
    switch: bool
    maybe: bool | None
    perhaps: tuple[str, ...] | None
    numbers: tuple[int, ...]
    nested: dict[str, list[Inner]]
    names: frozenset[str]
    inner: Inner | None
    late: dict[str, int] = field(default_factory=dict)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
INNER = st.builds(Inner, st.integers().filter(lambda number: number != 13))
OUTER = st.builds(
    Outer,
    text=st.text() | st.just("\udcff"),  # of a file name that is no UTF-8
    number=st.integers(),
    real=FINITE,
    switch=st.booleans(),
    maybe=st.none() | st.booleans(),
    perhaps=st.none() | st.lists(st.text()).map(tuple),
    numbers=st.lists(st.integers()).map(tuple),
    nested=st.dictionaries(st.text(), st.lists(INNER, max_size=3)),
    names=st.frozensets(st.text()),
    inner=st.none() | INNER,
    late=st.dictionaries(st.text(), st.integers()),
)
ONE = Outer("a", 1, 0.5, True, None, None, (1,), {"x": [Inner(1)]}, frozenset({"b", "a"}), Inner(2))
FIELDS = json.loads(state.dump(ONE))


@given(OUTER)
def test_what_is_dumped_is_loaded(one):
    """Equal, and of the same types."""
    found = state.load(Outer, state.dump(one))
    assert found == one
    assert [type(value) for value in vars(found).values()] == [type(value) for value in vars(one).values()]


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_what_could_not_be_loaded_is_not_dumped(number):
    """A float that is not finite is found where it comes from."""
    with pytest.raises(ValueError, match="JSON"):
        state.dump(Outer(**{**vars(ONE), "real": number}))


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b"1" * 10_000)
@example(b"\xff\xfe")
def test_any_bytes_are_damage(data):
    """Whatever a disk shows: one exception."""
    with pytest.raises(state.DamagedError):
        state.load(Outer, data)


@given(OUTER, st.sampled_from(sorted(FIELDS)), JSON)
@example(ONE, "real", 10**400)
@example(ONE, "number", True)
@example(ONE, "inner", {"count": 13})
def test_one_damaged_field_is_damage_or_of_its_type(one, name, value):
    """What is let through is what `dump` would have written."""
    data = json.dumps({**json.loads(state.dump(one)), name: value}).encode()
    try:
        found = state.load(Outer, data)
    except state.DamagedError:
        return
    assert state.load(Outer, state.dump(found)) == found


WRONG = {
    "text": [None, 1, "a\ud800"],  # half of a character: no path, URL or stream takes it
    "number": [1.0, True, "1"],
    "real": [True, "1", 10**400],
    "switch": [1, None],
    "maybe": [0],
    "perhaps": ["ab", [1]],
    "numbers": [None, [1.0]],
    "nested": [[], {"x": [{"count": "1"}]}, {"x": [{}]}],
    "names": [{"a": 1}, ["\udbff"]],
    "late": [{"\udc00\ud83d": 1}],
    "inner": [{"count": 1, "more": 2}, {"count": 13}, [1]],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_of_another_type_is_damage(name):
    """Also deep within, a bool in the place of a number, and what a dataclass refuses itself."""
    for value in WRONG[name]:
        with pytest.raises(state.DamagedError):
            state.load(Outer, json.dumps({**FIELDS, name: value}).encode())


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_damage(text):
    """Python's JSON reads them; no time and no length is one."""
    with pytest.raises(state.DamagedError):
        state.load(Outer, json.dumps({**FIELDS, "real": 0.25}).replace("0.25", text).encode())


def test_the_fields_are_exactly_those_of_the_type():
    """None may be missing, not even one with a default: a file of another version is not half understood."""
    wrong = [{other: FIELDS[other] for other in FIELDS if other != name} for name in FIELDS]
    for fields in (*wrong, {**FIELDS, "colour": "red"}):
        with pytest.raises(state.DamagedError, match="other fields"):
            state.load(Outer, json.dumps(fields).encode())


def test_what_settings_refuse_is_damage():
    """A SettingsError is for people who give settings, not for files."""
    good = json.loads(state.dump(Settings()))
    with pytest.raises(state.DamagedError, match="commit_every"):
        state.load(Settings, json.dumps({**good, "commit_every": 0}).encode())
    with pytest.raises(state.DamagedError, match="HF_ENDPOINT"):
        state.load(Destination, state.dump(Destination("https://hub", "me/run")).replace(b"https", b"ftp"))


def test_a_type_that_cannot_be_loaded_is_a_mistake_of_ours():
    """Found at the first load, not by what a file holds."""

    @dataclass(frozen=True)
    class Strange:
        """JSON has no bytes."""

        anything: bytes

    with pytest.raises(TypeError):
        state.load(Strange, b'{"anything": 1}')
    with pytest.raises(TypeError):
        state.dump(Strange(b""))
