"""The trials that choose a learning rate: which way they go, what they cost, and when there is no time for them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from compress.rate import BOLDER, RATES, TRIALS, USUAL, choose_rate
from compress.recipe import Allowance
from network.errors import InputError


class Trainer:
    """Ends with the loss that `ends` gives for its rate, after half a second per step."""

    retreats = 0

    def __init__(self, rate: float, steps: int, ends: Callable[[float], float]):
        self.rate, self.step, self.seconds, self.ends = rate, steps, 0.5 * steps, ends

    def run(self) -> Any:
        value = self.ends(self.rate)
        if value is None:
            raise InputError("the loss is not finite")
        return SimpleNamespace(
            points=[(step, 0.0, value if step > self.step // 2 else 99.0) for step in range(self.step)],
            retreats=self.retreats,
        )


def choice(ends: Callable[[float], float], **allowance: float) -> tuple[Any, list[float]]:
    tried: list[float] = []

    def make(model: nn.Module, rate: float, allowed: Allowance) -> Any:
        tried.append(rate)
        return Trainer(rate, allowed.steps or int(2 * (allowed.seconds or 0)), ends)

    return choose_rate(nn.Linear(1, 1), make, Allowance(**allowance)), tried


@pytest.mark.parametrize(("best", "tries"), zip(RATES, (4, 4, 3, 2), strict=True))
def test_the_best_rate_is_found_from_either_side(best: float, tries: int) -> None:
    found, tried = choice(lambda rate: abs(RATES.index(rate) - RATES.index(best)), steps=1000)
    assert found.rate == min(BOLDER * best, RATES[-1])
    assert len(tried) == len(set(tried)) == tries <= TRIALS
    assert found.losses[f"{best:g}"] == 0


def test_of_rates_that_end_alike_the_highest_is_taken_and_half_a_step_more() -> None:
    ends = dict(zip(RATES, (0.50, 0.51, 0.70, 0.96), strict=True))
    found, tried = choice(ends.__getitem__, steps=1000)
    assert (found.rate, len(tried)) == (BOLDER * RATES[1], TRIALS)
    assert RATES[1] < found.rate < RATES[2]
    found, _ = choice(lambda rate: -ends[rate], steps=1000)
    assert found.rate == RATES[3]


def test_a_rate_that_diverges_is_never_taken() -> None:
    found, _ = choice(lambda rate: None if rate > 0.02 else 1 / rate, steps=1000)
    assert found.rate == BOLDER * RATES[USUAL] < 0.02
    assert found.losses["0.03"] == float("inf")


def test_where_the_usual_rate_diverges_smaller_ones_are_tried() -> None:
    found, tried = choice(lambda rate: None if rate > 5e-3 else 1 / rate, steps=1000)
    assert found.rate == BOLDER * RATES[USUAL - 1]
    assert tried == [RATES[USUAL], RATES[USUAL - 1], RATES[USUAL - 2]]
    found, tried = choice(lambda rate: None if rate > 2e-3 else 1 / rate, steps=1000)
    assert found.rate == BOLDER * RATES[0]
    assert len(tried) <= TRIALS


def test_where_every_trial_went_on_with_a_smaller_step_the_lowest_rate_is_taken(monkeypatch) -> None:
    monkeypatch.setattr(Trainer, "retreats", 1)
    found, tried = choice(lambda rate: None if rate > 5e-3 else 1 / rate, steps=1000)
    assert found.rate == min(tried) == RATES[0]


def test_a_trial_that_went_on_with_a_smaller_step_says_nothing_for_its_rate(monkeypatch) -> None:
    monkeypatch.setattr(Trainer, "retreats", property(lambda self: int(self.rate > 0.02)))
    found, _ = choice(lambda rate: 1 / rate, steps=1000)
    assert found.losses["0.03"] == float("inf")
    assert found.rate == BOLDER * RATES[USUAL]


@pytest.mark.parametrize("allowance", [{"steps": 1000}, {"seconds": 600}])
def test_where_no_rate_is_stable_one_line_says_so(allowance) -> None:
    with pytest.raises(InputError, match=r"any --lr that was tried, 0\.001, 0\.003, 0\.01; "):
        choice(lambda rate: None, **allowance)


def test_trials_are_paid_from_the_allowance() -> None:
    found, _ = choice(lambda rate: rate, steps=1000)
    assert found.steps == 160
    assert found.rest(Allowance(steps=1000)).steps == 840
    found, tried = choice(lambda rate: rate, seconds=600)
    assert len(tried) == TRIALS
    assert found.seconds == 120
    assert found.rest(Allowance(seconds=600)).seconds == 480


def test_where_there_is_no_time_the_usual_rate_is_taken() -> None:
    few, tried = choice(lambda rate: rate, steps=40)
    assert few.rate == RATES[USUAL]
    assert not tried
    assert few.rest(Allowance(steps=40)).steps == 40
    for nothing in ({"steps": 0}, {"seconds": 0.0}):
        none, tried = choice(lambda rate: rate, **nothing)
        assert (none.rate, tried) == (RATES[USUAL], [])
    short, tried = choice(lambda rate: rate, seconds=60)
    assert short.rate == RATES[USUAL]
    assert len(tried) == 1
    assert short.rest(Allowance(seconds=60)).seconds == 57
