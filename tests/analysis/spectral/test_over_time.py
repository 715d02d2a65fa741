"""Slopes, change points and correlations on series whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scalespec.analysis.spectral.over_time import agreement, change_points, changes, loss_correlation, slopes


def series(values, steps=None, **more):
    steps = [1, 10, 100, 1000, 10_000, 100_000][: len(values)] if steps is None else steps
    fixed = {"run_key": "r", "layer": "w", "profile": "native", "status": "ok"}
    return pd.DataFrame([fixed | {"step": s, "alpha": v} for s, v in zip(steps, values)]).assign(**more)


def test_slope_per_decade_of_steps_is_not_moved_by_one_outlier():
    found = slopes(series([10.0, 8.0, 6.0, 4.0, 90.0, 0.0]), ["alpha"])
    assert found["slope"].item() == pytest.approx(-2)
    assert found["lo"].item() <= -2 <= found["hi"].item()
    assert found["n"].item() == 6


def test_slopes_leave_out_step_zero_failed_fits_and_short_series():
    table = series([50.0, 8.0, 6.0, 4.0], steps=[0, 10, 100, 1000])
    assert slopes(table, ["alpha"])["slope"].item() == pytest.approx(-2)
    table.loc[2, "status"] = "failed_fit"
    assert len(slopes(table, ["alpha"])) == 0
    assert len(slopes(table, ["a column that is not there"])) == 0


def test_change_points_are_found_where_they_were_put():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(50):
        values = np.r_[np.full(12, 3.0), np.full(10, 5.0), np.full(8, 2.0)] + 0.2 * rng.standard_normal(30)
        hits += change_points(values) == [12, 22]
    assert hits >= 45


def test_constant_noise_seldom_has_a_change_point():
    rng = np.random.default_rng(1)
    assert np.mean([len(change_points(rng.standard_normal(30))) > 0 for _ in range(200)]) < 0.1


def test_exact_steps_and_short_series():
    assert change_points(np.r_[np.zeros(5), np.ones(5)]) == [5]
    assert change_points(np.zeros(9)) == []
    assert change_points(np.array([1.0, 2.0, 9.0])) == []
    assert change_points(np.empty(0)) == []


def test_one_jumping_checkpoint_is_no_new_level():
    values = np.full(14, 5.0) + 0.05 * np.random.default_rng(2).standard_normal(14)
    values[6] = 12.9
    assert all(abs(at - 6) <= 2 for at in change_points(values))
    assert 6 not in [a for a, b in zip(change_points(values), change_points(values)[1:]) if b - a == 1]


def test_changes_name_step_and_levels():
    steps = list(range(0, 1000, 100))
    found = changes(series([9.0] * 5 + [3.0] * 5, steps=steps), ["alpha"])
    assert found[["step", "before", "after"]].to_numpy().tolist() == [[500, 9.0, 3.0]]


def test_agreement_is_the_rank_correlation_over_steps():
    table = series([9.0, 7.0, 5.0, 4.0, 3.0], rand_distance=[0.1, 0.2, 0.3, 0.4, 0.5], spectral_norm=[1.0] * 5)
    found = agreement(table)
    assert found["metric"].tolist() == ["rand_distance"]
    assert found["rho"].item() == pytest.approx(-1)


def study(rho, families=8, runs=2, steps=12, seed=0):
    """Families whose runs share a trunk: the first half of the steps is the same in every run."""
    rng, rows = np.random.default_rng(seed), []
    for f in range(families):
        trunk = rng.standard_normal((steps // 2, 2))
        for r in range(runs):
            moves = np.concatenate((trunk, rng.standard_normal((steps - steps // 2, 2))))
            metric = rho * moves[:, 0] + np.sqrt(1 - rho**2) * moves[:, 1]
            for at, (m, v) in enumerate(zip(np.cumsum(metric), np.cumsum(moves[:, 0]))):
                rows.append(
                    {
                        "family_key": f"f{f}",
                        "run_key": f"f{f}r{r}",
                        "step": at,
                        "alpha": m - at,
                        "val_loss": v - at,
                    }
                )
    return pd.DataFrame(rows)


def test_correlation_of_changes_sees_through_a_common_drift():
    table = study(0.0)
    assert abs(table["alpha"].corr(table["val_loss"], method="spearman")) > 0.5
    strong = loss_correlation(study(0.9), ["alpha"], resamples=200).iloc[0]
    assert strong["lo"] > 0.7
    assert strong["lo"] < strong["rho"] < strong["hi"]
    none = [loss_correlation(study(0.0, seed=s), ["alpha"], resamples=60).iloc[0] for s in range(10)]
    assert np.mean([row["lo"] < 0 < row["hi"] for row in none]) >= 0.6


def test_a_shared_trunk_counts_once():
    found = loss_correlation(study(0.5, families=3, runs=4), ["alpha"], resamples=50).iloc[0]
    # five changes of the trunk once a family, seven of each run's own (the branch included)
    assert (found["families"], found["pairs"]) == (3, 3 * (5 + 4 * 6))


def test_one_family_has_no_interval():
    found = loss_correlation(study(0.5, families=1), ["alpha"], resamples=50).iloc[0]
    assert np.isfinite(found["rho"])
    assert np.isnan(found["lo"])
    assert np.isnan(found["hi"])


def test_missing_losses_and_metrics_are_left_out():
    table = study(0.9)
    table.loc[table["step"] % 3 == 0, "val_loss"] = np.nan
    assert np.isfinite(loss_correlation(table, ["alpha"], resamples=20)["rho"].item())
    table["alpha"] = np.nan
    found = loss_correlation(table, ["alpha"], resamples=20).iloc[0]
    assert (found["pairs"], np.isnan(found["rho"])) == (0, True)
