"""The integer program that chooses one option per variable, proved by HiGHS and re-added outside it. No torch."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from network.errors import BudgetError, InfeasibleBudgetError
from search.elimination import TooWide
from search.incumbent import incumbent
from search.program import STOP_GAP, Outcome, optimise
from search.reduction import reduce_space
from search.relaxation import Relaxation, Relaxed
from search.space import IMPORTANCE, LATENCY, SearchSpace

__all__ = ["PROVED_GAP", "Solution", "Solver", "solve"]

PROVED_GAP = 1e-4
AGREEMENT = 1e-5  # relative; what the solver's tolerances on its variables can do to the objective
OVER = 1e-6  # relative; and to a limit: a nanosecond in a millisecond


@dataclass(frozen=True, slots=True)
class Solution:
    """One option per variable, with its proof.

    `choice` maps each variable to its option's index; `totals` are the resources' sums, re-added from the tables;
    no choice has more importance than `bound`; `gap` = (bound - objective) / |objective|; `removed` counts the
    options that the program never saw, dominated or bounded away; `prices` is the slope, in
    importance per unit of each limited resource, of the concave hull over all limits; empty for too wide a graph.
    """

    choice: Mapping[str, int]
    totals: Mapping[str, float]
    status: str
    objective: float
    bound: float
    gap: float
    solve_seconds: float
    removed: int
    prices: Mapping[str, float]


def solve(
    space: SearchSpace,
    budget_ms: float,
    *,
    limits: Mapping[str, float] | None = None,
    time_limit_s: float | None = None,
) -> Solution:
    """Choose one option per variable.

        maximise    Σ_f importance[f, x_f]
        subject to  Σ_f latency_ms[f, x_f] ≤ budget_ms
                    Σ_f resource[f, x_f]   ≤ limits[resource],   x_v one option of v

    As an integer program: x_vi ∈ {0, 1}, Σ_i x_vi = 1; for a pair (u, v) with a table, y_ij ≥ 0 with
    Σ_j y_ij = x_ui and Σ_i y_ij = x_vj, so that y_ij = x_ui · x_vj at every integral point; for a sum s of variables,
    Σ_k s_k = 1 and Σ_k low_k s_k ≤ Σ_v Σ_i a_vi x_vi ≤ Σ_k high_k s_k, with s_k then used as an x is.

    space: V variables with K_v options; unary tables (K_v,), pair tables (K_u, K_v), float64; milliseconds.
    Returns a verified Solution: status "optimal" with a gap of at most 1e-4 proved, or "feasible" with the gap that
    stood when `time_limit_s` struck.
    Raises InfeasibleBudgetError, which carries the smallest feasible budget; BudgetError if the limits beside it
    cannot be met, or if the time was too short to find any plan.
    """
    return Solver(space, limits or ()).solve(budget_ms, limits=limits, time_limit_s=time_limit_s)


class Solver:
    """A space made ready for limits on latency and on these resources; many budgets then cost little each."""

    def __init__(self, space: SearchSpace, resources: Collection[str] = ()):
        started = time.perf_counter()
        self.space = space
        self._reduction = reduce_space(space, {*resources, LATENCY})
        try:
            self._relaxed: Relaxed | None = Relaxed(self._reduction.space, sorted({*resources, LATENCY}))
        except TooWide:
            self._relaxed = None
        self._preparation_s = time.perf_counter() - started

    def solve(
        self, budget_ms: float, *, limits: Mapping[str, float] | None = None, time_limit_s: float | None = None
    ) -> Solution:
        """As `solve` does. limits: on the very resources that the solver was made for.

        First the Lagrangian relaxation: a bound, a plan, and the options that no better plan can have. What is left
        is the integer program's, unless the plan is already as good as the bound.
        """
        started = time.perf_counter()
        limits = {**(limits or {}), LATENCY: budget_ms}
        for resource, limit in limits.items():
            if not 0 < limit < math.inf:
                raise BudgetError(f"the limit on {resource}, {limit:.4g}, is not positive; raise it")
        reduction, relaxation, start = self._reduction, self._relax(limits), None
        if relaxation.choice is None:
            self._check_each(limits)
        else:
            reduction = reduction.only(relaxation.kept)
            start = {name: int(np.searchsorted(relaxation.kept[name], at)) for name, at in relaxation.choice.items()}
        outcome = _proved(reduction.space, relaxation.bound, start)
        if outcome is None:
            left_s = None if time_limit_s is None else max(0.0, time_limit_s - (time.perf_counter() - started))
            outcome = optimise(reduction.space, IMPORTANCE, limits, start, left_s)
        if outcome.choice is None:
            self._raise_none(limits, outcome, time_limit_s)
        choice = reduction.restore(outcome.choice)
        totals = {resource: float(self.space.total(resource, choice)) for resource in self.space.resources}
        _verify(totals, limits, outcome.objective)
        objective = totals.get(IMPORTANCE, 0.0)
        bound = max(min(outcome.bound, relaxation.bound), objective)
        gap = (bound - objective) / (abs(objective) or 1.0)
        status = "optimal" if gap <= PROVED_GAP else "feasible"
        seconds = self._preparation_s + time.perf_counter() - started
        return Solution(choice, totals, status, objective, bound, gap, seconds, reduction.removed, relaxation.prices)

    def least(self, resource: str, limits: Mapping[str, float]) -> float | None:
        """The least of one resource that a plan within these limits needs; None if none is within them."""
        if self._relaxed is not None and not limits:
            return self._relaxed.least(resource)
        reduced = reduce_space(self.space, {*limits, resource}).space
        choice = optimise(reduced, resource, limits).choice
        return None if choice is None else float(reduced.total(resource, choice))

    def _check_each(self, limits: Mapping[str, float]) -> None:
        """Say which limit no plan keeps by itself, and what would do."""
        others = _others(limits)
        for resource, limit in others.items():
            least = self.least(resource, {})
            if least is not None and least > limit * (1 + OVER):
                raise BudgetError(f"the limit on {resource}, {limit:.6g}, is below the least, {least:.6g}; raise it")
        fastest = None if others else self.least(LATENCY, {})
        if fastest is not None and fastest > limits[LATENCY] * (1 + OVER):
            raise InfeasibleBudgetError(limits[LATENCY], _round_up(fastest))

    def _raise_none(self, limits: Mapping[str, float], outcome: Outcome, time_limit_s: float | None) -> NoReturn:
        """Say that the time was too short, or what the limits together leave."""
        if not outcome.infeasible:
            raise BudgetError(f"no plan was found within {time_limit_s} s; raise --time-limit")
        others = _others(limits)
        fastest = self.least(LATENCY, others)
        if fastest is None:
            raise BudgetError(f"no plan meets the limits on {' and '.join(others)} together; raise one of them")
        raise InfeasibleBudgetError(limits[LATENCY], _round_up(fastest))

    def _relax(self, limits: Mapping[str, float]) -> Relaxation:
        """The relaxation; where the graph is too wide for it, no bound and what coordinate ascent finds."""
        if self._relaxed is not None:
            return self._relaxed.solve(limits)
        space = self._reduction.space
        every = {variable.name: np.arange(len(variable.labels)) for variable in space.variables}
        return Relaxation(math.inf, incumbent(space, limits), {}, every)


def _proved(space: SearchSpace, bound: float, choice: Mapping[str, int] | None) -> Outcome | None:
    """The relaxation's plan, where it is proved as well as the integer program would prove it."""
    if choice is None:
        return None
    worth = float(space.total(IMPORTANCE, choice))
    return Outcome(choice, worth, bound, False) if bound - worth <= STOP_GAP * abs(worth) else None


def _verify(totals: Mapping[str, float], limits: Mapping[str, float], reported: float) -> None:
    """A choice that is over a limit, or worth another sum than the solver says, is a bug."""
    for resource, limit in limits.items():
        if totals.get(resource, 0.0) > limit * (1 + OVER):
            raise RuntimeError(f"the solver's plan has {resource} {totals[resource]:.9g}, over its limit {limit:.9g}")
    objective = totals.get(IMPORTANCE, 0.0)
    if abs(objective - reported) > AGREEMENT * max(abs(objective), abs(reported)):
        raise RuntimeError(f"the solver's plan is worth {objective:.9g}, and the solver says {reported:.9g}")


def _others(limits: Mapping[str, float]) -> dict[str, float]:
    return {resource: limit for resource, limit in limits.items() if resource != LATENCY}


def _round_up(milliseconds: float, digits: int = 4) -> float:
    """Up to so many significant digits, so that the printed budget is one that can be met."""
    unit = 10.0 ** (math.floor(math.log10(milliseconds)) + 1 - digits)
    return math.ceil(milliseconds / unit * (1 - 1e-12)) * unit
