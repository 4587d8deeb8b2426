"""The integer program that chooses one option per variable, proved by HiGHS and re-added outside it. No torch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from network.errors import BudgetError, InfeasibleBudgetError
from search.incumbent import incumbent
from search.program import Outcome, optimise
from search.reduction import reduce_space
from search.space import IMPORTANCE, LATENCY, SearchSpace

__all__ = ["PROVED_GAP", "Solution", "solve"]

PROVED_GAP = 1e-4
AGREEMENT = 1e-5  # relative; what the solver's tolerances on its variables can do to the objective
OVER = 1e-6  # relative; and to a limit: a nanosecond in a millisecond


@dataclass(frozen=True, slots=True)
class Solution:
    """One option per variable, with its proof.

    `choice` maps each variable to its option's index; `totals` are the resources' sums, re-added from the tables;
    no choice has more importance than `bound`; `gap` = (bound - objective) / |objective|; `removed` counts the
    dominated options that the program never saw.
    """

    choice: Mapping[str, int]
    totals: Mapping[str, float]
    status: str
    objective: float
    bound: float
    gap: float
    solve_seconds: float
    removed: int


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
    started = time.perf_counter()
    limits = {**(limits or {}), LATENCY: budget_ms}
    for resource, limit in limits.items():
        if not 0 < limit < math.inf:
            raise BudgetError(f"the limit on {resource}, {limit:.4g}, is not positive; raise it")
    reduction = reduce_space(space, limits)
    start = incumbent(reduction.space, limits)
    left_s = None if time_limit_s is None else max(0.0, time_limit_s - (time.perf_counter() - started))
    outcome = optimise(reduction.space, IMPORTANCE, limits, start, left_s)
    if outcome.choice is None:
        _raise_none(space, limits, outcome, time_limit_s)
    choice = reduction.restore(outcome.choice)
    totals = {resource: float(space.total(resource, choice)) for resource in space.resources}
    _verify(totals, limits, outcome.objective)
    objective = totals.get(IMPORTANCE, 0.0)
    bound = max(outcome.bound, objective)
    gap = (bound - objective) / (abs(objective) or 1.0)
    status = "optimal" if gap <= PROVED_GAP else "feasible"
    seconds = time.perf_counter() - started
    return Solution(choice, totals, status, objective, bound, gap, seconds, reduction.removed)


def _verify(totals: Mapping[str, float], limits: Mapping[str, float], reported: float) -> None:
    """A choice that is over a limit, or worth another sum than the solver says, is a bug."""
    for resource, limit in limits.items():
        if totals.get(resource, 0.0) > limit * (1 + OVER):
            raise RuntimeError(f"the solver's plan has {resource} {totals[resource]:.9g}, over its limit {limit:.9g}")
    objective = totals.get(IMPORTANCE, 0.0)
    if abs(objective - reported) > AGREEMENT * max(abs(objective), abs(reported)):
        raise RuntimeError(f"the solver's plan is worth {objective:.9g}, and the solver says {reported:.9g}")


def _raise_none(
    space: SearchSpace, limits: Mapping[str, float], outcome: Outcome, time_limit_s: float | None
) -> NoReturn:
    """Say which limit cannot be met, and what can."""
    if not outcome.infeasible:
        raise BudgetError(f"no plan was found within {time_limit_s} s; raise --time-limit")
    others = {resource: limit for resource, limit in limits.items() if resource != LATENCY}
    for resource, limit in others.items():
        least = _smallest(space, resource, {})
        if least is not None and least > limit:
            raise BudgetError(f"the limit on {resource}, {limit:.6g}, is below the least, {least:.6g}; raise it")
    smallest = _smallest(space, LATENCY, others)
    if smallest is None:
        raise BudgetError(f"no plan meets the limits on {' and '.join(others)} together; raise one of them")
    raise InfeasibleBudgetError(limits[LATENCY], _round_up(smallest))


def _smallest(space: SearchSpace, resource: str, limits: Mapping[str, float]) -> float | None:
    """The least of one resource that a plan within the limits needs; None if none is within them."""
    reduced = reduce_space(space, {*limits, resource}).space
    choice = optimise(reduced, resource, limits).choice
    return None if choice is None else float(reduced.total(resource, choice))


def _round_up(milliseconds: float, digits: int = 4) -> float:
    """Up to so many significant digits, so that the printed budget is one that can be met."""
    unit = 10.0 ** (math.floor(math.log10(milliseconds)) + 1 - digits)
    return math.ceil(milliseconds / unit * (1 - 1e-12)) * unit
