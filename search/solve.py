"""The integer program that chooses one option per variable: proved by bounds or by HiGHS, re-added outside both.

No torch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

import numpy as np

from network.errors import BudgetError, InfeasibleBudgetError
from search.program import STOP_GAP, Outcome, optimise
from search.reduction import Reduction, reduce_space
from search.sieve import Sieve, Sifted
from search.space import IMPORTANCE, LATENCY, SearchSpace

__all__ = ["PROVED_GAP", "Solution", "Solver", "solve"]

_log = logging.getLogger(__name__)

PROVED_GAP = 1e-4
AGREEMENT = 1e-5  # relative; what the solver's tolerances on its variables can do to the objective
WITHIN = 0.9  # of the gap asked for, so that what the solver calls proved is proved when added up again
DIGITS = 10  # of a gap; what sums in another order differ by does not reach the plan
OVER = 1e-6  # relative; and to a limit: a nanosecond in a millisecond


@dataclass(frozen=True, slots=True)
class Solution:
    """One option per variable, with its proof.

    `choice` maps each variable to its option's index; `totals` are the resources' sums, re-added from the tables;
    no choice has more importance than `bound`; `gap` = (bound - objective) / |objective|; `removed` counts the
    options that the program never saw, dominated or bounded away; `prices` is the slope, in importance per unit of each
    limited resource, of the concave hull over all limits, as the runs of options last looked at have it (it bounds to
    1e-5); empty for too wide a graph.
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

    def bounded(self, bound: float) -> Solution:
        """The same choice with another bound, its gap and what that proves."""
        unit = abs(self.objective) or 1.0
        gap = round(max(0.0, bound - self.objective) / unit, DIGITS)
        status = "optimal" if gap <= PROVED_GAP else "feasible"
        return replace(self, bound=self.objective + gap * unit, gap=gap, status=status)


def solve(
    space: SearchSpace,
    budget_ms: float,
    *,
    limits: Mapping[str, float] | None = None,
    time_limit_s: float | None = None,
    gap: float = PROVED_GAP,
) -> Solution:
    """Choose one option per variable.

        maximise    Σ_f importance[f, x_f]
        subject to  Σ_f latency_ms[f, x_f] ≤ budget_ms
                    Σ_f resource[f, x_f]   ≤ limits[resource],   x_v one option of v

    As an integer program: x_vi ∈ {0, 1}, Σ_i x_vi = 1; for a pair (u, v) with a table, y_ij ≥ 0 with
    Σ_j y_ij = x_ui and Σ_i y_ij = x_vj, so that y_ij = x_ui · x_vj at every integral point; for a sum s of variables,
    Σ_k s_k = 1 and Σ_k low_k s_k ≤ Σ_v Σ_i a_vi x_vi ≤ Σ_k high_k s_k, with s_k then used as an x is.

    space: V variables with K_v options; unary tables (K_v,), pair tables (K_u, K_v), float64; milliseconds.
    Returns a verified Solution: status "optimal" with a gap of at most `gap` proved, at most 1e-4; or "feasible" with
    the gap that stood when `time_limit_s` struck.
    Raises InfeasibleBudgetError, which carries the smallest feasible budget; BudgetError if the limits beside it
    cannot be met, or if the time was too short to find any plan.
    """
    return Solver(space, limits or ()).solve(budget_ms, limits=limits, time_limit_s=time_limit_s, gap=gap)


