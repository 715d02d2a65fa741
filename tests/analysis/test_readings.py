from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scalespec.analysis.readings import READINGS, ReadingError, ReadingValue, reading


def runs(*rows) -> pd.DataFrame:
    base = {"status": "done", "schedule": "ramp", "lr": 1.0, "reference_width": 32, "batch_size": 8, "width": 32}
    return pd.DataFrame([{"run_key": f"r{i}", **base, **row} for i, row in enumerate(rows)])


def ramp(key: str, onset: int, steps: int = 100, after: float = 0.05, peak: float = 1.0) -> pd.DataFrame:
    """A loss that falls until `onset` and rises by `after` a step from there."""
    at = np.arange(1, steps + 1)
    loss = np.where(at <= onset, 5 - 0.02 * at, 5 - 0.02 * onset + after * (at - onset))
    frames = [
        pd.DataFrame({"run_key": key, "step": at, "metric": metric, "value": value})
        for metric, value in (("train_loss_ema", loss), ("lr", peak * at / steps), ("train_loss", loss + 1))
    ]
    return pd.concat(frames, ignore_index=True)


def read(name: str, **tables) -> ReadingValue:
    found = READINGS[name]
    assert set(found.needs) <= set(tables)
    return found.function(tables)


def test_values_have_three_digits():
    assert ReadingValue(0.123456).value == 0.123
    assert ReadingValue(0.00123).times(1 / 3).value == 0.00041
    assert ReadingValue(2.0, 32, 8).times(0.5) == ReadingValue(1.0, 32, 8)


def test_a_whole_number_is_exact():
    assert ReadingValue(1024).value == 1024  # a batch size of 1020 is another study
    assert ReadingValue(1024).times(2).value == 2048
    assert ReadingValue(1025).times(0.5).value == 512


def test_the_rate_of_a_stage():
    assert read("lr", runs=runs({"lr": 0.0056569}, {"lr": 0.0056569})) == ReadingValue(0.00566, 32, 8)
    failed = runs({"lr": 0.1}, {"lr": 0.2, "status": "failed"})
    assert read("lr", runs=failed).value == 0.1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (runs({"lr": 0.1}, {"lr": 0.2}), r"2 values of lr \(0.1 to 0.2\)"),
        (runs({}, {"batch_size": 16}), "values of batch_size"),
        (runs({}, {"reference_width": 16}), "values of reference_width"),
        (runs({"status": "failed"}), "no run of the stage has finished"),
    ],
)
def test_a_rate_must_be_one(table, words):
    with pytest.raises(ReadingError, match=words):
        read("lr", runs=table)


@pytest.mark.parametrize("onset", [30, 50, 90])
def test_the_onset_of_instability(onset):
    assert read("onset_lr", runs=runs({}), curves=ramp("r0", onset)) == ReadingValue(onset / 100, 32, 8)


def test_a_bump_that_heals_is_no_onset():
    curves = ramp("r0", 60)
    bump = (curves["metric"] == "train_loss_ema") & curves["step"].between(20, 25)
    curves.loc[bump, "value"] += 2
    assert read("onset_lr", runs=runs({}), curves=curves).value == 0.6


def test_of_several_ramps_the_median_and_a_diverged_run_counts():
    curves = pd.concat([ramp("r0", 40), ramp("r1", 60), ramp("r2", 50)])
    assert read("onset_lr", runs=runs({}, {}, {}), curves=curves).value == 0.5
    ended = ramp("r0", 40)
    ended = ended[ended["step"] <= 41]
    blown = ended.copy()
    blown.loc[(blown["step"] == 41) & (blown["metric"] == "train_loss_ema"), "value"] = np.nan
    assert read("onset_lr", runs=runs({"status": "diverged"}), curves=blown).value == 0.4


@pytest.mark.parametrize(
    ("table", "curves", "words"),
    [
        (runs({}), ramp("r0", 100), "does not leave its best"),
        (runs({}), ramp("r0", 99, after=0.01), "does not leave its best"),
        (runs({"schedule": "wsd"}), ramp("r0", 50), "schedule.name: ramp"),
        (runs({}), ramp("other", 50), "no curve"),
        (runs({}), ramp("r0", 50).query("step == 1"), "fewer than two"),
        (runs({"status": "failed"}), ramp("r0", 50), "no run"),
    ],
)
def test_where_there_is_no_onset(table, curves, words):
    with pytest.raises(ReadingError, match=words):
        read("onset_lr", runs=table, curves=curves)


def test_the_median_of_alpha_at_the_last_step():
    summary = pd.DataFrame(
        [
            (f"r{i}", step, alpha)
            for i, alphas in enumerate([(9, 2), (9, 3), (9, 4)])
            for step, alpha in enumerate(alphas)
        ],
        columns=["run_key", "step", "alpha_median"],
    )
    table = runs({}, {}, {"status": "diverged"})
    assert read("alpha_median", runs=table, spectra_summary=summary) == ReadingValue(2.5)
    with pytest.raises(ReadingError, match="trusted layer"):
        read("alpha_median", runs=table, spectra_summary=summary.assign(alpha_median=np.nan))


def test_a_reading_is_registered_by_name(monkeypatch):
    monkeypatch.setattr("scalespec.analysis.readings.READINGS", {})

    @reading("mine", needs=("runs",), says="Mine.")
    def mine(tables):
        return ReadingValue(1.0)

    from scalespec.analysis import readings

    assert readings.READINGS["mine"].function is mine
