import numpy as np
import pandas as pd
import pytest

from scalespec.analysis.laws import effective_params
from scalespec.analysis.laws.effective_params import (
    KAPLAN,
    Constants,
    ema,
    read_curve,
    read_study,
    refit_constants,
    require_text_in_nats,
)


def test_golden_values():
    assert effective_params(3.28) == pytest.approx(1.434e7, rel=1e-3)
    assert effective_params(2.85) == pytest.approx(9.1e7, rel=5e-3)
    assert effective_params(3.5) == pytest.approx(6.1e6, rel=5e-3)
    assert effective_params(1.0) == effective_params(1.69) == pytest.approx(8.83e10, rel=1e-3)


def test_one_percent_of_loss_is_fourteen_percent_of_size():
    assert effective_params(3.0 / 1.01) / effective_params(3.0) == pytest.approx(1.14, abs=0.002)


def test_the_average_starts_at_the_first_value_and_keeps_a_constant():
    assert ema([5.0, 5.0, 5.0]) == pytest.approx([5, 5, 5])
    assert ema([4.0, 2.0], 0.9)[0] == 4.0
    assert ema([4.0, 2.0], 0.9)[1] == pytest.approx((0.9 * 0.1 * 4 + 0.1 * 2) / (1 - 0.81))
    with pytest.raises(ValueError, match="decay"):
        ema([1.0], 1.0)


def test_transforming_single_batches_inflates_the_count():
    rng = np.random.default_rng(0)
    curve = read_curve(3.2 * np.exp(0.05 * rng.standard_normal(4000)), decay=0.99)
    truth = effective_params(3.2)
    assert curve.of_ema[-1] == pytest.approx(truth, rel=0.1)
    # lognormal noise: E[L^(−1/.076)] = L^(−1/.076) · exp(½ (0.05/.076)²)
    assert curve.ema_of_batches[-500:].mean() / truth == pytest.approx(np.exp(0.5 * (0.05 / 0.076) ** 2), rel=0.1)
    assert curve.inflation > 0.1


def test_clamped_shares_are_counted_for_each_reading():
    losses = np.tile([1.5, 2.1], 200)
    curve = read_curve(losses, decay=0.95)
    assert curve.clamped_batches == 0.5
    assert curve.clamped_ema < 0.02
    assert read_curve(np.full(10, 0.3)).clamped_ema == 1.0


@pytest.mark.parametrize(
    ("case", "word"),
    [
        ({"kind": "images", "tokenizer": None, "unit": "nats"}, "images"),
        ({"kind": "text", "tokenizer": "bytes", "unit": "nats"}, "bytes"),
        ({"kind": "text", "tokenizer": "gpt2", "unit": "bits"}, "bits"),
    ],
)
def test_constants_that_mean_nothing_are_refused(case, word):
    with pytest.raises(ValueError, match=word) as error:
        require_text_in_nats(KAPLAN, **case)
    assert "refit" in str(error.value)


def test_refitted_constants_are_not_refused_and_give_the_size_back():
    n = np.geomspace(1e4, 1e7, 10)
    loss = (5e9 / n) ** 0.12
    constants, law = refit_constants(n, loss, resamples=0)
    require_text_in_nats(constants, kind="images", tokenizer=None, unit="nats")
    require_text_in_nats(KAPLAN, kind="text", tokenizer="gpt2", unit="nats")
    np.testing.assert_allclose(effective_params(loss, constants), n, rtol=1e-5)
    assert law.clean
    assert effective_params(0.5 * loss.min(), constants) == pytest.approx(1e7, rel=1e-5)


def test_runs_that_cannot_carry_constants_say_why():
    with pytest.raises(ValueError, match="too few"):
        refit_constants([1e5, 1e6], [2.0, 1.9])
    with pytest.raises(ValueError, match="does not fall"):
        refit_constants(np.geomspace(1e4, 1e7, 10), np.linspace(1, 2, 10))
    with pytest.raises(ValueError, match="losses"):
        read_curve([1.0, float("nan")])


def study(tokenizer_constants=KAPLAN) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs of four sizes, three seeds and two fractions whose losses lie on L(N), and what their loops recorded."""
    rows = [
        {
            "run_key": f"w{w}-{d}-{s}",
            "family_key": f"w{w}-{s}",
            "width": w,
            "status": "done",
            "samples": d,
            "params_total": 1000 * w * w + 500,
            "params_embedding": 500,
            "train_loss_ema": (tokenizer_constants.n_c / (1000 * w * w)) ** tokenizer_constants.exponent
            * (1.0 if d == 2000 else 1.5),
        }
        for w in (8, 16, 32, 64)
        for d in (1000, 2000)
        for s in range(3)
    ]
    curves = [
        {"run_key": row["run_key"], "step": step, "metric": name, "value": value * step}
        for row in rows
        for step in (1, 2)
        for name, value in (
            ("n_eff_batches", 600.0 * row["width"] ** 2),
            ("n_eff_clamped_batches", 0.1),
            ("train_loss", 3.0),
        )
    ]
    return pd.DataFrame(rows), pd.DataFrame(curves)


def test_a_study_in_gpt2_tokens_is_read_with_kaplan_s_constants():
    found = read_study(*study(), kind="text", tokenizer="gpt2")
    assert found.refused == ""
    assert list(found.table["width"]) == [8, 16, 32, 64]
    np.testing.assert_allclose(found.table["n_eff_ema"], found.table["params"])  # at the most data, at the last step
    np.testing.assert_allclose(found.table["n_eff_batches"], 1.2 * found.table["params"])
    assert found.inflation == pytest.approx(0.2)


def test_a_study_of_anything_else_gets_constants_of_its_own():
    theirs = Constants(5e9, 0.12, 0.0, "a study")
    found = read_study(*study(theirs), kind="mnist_cnn", tokenizer=None)
    assert "mnist_cnn" in found.refused
    assert found.constants.exponent == pytest.approx(0.12, rel=1e-4)
    np.testing.assert_allclose(found.table["n_eff_ema"], found.table["params"], rtol=1e-3)
    assert "n_eff_batches" not in found.table
    assert np.isnan(found.inflation)


def test_a_study_with_too_few_runs_has_no_constants():
    runs, curves = study()
    with pytest.raises(ValueError, match="too few"):
        read_study(runs[runs["width"] == 8], curves, kind="images", tokenizer=None)
    with pytest.raises(ValueError, match="too few"):
        read_study(runs.assign(status="failed"), curves, kind="images", tokenizer=None)
