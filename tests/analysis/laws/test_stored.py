"""Laws on disk are the laws in memory: their draws, and all that follows from them."""

from __future__ import annotations

import dataclasses
import io
import json
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
from surfaces import grid_runs

from scalespec.analysis import tables
from scalespec.analysis.laws import fit_isoflop, optimum, predict, stored, study_laws
from scalespec.analysis.laws.law import Evidence


@pytest.fixture(scope="module")
def laws():
    runs = grid_runs()
    runs.insert(list(runs.columns).index("seed") + 1, "dropout", np.where(runs["seed"] == 2, 0.1, 0.0))
    found = study_laws(runs, resamples=60)
    profiles, _ = fit_isoflop(runs["params_matmul"], runs["flops_train"], runs["val_loss"], resamples=60)
    return [*found, profiles]


def through_files(laws):
    """The laws after a trip through the bytes of both files."""
    text = json.dumps([law.to_json() for law in laws], allow_nan=False)
    sink = io.BytesIO()
    pq.write_table(stored.evidence_table(laws), sink)
    return stored.laws_of(json.loads(text), tables.read_parquet(io.BytesIO(sink.getvalue())))


def test_every_array_comes_back_bit_for_bit(laws):
    assert any("/dropout=0.1" in law.id for law in laws)
    for law, back in zip(laws, through_files(laws), strict=True):
        assert back == law
        if law.evidence is None:
            assert back.evidence is None
            continue
        for field in dataclasses.fields(Evidence):
            mine, its = getattr(law.evidence, field.name), getattr(back.evidence, field.name)
            if isinstance(mine, dict):
                assert list(mine) == list(its)
                for name in mine:
                    np.testing.assert_array_equal(mine[name], its[name], strict=True)
            elif isinstance(mine, np.ndarray):
                np.testing.assert_array_equal(mine, its, strict=True)
            else:
                assert mine == its


def test_what_follows_from_a_stored_law_is_exactly_what_followed_before(laws):
    stored_laws = through_files(laws)
    for law, back in zip(laws[:1], stored_laws[:1], strict=True):
        assert law.form == "chinchilla"
        assert optimum(back, 1e24) == optimum(law, 1e24)
        assert optimum(back, 1e24)["n"].lo is not None
        points = ([1e8, 1e9], [1e10, 1e11])
        assert predict(back, *points) == predict(law, *points)
        assert predict(back, *points)[0].hi is not None


def test_the_draws_of_other_laws_are_not_taken(laws):
    old = [dataclasses.replace(law, target="another") for law in laws]
    entries = [law.to_json() for law in old]
    with pytest.warns(UserWarning, match=r"laws\.parquet does not belong to laws\.json.*scalespec analyze"):
        back = stored.laws_of(entries, stored.evidence_table(laws))
    assert all(law.evidence is None for law in back)
    assert optimum(back[0], 1e24)["n"].lo is None


def test_laws_without_evidence_are_read_without():
    laws = study_laws(grid_runs(1, 1, 1), resamples=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = through_files(laws)
        assert stored.laws_of([law.to_json() for law in laws], None) == laws
    assert back == laws
    assert stored.evidence_table([]).schema.equals(tables.LAW_EVIDENCE)
