from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalespec.trainables.keys import Key, canonical, differing, key, keys_of, restored


@dataclass(frozen=True)
class Inner:
    width: int = key("Width.", least=1)


@dataclass(frozen=True)
class Before:
    lr: float = key("Rate.", over=0)
    inner: Inner = key("Inside.")
    betas: tuple[float, float] = key("Two.", default=(0.9, 0.99), born=(0.9, 0.99), below=1)
    note: str = key("Recorded.", default="", hashed=False)


@dataclass(frozen=True)
class After(Before):
    clip: float | None = key("New.", default=1.0, born=1.0, over=0)


@dataclass(frozen=True)
class Later(After):
    clip: float | None = key("Its default was changed since.", default=2.0, born=1.0, over=0)


def test_a_new_key_with_a_default_leaves_the_identity_as_it_is():
    assert differing(Before(0.1, Inner(8))) == differing(After(0.1, Inner(8)))
    assert differing(After(0.1, Inner(8), clip=3.0)) == {"lr": 0.1, "inner": {"width": 8}, "clip": 3}


def test_a_changed_default_changes_the_runs_that_use_it():
    assert differing(Later(0.1, Inner(8))) != differing(Before(0.1, Inner(8)))
    assert differing(Later(0.1, Inner(8), clip=1.0)) == differing(Before(0.1, Inner(8)))


def test_what_is_not_hashed_is_not_in_it():
    assert differing(Before(0.1, Inner(8), note="x")) == differing(Before(0.1, Inner(8)))


def test_a_hashed_key_with_a_default_must_say_what_it_is_born_as():
    with pytest.raises(TypeError, match="needs `born`"):
        key("Forgotten.", default=1)


def test_what_another_version_wrote_takes_what_it_was_born_as():
    old = {"lr": 0.1, "inner": {"width": 8}, "betas": [0.9, 0.99], "note": ""}
    assert restored(Later, old) == Later(0.1, Inner(8), clip=1.0)
    assert restored(Before, dataclasses.asdict(Before(0.1, Inner(8)))) == Before(0.1, Inner(8))
    with pytest.raises(TypeError, match="unknown clip, zeal"):
        restored(Before, {**old, "zeal": 1, "clip": 2})
    with pytest.raises(TypeError, match="inner is missing"):
        restored(Before, {"lr": 0.1})
    with pytest.raises(TypeError, match="Inner: unknown depth"):
        restored(Before, {**old, "inner": {"width": 8, "depth": 2}})


@given(st.integers(min_value=-(2**53), max_value=2**53))
def test_a_number_is_one_number_however_it_is_written(value):
    assert repr(canonical(float(value))) == repr(canonical(value))


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_different_numbers_stay_different(a, b):
    assert (canonical(a) == canonical(b)) is (a == b)


@pytest.mark.parametrize(
    ("kind", "bounds", "good", "bad"),
    [
        (int, {"least": 1}, [1, 8.0, 2**63 - 1], [0, 1.5, True, "1", None, math.nan, math.inf, 2**63, [1]]),
        (float, {"over": 0, "below": 1}, [0.5, 1e-300], [0, 1, -1, math.nan, math.inf, True, "0.5", None]),
        (bool, {}, [True, False], [0, 1, "yes", None]),
        (str, {"choices": ("a", "b")}, ["a"], ["c", 1, None, True]),
        (str, {"pattern": ("[a-z]+", "small letters")}, ["abc"], ["a1", "", "abc\n", 5]),
        (Fraction, {"over": 0, "most": 1}, [Fraction(1, 3), 1], [0, 2, True]),
        (tuple[float, float], {"below": 1}, [[0.5, 0.9], (0, 0)], [[0.5], [0.5, 1], 0.5, "ab"]),
        (int, {"auto": True, "least": 1}, ["auto", 2], ["fast", 0]),
        (int, {"optional": True}, [None, 3], ["x"]),
    ],
)
def test_checks(kind, bounds, good, bad):
    found = Key("x", kind, **bounds)
    for value in good:
        assert found.check(value) in (value, tuple(value) if isinstance(value, list) else value)
    for value in bad:
        with pytest.raises(ValueError, match=r"^must .*") as caught:
            found.check(value)
        assert "\n" not in str(caught.value)


def test_a_checked_number_has_the_type_of_its_key():
    assert type(Key("x", float).check(3)) is float
    assert type(Key("x", int).check(3.0)) is int


def test_huge_numbers_are_named_in_short():
    with pytest.raises(ValueError, match="64 bits") as caught:
        Key("x", int).check(10**5000)
    assert len(str(caught.value)) < 120


def test_a_dataclass_of_a_user_needs_no_metadata():
    @dataclass(frozen=True)
    class Options:
        depth: int = 2
        rate: float = 0
        kind: Literal["a", "b"] = "a"
        name: str | None = None
        anything: object = 1
        slow: bool = field(default=False, metadata={"born": False, "says": "Slow.", "mine": 3})

    found = keys_of(Options)
    assert found["rate"].check(1) == 1.0
    assert found["kind"].choices == ("a", "b")
    assert found["name"].check(None) is None
    assert found["anything"].check("x") == "x"
    assert (found["slow"].born, found["slow"].says) == (False, "Slow.")
    with pytest.raises(ValueError, match="whole number"):
        found["depth"].check(True)
