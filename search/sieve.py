"""From coarse to fine: a plan, a bound on every plan, and the options that a better plan may have. No torch.

The relaxation is solved over runs of options; runs that no better plan has go, the others are halved, until the bound
is as close to the plan as asked for or every run is one option. Tables stay small however many options there are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from search.elimination import TooWide
from search.incumbent import Climber
from search.relaxation import Relaxation, Relaxed
from search.runs import Runs, coarsest
from search.space import IMPORTANCE, SearchSpace

__all__ = ["Sieve", "Sifted"]

MOST_RUNS = 32
"""Runs of a variable to begin with."""

GOOD = 0.1
"""Share of the gap asked for at which a plan is good enough to look no further."""

DEARER = (1.03, 1.01, 1.1)
"""Factors on the prices that give local search another plan to start from, a little within the limits."""

STEEPER = (1.0, 1.01, 1.1, 2.0, 1e2, 1e6)
"""Factors on the prices at which a plan within the limits is looked for when none is known."""


@dataclass(frozen=True, slots=True)
class Sifted:
    """`bound` on every plan within the limits, `elsewhere` on those with an option that is not `kept`; the best
    `choice` met; the price of a unit of each limit where the bound was found (none where the graph is too wide); and
    the options kept, variable → ascending indices: the choice's, and those that a better plan may have."""

    bound: float
    elsewhere: float
    choice: Mapping[str, int] | None
    prices: Mapping[str, float]
    kept: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class _Plan:
    """`totals` (1 + R,) are its worth and its costs."""

    choice: Mapping[str, int]
    totals: np.ndarray

    @property
    def worth(self) -> float:
        return float(self.totals[0])


class Sieve:
    """A space made ready for limits on these resources; what is met for one set of limits helps with the next.

    What is worth most is importance, or the least of another `objective`.
    """

    def __init__(
        self,
        space: SearchSpace,
        resources: Iterable[str],
        objective: str = IMPORTANCE,
        most_runs: int = MOST_RUNS,
    ):
        self.space, self.resources, self._objective = space, tuple(resources), objective
        self._climber = Climber(space, self.resources, objective)
        self._coarsest = coarsest(space, most_runs)
        self._first = self._relaxed(self._coarsest)
        self._known: list[_Plan] = []

    def solve(self, limits: Mapping[str, float], gap: float, deadline: float = math.inf) -> Sifted:
        """Sift until `gap`, relative, is proved, or nothing can be halved, or `time.perf_counter()` is past the
        deadline. Limits are positive, and on the resources named at first."""
        scale = np.array([limits[resource] for resource in self.resources])
        runs, relaxed = self._coarsest, self._first
        bound, thrown, prices, plan = math.inf, -math.inf, None, None
        while relaxed is not None:
            found = relaxed.solve(limits, prices, GOOD * gap)
            prices, bound = found.prices, min(bound, max(found.bound, thrown))
            plan = self._improved(found, relaxed, scale, bound - GOOD * gap * abs(bound))
            if plan is None:
                break
            thrown = max(thrown, plan.worth + gap / 2 * abs(plan.worth))
            alive = {name: most_with > thrown for name, most_with in found.most_with.items()}
            runs = runs.only(alive)
            if not all(stays.any() for stays in alive.values()):
                bound = min(bound, thrown)
            bound = max(bound, plan.worth)
            if bound - plan.worth <= gap * abs(plan.worth) or runs.finest or time.perf_counter() > deadline:
                break
            runs = runs.halved()
            relaxed = self._relaxed(runs)
        if self._first is None:
            plan = self._best_known(scale) or self._started(scale)
        kept = {variable.name: runs.options[variable.name] for variable in self.space.variables}
        choice = None if plan is None else plan.choice
        if choice is not None:
            kept = {name: np.union1d(options, [choice[name]]).astype(int) for name, options in kept.items()}
        per_unit = {} if prices is None else dict(zip(self.resources, map(float, prices / scale), strict=True))
        return Sifted(bound, thrown, choice, per_unit, kept)

    def learn(self, choice: Mapping[str, int]) -> None:
        """Remember a plan that something else found."""
        self._known.append(self._plan(choice))

    def _relaxed(self, runs: Runs) -> Relaxed | None:
        try:
            return Relaxed(self.space, runs, self.resources, self._objective)
        except TooWide:
            return None

    def _plan(self, choice: Mapping[str, int]) -> _Plan:
        return _Plan(choice, self._climber.totals(choice))

    def _best_known(self, scale: np.ndarray) -> _Plan | None:
        within = [plan for plan in self._known if self._climber.fits(scale, plan.totals)]
        return max(within, key=lambda plan: plan.worth, default=None)

    def _improved(self, found: Relaxation, relaxed: Relaxed, scale: np.ndarray, enough: float) -> _Plan | None:
        """The best plan known, after local search among what is left."""
        self._known += [self._plan(cut.choice) for cut in found.cuts]
        best = self._best_known(scale) or self._within(found, scale)
        if best is None or best.worth >= enough:
            return best
        best = self._climbed(best, found, relaxed.runs, scale, enough)
        for dearer in DEARER if relaxed.runs.finest else DEARER[:1]:
            if best.worth >= enough:
                break
            start = self._plan(relaxed.at(dearer * found.prices, scale)[1].choice)
            if self._climber.fits(scale, start.totals):
                best = max(best, self._climbed(start, found, relaxed.runs, scale, enough), key=lambda each: each.worth)
        return best

    def _climbed(self, start: _Plan, found: Relaxation, runs: Runs, scale: np.ndarray, enough: float) -> _Plan:
        plan = self._plan(self._climber.climb(scale, found.prices / scale, start.choice, runs.options, enough))
        self._known.append(plan)
        return plan

    def _within(self, found: Relaxation, scale: np.ndarray) -> _Plan | None:
        """A plan within the limits that best responses find from the last cut, at higher and higher prices."""
        choice = found.cuts[-1].choice
        for dearer in STEEPER:
            choice = self._climber.ascend(choice, dearer * found.prices / scale)
            plan = self._plan(choice)
            if self._climber.fits(scale, plan.totals):
                return plan
        return self._started(scale)

    def _started(self, scale: np.ndarray) -> _Plan | None:
        start = self._climber.start(scale)
        return None if start is None else self._plan(start)