class Solver:
    """A space made ready for limits on latency and on these resources; many budgets then cost little each."""

    def __init__(self, space: SearchSpace, resources: Collection[str] = ()):
        started = time.perf_counter()
        self.space = space
        self._reduction = reduce_space(space, {*resources, LATENCY})
        self._sieve = Sieve(self._reduction.space, sorted({*resources, LATENCY}))
        self._preparation_s = time.perf_counter() - started

    def solve(
        self,
        budget_ms: float,
        *,
        limits: Mapping[str, float] | None = None,
        time_limit_s: float | None = None,
        gap: float = PROVED_GAP,
    ) -> Solution:
        """As `solve` does. limits: on the very resources that the solver was made for.

        First the sieve: a bound, a plan, and the options that no better plan can have. What is left is the integer
        program's, unless the plan is already as good as the bound.
        """
        started = time.perf_counter()
        limits = {**(limits or {}), LATENCY: budget_ms}
        for resource, limit in limits.items():
            if not 0 < limit < math.inf:
                raise BudgetError(f"the limit on {resource}, {limit:.4g}, is not positive; raise it")
        gap = min(gap, PROVED_GAP)
        deadline = math.inf if time_limit_s is None else started + time_limit_s
        sifted = self._sieve.solve(limits, gap, deadline)
        if sifted.choice is None:
            self._check_each(limits)
        reduction, outcome = self._finish(sifted, limits, gap, deadline)
        if outcome.choice is None:
            self._raise_none(limits, outcome, time_limit_s)
        choice = reduction.restore(outcome.choice)
        totals = {resource: float(self.space.total(resource, choice)) for resource in self.space.resources}
        _verify(totals, limits, outcome.objective)
        objective = totals.get(IMPORTANCE, 0.0)
        seconds = self._preparation_s + time.perf_counter() - started
        found = Solution(choice, totals, "", objective, 0.0, 0.0, seconds, reduction.removed, sifted.prices)
        return found.bounded(min(outcome.bound, self.most))

    @cached_property
    def most(self) -> float:
        """What no choice is worth more than, whatever the limits: the largest entries together."""
        return float(sum(each.table.max() for each in self.space.factors if each.resource == IMPORTANCE))

    def forget(self) -> None:
        """Let go of the plans and cuts that earlier limits taught."""
        self._sieve.forget()

    def least(self, resource: str, limits: Mapping[str, float]) -> float | None:
        """The least of one resource that a plan within these limits needs; None if none is within them."""
        sifted = Sieve(self._reduction.space, sorted(limits), resource).solve(limits, STOP_GAP)
        reduction, outcome = self._finish(sifted, limits, STOP_GAP, math.inf, resource)
        return None if outcome.choice is None else float(reduction.space.total(resource, outcome.choice))

    def _finish(
        self,
        sifted: Sifted,
        limits: Mapping[str, float],
        gap: float,
        deadline: float,
        objective: str = IMPORTANCE,
    ) -> tuple[Reduction, Outcome]:
        """What the sieve has proved, or what the integer program makes of the options left, in terms of these."""
        reduction, start, sign = self._reduction, None, 1.0 if objective == IMPORTANCE else -1.0
        if sifted.choice is not None:
            reduction = reduction.only(sifted.kept)
            start = {name: int(np.searchsorted(sifted.kept[name], at)) for name, at in sifted.choice.items()}
            worth = sign * float(reduction.space.total(objective, start))
            left, every = (sum(len(v.labels) for v in s.variables) for s in (reduction.space, self.space))
            _log.info("bounds left %d of %d options, and a gap of %.1e", left, every, sifted.bound / (worth or 1.0) - 1)
            if sifted.bound - worth <= gap * abs(worth) or time.perf_counter() > deadline:
                return reduction, Outcome(start, worth, sifted.bound, False)
        left_s = None if deadline == math.inf else max(0.0, deadline - time.perf_counter())
        found = optimise(reduction.space, objective, limits, start, left_s, gap * WITHIN)
        if found.choice is not None and objective == IMPORTANCE:
            self._sieve.learn({name: int(sifted.kept[name][at]) for name, at in found.choice.items()})
        return reduction, replace(found, bound=min(sifted.bound, max(sign * found.bound, sifted.elsewhere)))

    def _check_each(self, limits: Mapping[str, float]) -> None:
        """Say which limit no plan keeps by itself, and what would do."""
        others = _others(limits)
        for resource, limit in others.items():
            least = self.least(resource, {})
            if least is not None and least > limit * (1 + OVER):
                raise BudgetError(
                    f"the limit on {resource}, {limit:.10g}, is below the least, {_enough(least)}; raise it"
                )
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
            raise BudgetError(
                f"no plan meets the limits on {' and '.join(others)} together; raise one of them"
                + self._instead(others, others)
            )
        error = InfeasibleBudgetError(limits[LATENCY], _round_up(fastest))
        error.args = (str(error) + self._instead(others, limits),)
        raise error

    def _instead(self, resources: Collection[str], limits: Mapping[str, float]) -> str:
        """To what each of these limits would have to be raised if the others stay, in words; none if that is no use."""
        least = {each: self.least(each, {r: limit for r, limit in limits.items() if r != each}) for each in resources}
        values = [f"{resource} to {_enough(value)}" for resource, value in least.items() if value is not None]
        return f", or raise {' or '.join(values)}" if values else ""


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


def _enough(amount: float) -> str:
    """A limit that an amount keeps, as one types it: whole where it has six digits or more."""
    return f"{_round_up(amount, 6):.6g}" if amount < 1e5 else str(math.ceil(amount * (1 - 1e-12)))
