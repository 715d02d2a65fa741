from __future__ import annotations

import math

import pytest
import torch

from scalespec.trainables.errors import DivergedError
from scalespec.trainables.group import Group
from scalespec.trainables.meters import BOUND_COUNT, EMA, Divergence, EffectiveParams, LossAverage, Rate, read

CPU = torch.device("cpu")
LOSSES = [3.0, 2.5, 2.75, 2.0, 1.0, 1.5]


def meters() -> list:
    loss = LossAverage(CPU)
    return [loss, EffectiveParams(loss)]


def followed(losses, made, start=0):
    for step, loss in enumerate(losses, start):
        for meter in made:
            meter.update(step, torch.tensor(loss))
    return made


def test_the_loss_is_the_mean_since_the_last_point_and_a_corrected_average():
    made = followed(LOSSES[:2], meters())
    read(made, 2, Group())
    point = read(followed(LOSSES[2:], made, 2), len(LOSSES), Group())
    assert point["train_loss"] == pytest.approx(sum(LOSSES[2:]) / 4)
    weights = [EMA ** (len(LOSSES) - 1 - i) for i in range(len(LOSSES))]
    average = sum(w * x for w, x in zip(weights, LOSSES, strict=True)) / sum(weights)
    assert point["train_loss_ema"] == pytest.approx(average)


@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_meters_that_were_restored_go_on_as_if_nothing_had_been(at):
    whole = read(followed(LOSSES, meters()), len(LOSSES), Group())
    before, after = followed(LOSSES[:at], meters()), meters()
    for old, new in zip(before, after, strict=True):
        new.restore({name: value.clone() for name, value in old.state().items()})
    assert read(followed(LOSSES[at:], after, at), len(LOSSES), Group()) == whole


def test_the_shares_of_clamped_losses_are_counted():
    point = read(followed([1.0, 1.0, 5.0, 5.0], meters()), 4, Group())
    assert point["n_eff_clamped_batches"] == 0.5
    # the averages are 1, 1, 2.35 and 3.04; two lie below 1.69
    assert point["n_eff_clamped_ema"] == 0.5


def point_of(loss: float, ema: float | None = None, norm: float = 1.0) -> dict[str, float]:
    return {"train_loss": loss, "train_loss_ema": loss if ema is None else ema, "grad_norm": norm}


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (point_of(math.nan), "training loss"),
        (point_of(math.inf), "training loss"),
        (point_of(1.0, norm=math.nan), "gradient norm"),
    ],
)
def test_what_is_not_finite_has_diverged(point, words):
    with pytest.raises(DivergedError, match=f"non_finite: {words} at step 7"):
        Divergence().check(7, point)


def test_a_loss_above_its_bound_for_long_has_diverged_also_across_a_restart():
    first = Divergence()
    first.check(1, point_of(2.0))
    first.check(2, point_of(0.1))
    for step in range(3, 3 + BOUND_COUNT - 1):
        first.check(step, point_of(0.5))  # above 4 · 0.1 and above 0.1 + 0.1 · 2
    second = Divergence()
    second.restore(first.state())
    first.check(50, point_of(0.29))
    first.check(51, point_of(0.5))  # the count began anew
    with pytest.raises(DivergedError, match="loss_bound"):
        second.check(50, point_of(0.5))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_leaves_out_pauses_and_stays_silent_where_no_step_lies_between():
    clock = Clock()
    rate = Rate(CPU, clock)
    assert rate.point() == {}
    with rate.running():
        for _ in range(4):
            clock.now += 0.5
            rate.update(8)
        with rate.paused():
            clock.now += 1000
        assert rate.point() == {"samples_per_s": 16.0}
        assert rate.point() == {}
        with rate.paused():
            clock.now += 1000
        clock.now += 2
        rate.update(8)
    clock.now += 1000
    assert rate.point() == {"samples_per_s": 4.0}
    assert rate.rates == [16.0, 4.0]
