import itertools

import numpy as np
import pandas as pd
import pytest

from scalespec.analysis.selection import bootstrap_bias_corrected, expected_best, select

RNG = np.random.default_rng(0)


def test_expected_best_equals_brute_force():
    losses = RNG.standard_normal(8)
    brute = [np.mean([min(chosen) for chosen in itertools.combinations(losses, n)]) for n in range(1, 9)]
    np.testing.assert_allclose(expected_best(losses), brute, rtol=1e-10)


def test_expected_best_is_unbiased_where_the_common_form_is_not():
    """n = 10 of N = 50 standard normal values: 1.539 is true, the V-statistic gives 1.493."""
    tables = RNG.standard_normal((4000, 50))
    rank = np.arange(1, 51)
    share = ((51 - rank) / 50) ** 10 - ((50 - rank) / 50) ** 10
    unbiased = np.mean([expected_best(row, 10)[-1] for row in tables])
    common = np.mean(np.sort(tables, axis=1) @ share)
    assert unbiased == pytest.approx(-1.539, abs=0.015)
    assert common == pytest.approx(-1.493, abs=0.015)


def test_expected_best_goes_from_the_mean_to_the_minimum():
    losses = RNG.standard_normal(200)
    curve = expected_best(losses)
    assert curve[0] == pytest.approx(losses.mean())
    assert curve[-1] == pytest.approx(losses.min())
    assert (np.diff(curve) <= 1e-12).all()


@pytest.mark.parametrize(("losses", "largest"), [([], 1), ([1.0, np.nan], 1), ([1.0, 2.0], 3), ([1.0], 0)])
def test_what_has_no_expected_best_is_one_clear_line(losses, largest):
    with pytest.raises(ValueError, match=r"losses|largest"):
        expected_best(losses, largest)


def test_the_correction_removes_what_choosing_added():
    """Fifty equal configurations: the winner looks better by 2.25 standard errors, and is not."""
    apparent, corrected = [], []
    for trial in range(40):
        table = 1 + np.random.default_rng(trial).standard_normal((100, 50))
        found = bootstrap_bias_corrected(table, resamples=60, seed=trial)
        apparent.append(found.apparent)
        corrected.append(found.corrected)
        assert found.optimism > 0
    assert np.mean(apparent) == pytest.approx(1 - 2.25 / 10, abs=0.02)
    assert np.mean(corrected) == pytest.approx(1, abs=0.05)


def test_a_real_winner_stays_where_it_is():
    table = 1 + 0.1 * RNG.standard_normal((500, 10))
    table[:, 3] -= 0.5
    found = bootstrap_bias_corrected(table, resamples=100)
    assert found.winner == 3
    assert found.corrected == pytest.approx(0.5, abs=0.02)
    assert found.lo < found.corrected < found.hi


@pytest.mark.parametrize("bad", [np.ones(5), np.ones((1, 5)), np.full((5, 2), np.nan)])
def test_a_table_of_examples_is_asked_for(bad):
    with pytest.raises(ValueError, match=r"examples, configurations"):
        bootstrap_bias_corrected(bad)


def runs(quality, seeds=4, noise=0.05, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        {"lr": lr, "seed": s, "val_loss_select": q + noise * rng.standard_normal(), "val_loss_report": q + noise * rng.standard_normal()}
        for lr, q in enumerate(quality)
        for s in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_among_equals_the_margin_is_luck():
    lucky = [select(runs([1.0] * 20, seed=s), "lr") for s in range(60)]
    assert all(s.margin_apparent >= 0 for s in lucky)
    assert abs(np.mean([s.margin_honest for s in lucky])) < 0.02
    assert np.mean([s.honest for s in lucky]) == pytest.approx(1, abs=0.01)
    assert np.mean([s.apparent for s in lucky]) < 0.95
    whole = next(s for s in lucky if s.margin_honest < 0)
    assert "the whole margin was luck" in whole.sentence()
    assert whole.luck >= 1


def test_a_real_lead_holds_and_the_sentence_says_so():
    found = select(runs([1.0, 0.5, 0.9], noise=0.0), "lr")
    assert (found.winner, found.runner_up) == (1, 2)
    assert found.luck == pytest.approx(0)
    assert found.sentence() == (
        "Chosen from 3 on one half of validation, seeds 0, 1, 1 led 2 by 80 %; "
        "on the other half, seeds 2, 3 it leads by 80 %: the margin holds."
    )


def test_seeds_that_chose_do_not_report():
    table = runs([1.0, 0.9], seeds=4, noise=0.0)
    spoiled = table.copy()
    spoiled.loc[spoiled["seed"] < 2, "val_loss_report"] = 99.0
    spoiled.loc[spoiled["seed"] >= 2, "val_loss_select"] = 99.0
    assert select(table, "lr") == select(spoiled, "lr")


def test_one_seed_is_said():
    found = select(runs([1.0, 0.9], seeds=1, noise=0.0), "lr")
    assert not found.fresh_seeds
    assert "the same seed" in found.sentence()


def test_a_configuration_with_fewer_trials_is_no_candidate():
    table = runs([1.0, 0.9, 0.1], noise=0.0)
    table.loc[(table["lr"] == 2) & (table["seed"] == 3), ["val_loss_select", "val_loss_report"]] = np.nan
    assert select(table, "lr").winner == 1


def test_two_axes_are_one_choice():
    table = runs([1.0, 0.9, 0.8], noise=0.0).assign(width=8)
    assert select(table, ["lr", "width"]).winner == (2, 8)


def test_missing_columns_and_single_candidates_are_named():
    with pytest.raises(ValueError, match="val_loss_select"):
        select(runs([1.0, 2.0]).drop(columns="val_loss_select"), "lr")
    with pytest.raises(ValueError, match="two are needed"):
        select(runs([1.0]), "lr")


def test_the_scores_behind_a_choice_are_kept():
    table = runs([1.0, 0.5, 0.9])
    found = select(table, "lr")
    assert list(found.scores.index)[:2] == [found.winner, found.runner_up]
    assert found.scores["selected"].iloc[0] == found.apparent
    assert found.scores["reported"].iloc[0] == found.honest
    assert found.scores["selected"].is_monotonic_increasing
