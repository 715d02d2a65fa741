import numpy as np
from surfaces import EPOCH, grid_runs, read

from scalespec.analysis.laws import chinchilla_loss, fit_chinchilla, fit_power, verdict


def test_the_influence_of_five_points_is_named(epoch, epoch_240):
    said = verdict(fit_chinchilla(epoch["n"], epoch["d"], epoch["loss"]))
    assert "the 5 points with the highest losses (0, 1, 3, 2, 4) moves β from 0.453 to 0.367" in said
    assert "Leaving out" not in verdict(fit_chinchilla(epoch_240["n"], epoch_240["d"], epoch_240["loss"]))


def test_a_clean_fit_has_intervals_and_no_complaint(epoch_240):
    said = verdict(fit_chinchilla(epoch_240["n"], epoch_240["d"], epoch_240["loss"]))
    assert "α = 0.347 (" in said
    assert "a = 0.514 (" in said
    assert "backtest" in said
    assert "\n" not in said


def test_a_floor_at_its_bound_is_a_limit(shared):
    table = read(shared, "cnn_cifar/final_data.csv")
    said = verdict(fit_chinchilla(table["N"], table["D"], table["final_test_loss_avg_last5"]))
    assert "read it as below" in said
    assert "do not extrapolate" in said


def test_too_few_points_say_what_to_add():
    said = verdict(fit_power([1e6, 1e7], [3.0, 2.0]))
    assert "2 usable points where it needs 6 and 2 distinct values of N where it needs 4" in said
    assert "Add sizes" in said
    assert verdict(fit_power([], []))


def test_a_form_that_misses_by_more_than_the_noise_is_said():
    n, d = (np.tile(x.ravel(), 2) for x in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 6)))
    bumpy = chinchilla_loss(EPOCH, n, d) * (1 + 0.05 * np.sin(3 * np.log(n)))
    noisy = bumpy * np.exp(0.002 * np.random.default_rng(0).standard_normal(len(n)))
    assert "the form itself does not fit" in verdict(fit_chinchilla(n, d, noisy))
    fine = grid_runs(noise=0.01)
    assert "in line with the spread between seeds" in verdict(
        fit_chinchilla(fine["params_matmul"], fine["samples"], fine["val_loss"], families=fine["family_key"])
    )


def test_a_narrow_range_is_said():
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 3e8, 4), np.geomspace(1e9, 1e11, 5)))
    assert "N spans less than a factor of four" in verdict(fit_chinchilla(n, d, chinchilla_loss(EPOCH, n, d)))


def test_missing_intervals_are_said_with_the_reason():
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 6)))
    assert "no intervals: none asked for" in verdict(fit_chinchilla(n, d, chinchilla_loss(EPOCH, n, d), resamples=0))
