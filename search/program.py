"""The integer program of a search space, written in PuLP and handed to HiGHS, or to CBC. No torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import highspy
import numpy as np
import pulp

from search.quiet import no_greeting
from search.space import IMPORTANCE, SearchSpace, SumVariable

__all__ = ["STOP_GAP", "Outcome", "optimise"]

STOP_GAP = 1e-6  # far below what counts as proved: any plan keeps most importance, so the last digits decide
SCALE = 1e3  # size of the objective and of every limit: the solver's tolerances are absolute, 1e-6
OVER = 1e-8  # relative; a limit is met to this, so that rounding cannot forbid a plan that lies exactly on it

Columns = dict[tuple[str, ...], np.ndarray]
"""Scope → object array of the program's variables, one per entry of a table over that scope."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the solver says: a choice or None, what it is worth, what none can beat, whether there can be none."""

    choice: Mapping[str, int] | None
    objective: float
    bound: float
    infeasible: bool


class _FromStart(pulp.HiGHS):
    """HiGHS with the variables' initial values as its first incumbent, which PuLP's own class leaves out."""

    def createAndConfigureSolver(self, lp: pulp.LpProblem) -> None:
        with no_greeting():
            super().createAndConfigureSolver(lp)

    def callSolver(self, lp: pulp.LpProblem) -> None:
        variables = lp.variables()
        if variables and all(variable.varValue is not None for variable in variables):
            start = highspy.HighsSolution()
            start.col_value = [variable.varValue for variable in variables]
            lp.solverModel.setSolution(start)
        if lp.solverModel.run() == highspy.HighsStatus.kError:  # PuLP would take it for a search without a plan
            raise RuntimeError(f"HiGHS refused a program of {len(variables)} variables")


# HiGHS 1.15.1's presolve calls some of these programs infeasible, bounds others wrongly, and may never return.
_SOLVERS = {"highs": partial(_FromStart, presolve="off"), "cbc": pulp.PULP_CBC_CMD}


def optimise(
    space: SearchSpace,
    resource: str,
    limits: Mapping[str, float],
    start: Mapping[str, int] | None = None,
    time_limit_s: float | None = None,
    gap: float = STOP_GAP,
    solver: str = "highs",
) -> Outcome:
    """The most importance, or the least of another resource, within the limits; `search.solve.solve` states it.

    It stops at this relative gap, or when its time is up. solver: "highs", or "cbc", which comes with PuLP, takes no
    start, and tells no bound but that of a program solved to its gap.
    """
    sign = 1.0 if resource == IMPORTANCE else -1.0
    problem = pulp.LpProblem("plan", pulp.LpMaximize)
    columns = _columns(problem, space, start)
    for limited, limit in limits.items():
        _forbid(space, limited, limit, columns)
    most = sum(float(factor.table.max()) for factor in space.factors if factor.resource == resource)
    scale = SCALE / (most or 1.0)
    worth, constant = _row(space, resource, columns, sign * scale)
    problem.setObjective(worth)
    for limited, limit in limits.items():
        cost, fixed = _row(space, limited, columns, SCALE / limit)
        problem += cost <= SCALE * (1 - fixed / limit + OVER)
    problem.solve(_SOLVERS[solver](msg=False, gapRel=gap, timeLimit=time_limit_s, threads=1))
    # `status` says "Optimal" for a plan that a time limit cut short; only `sol_status` tells them apart.
    if problem.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Outcome(None, math.nan, math.nan, problem.sol_status == pulp.LpSolutionInfeasible)
    choice = {v.name: int(np.argmax([column.varValue for column in columns[v.name,]])) for v in space.variables}
    reached = sign * pulp.value(problem.objective) / scale + constant
    if solver == "highs":  # PuLP hands it the negated objective, without its constant
        bound = -sign * problem.solverModel.getInfo().mip_dual_bound / scale + constant
    else:
        proved = problem.sol_status == pulp.LpSolutionOptimal
        bound = reached + sign * gap * abs(reached) if proved else math.inf
    trivial = most if sign > 0 else 0.0
    return Outcome(choice, reached, bound if math.isfinite(bound) else trivial, False)


