import json

import numpy as np
import pytest

from scalespec.analysis import tables
from scalespec.analysis.laws.law import Evidence, Exclusion, FitStatus, Law, Param, positive

LAW = Law(
    id="chinchilla/dropout=0.2",
    form="chinchilla",
    target="val_loss",
    params={"alpha": Param(0.34, 0.3, 0.4), "E": Param(1.8)},
    level=0.95,
    resampling="400 bootstrap draws over 18 families",
    n_points=92,
    n_used=90,
    status=frozenset({FitStatus.AT_BOUND, FitStatus.CONVERGED}),
    n_column="params_matmul",
    excluded=(Exclusion("w1", "diverged: non_finite"), Exclusion("w2", "failed: oom")),
    objective=1e-3,
    delta=0.01,
    diagnostics={"points": {"c": [1.0, 2.0]}, "at_bound": ["E"]},
    evidence=Evidence({}, np.zeros(1), ("w0",)),
)


def test_json_round_trip_keeps_everything_but_the_evidence():
    text = json.dumps(LAW.to_json(), allow_nan=False)
    back = Law.from_json(json.loads(text))
    assert back == LAW
    assert back.evidence is None
    assert back["alpha"] == 0.34


def test_json_has_exactly_the_keys_of_the_contract():
    names = {field.name for field in tables.LAWS} - {"param", "value", "lo", "hi"}
    assert names | {"params", "excluded", "diagnostics"} == set(LAW.to_json())


def test_statuses_are_those_of_the_contract():
    assert {status.value for status in FitStatus} == set(tables.FIT_STATUSES)


def test_json_has_no_nan_and_no_numpy():
    law = Law(
        id="x", form="x", target="x", params={"a": Param(float("inf"), float("nan"), 1.0)}, level=0.95, resampling="",
        n_points=1, n_used=1, status=frozenset(), diagnostics={"a": np.float64(2), "b": np.arange(2), "c": [np.nan]},
    )  # fmt: skip
    entry = json.loads(json.dumps(law.to_json(), allow_nan=False))
    assert entry["params"]["a"] == {"value": None, "lo": None, "hi": 1.0}
    assert entry["diagnostics"] == {"a": 2.0, "b": [0, 1], "c": [None]}


def test_an_unknown_or_missing_key_is_named():
    entry = LAW.to_json()
    del entry["level"]
    entry["colour"] = 1
    with pytest.raises(ValueError, match=r"colour.*level"):
        Law.from_json(entry)


@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0, np.inf])
def test_positive_names_the_column_and_the_place(bad):
    with pytest.raises(ValueError, match=r"^n: 1 of 3 values .* position 1"):
        positive("n", [1.0, bad, 2.0])
