"""Which learning rate: asked of short trials, since the best one differs tenfold between networks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from torch import nn

from compress.recipe import Allowance
from compress.training import Trainer
from network.errors import InputError

__all__ = ["RATES", "Choice", "choose_rate"]

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
"""Relative steps to choose from; `Trainer` says what they are relative to."""

USUAL = 2
"""Where the trials start, and what is taken where there is no time for them."""

TRIALS = 4
TRIAL_STEPS = 10
TRIAL_SHARE = 0.04
MOST_SHARE = 0.2
"""A trial is TRIAL_SHARE of the steps, at least TRIAL_STEPS; all together may take MOST_SHARE of the steps or time."""

CLOSE, BOLDER = 0.1, 1.8
"""Of the rates whose trials end within CLOSE of the best one's loss the highest is taken, BOLDER times, half a step
between RATES, but no more than the last of them: what is best in a few steps is too small for many (Wu et al.,
"Understanding Short-Horizon Bias in Stochastic Meta-Optimization", ICLR 2018; docs/notes/2026-11-28-training.md)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The rate, the loss that each trial ended with, and the steps and seconds that the trials took."""

    rate: float
    losses: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0

    def rest(self, allowance: Allowance) -> Allowance:
        """What the trials left of the allowance."""
        if allowance.steps is not None:
            return Allowance(steps=allowance.steps - self.steps)
        return Allowance(seconds=max(0.0, (allowance.seconds or 0.0) - self.seconds))


def choose_rate(
    model: nn.Module, make_trainer: Callable[[nn.Module, float, Allowance], Trainer], allowance: Allowance
) -> Choice:
    """Train copies of `model` for a few steps, each with its whole schedule, on the same batches, and compare.

    From the usual rate one step up; further up while that is better, else down while that is, or until one is stable: a
    trial that went on with a smaller step than its own says nothing for its rate, and counts as infinite. BOLDER times
    the highest rate that is CLOSE to the best is taken, where there is more than one to compare, and at most the
    highest of RATES; where none is stable the lowest that came to its end. Raises InputError where none did.
    """
    if allowance.empty:
        return Choice(RATES[USUAL])
    if allowance.steps is not None:
        steps = max(TRIAL_STEPS, round(TRIAL_SHARE * allowance.steps))
        if TRIALS * steps > MOST_SHARE * allowance.steps:
            return Choice(RATES[USUAL])
        first = Allowance(steps=steps)
    else:
        first = Allowance(seconds=MOST_SHARE / TRIALS * (allowance.seconds or 0.0))
    losses: dict[int, float] = {}
    trainers: list[Trainer] = []
    shaky: list[int] = []

    def trial(index: int, allowed: Allowance) -> float:
        trainer = make_trainer(copy.deepcopy(model), RATES[index], allowed)
        trainers.append(trainer)
        losses[index] = math.inf
        with suppress(InputError):
            curve = trainer.run()
            last = curve.points[-max(1, len(curve.points) // 4) :]
            if curve.retreats:
                shaky.append(index)
            else:
                losses[index] = sum(point[2] for point in last) / len(last)
        return losses[index]

    def walk(stride: int, allowed: Allowance) -> int:
        """From the usual rate, as long as it gets better or is not stable yet; returns where that ends."""
        here = USUAL
        while 0 <= here + stride < len(RATES) and (
            trial(here + stride, allowed) < losses[here] or math.isinf(losses[here])
        ):
            here += stride
        return here

    if math.isinf(trial(USUAL, first)):
        walk(-1, first)
    elif trainers[0].step >= TRIAL_STEPS:
        allowed = Allowance(steps=trainers[0].step)
        if walk(1, allowed) == USUAL:
            walk(-1, allowed)
    least = min(losses.values())
    if math.isfinite(least):
        chosen = max(index for index, loss in losses.items() if loss <= least + CLOSE * abs(least))
        rate = min(BOLDER * RATES[chosen], RATES[-1]) if len(losses) > 1 else RATES[chosen]
    elif shaky:
        rate = RATES[min(shaky)]
    else:
        tried = ", ".join(f"{RATES[index]:g}" for index in sorted(losses))
        raise InputError(f"the loss is not finite at any --lr that was tried, {tried}; look at the data, or give --lr")
    return Choice(
        rate,
        {f"{RATES[index]:g}": losses[index] for index in sorted(losses)},
        sum(trainer.step for trainer in trainers),
        sum(trainer.seconds for trainer in trainers),
    )