def _columns(problem: pulp.LpProblem, space: SearchSpace, start: Mapping[str, int] | None) -> Columns:
    """The program's variables and the rows that tie them, with the start's values."""
    states = {} if start is None else space.states(start)
    columns: Columns = {}
    for index, (name, size) in enumerate(space.sizes.items()):
        columns[name,] = _variables(problem, f"x{index}", (size,), pulp.LpBinary, (states.get(name),))
        problem += pulp.lpSum(columns[name,]) == 1
    pairs = dict.fromkeys(factor.scope for factor in space.factors if len(factor.scope) == 2)
    joint = {total.name: tuple(name for name, _ in total.terms) for total in space.sums if len(total.terms) == 2}
    for index, scope in enumerate(dict.fromkeys((*pairs, *joint.values()))):
        shape = tuple(space.sizes[name] for name in scope)
        at = tuple(states.get(name) for name in scope)
        columns[scope] = _variables(problem, f"y{index}", shape, pulp.LpContinuous, at)
        for axis, name in enumerate(scope):
            for option, slice_ in enumerate(np.moveaxis(columns[scope], axis, 0)):
                problem += pulp.lpSum(slice_) == columns[name,][option]
    for total in space.sums:
        if total.name in joint:
            _tie_pair(problem, columns, total)
        else:
            _tie_sum(problem, columns, total)
    return columns


def _forbid(space: SearchSpace, resource: str, limit: float, columns: Columns) -> None:
    """Fix at 0 every entry that is over the limit even if all other factors are at their least.

    It shrinks the program, and it keeps the limit's row free of coefficients that dwarf the limit: with those, exact
    arithmetic on its boundary is lost.
    """
    factors = [factor for factor in space.factors if factor.resource == resource]
    least = sum(float(factor.table.min()) for factor in factors)
    for factor in factors:
        if factor.scope:
            over = least - factor.table.min() + factor.table > limit * (1 + OVER)
            for column in columns[factor.scope][over]:
                column.upBound = 0


def _variables(
    problem: pulp.LpProblem, stem: str, shape: tuple[int, ...], kind: str, start: tuple[int | None, ...]
) -> np.ndarray:
    """An object array of variables ≥ 0, one per index; with a start, 1 at that index and 0 elsewhere."""
    variables: Any = np.empty(shape, dtype=object)
    for index in np.ndindex(shape):
        variables[index] = problem.add_variable("_".join((stem, *map(str, index))), 0, None, kind)
        if None not in start:
            variables[index].setInitialValue(float(index == start))
    return variables


def _tie_pair(problem: pulp.LpProblem, columns: Columns, total: SumVariable) -> None:
    """s_k = Σ y_ij over the pairs whose total is in range k: tighter than the rows of a longer sum."""
    (first, a), (second, b) = total.terms
    state = total.states(np.add.outer(a, b))
    for k, column in enumerate(columns[total.name,]):
        problem += pulp.lpSum(columns[first, second][state == k]) == column


def _tie_sum(problem: pulp.LpProblem, columns: Columns, total: SumVariable) -> None:
    """Σ_k low_k s_k ≤ Σ_v Σ_i a_vi x_vi ≤ Σ_k high_k s_k, in units of the totals' common divisor."""
    unit = math.gcd(*(int(value) for _, entries in total.terms for value in entries), *map(int, total.low)) or 1
    reached = _weighted(
        pair for name, entries in total.terms for pair in zip(columns[name,], entries / unit, strict=True)
    )
    low, high = (_weighted(zip(columns[total.name,], ends / unit, strict=True)) for ends in (total.low, total.high))
    if total.exact:
        problem += reached - low == 0
    else:
        problem += reached - low >= 0
        problem += reached - high <= 0


def _row(space: SearchSpace, resource: str, columns: Columns, scale: float) -> tuple[pulp.LpAffineExpression, float]:
    """The resource's sum times `scale` over the program's variables, and its constant, not scaled."""
    factors = [factor for factor in space.factors if factor.resource == resource]
    constant = sum(float(factor.table) for factor in factors if not factor.scope)
    return _weighted(
        (column, scale * value)
        for factor in factors
        if factor.scope
        for column, value in zip(columns[factor.scope].flat, factor.table.flat, strict=True)
        if column.upBound != 0
    ), constant


def _weighted(terms: Iterable[tuple[pulp.LpVariable, float]]) -> pulp.LpAffineExpression:
    coefficients: defaultdict[pulp.LpVariable, float] = defaultdict(float)
    for column, weight in terms:
        coefficients[column] += float(weight)
    return pulp.LpAffineExpression(coefficients)
