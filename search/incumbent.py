"""A good plan in a moment: the integer program's first incumbent, and the answer if its time is up at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from search.space import IMPORTANCE, Factor, SearchSpace, SumVariable

__all__ = ["fits", "incumbent"]

Touching = tuple[list[Factor], list[SumVariable]]

STEPS = 24
SWEEPS = 4
TOLERANCE = 1e-9  # relative; rounding when a plan that meets its limit exactly is added up again


def fits(space: SearchSpace, limits: Mapping[str, float], choice: Mapping[str, int]) -> bool:
    """Whether a choice keeps every limit."""
    return all(space.total(resource, choice) <= limit * (1 + TOLERANCE) for resource, limit in limits.items())


def incumbent(space: SearchSpace, limits: Mapping[str, float]) -> dict[str, int] | None:
    """Coordinate ascent on the Lagrangian; the best choice within all limits, or None if it met none.

        maximise  Σ importance - λ · Σ_r cost_r / limit_r

    one variable at a time, bisecting λ between "importance only" and "cost only".
    """
    worth = sum(float(f.table.max()) for f in space.factors if f.resource == IMPORTANCE) or 1.0
    touching = {v.name: _touching(space, v.name) for v in space.variables}
    low, high = np.log(worth * 1e-6), np.log(worth * 1e6)
    choice = _ascend(space, limits, touching, {v.name: 0 for v in space.variables}, np.exp(high))
    if not fits(space, limits, choice):
        return None
    best = choice
    for _ in range(STEPS):
        middle = (low + high) / 2
        choice = _ascend(space, limits, touching, choice, np.exp(middle))
        if fits(space, limits, choice):
            high = middle
            best = max(best, choice, key=lambda plan: space.total(IMPORTANCE, plan))
        else:
            low = middle
    return best


def _touching(space: SearchSpace, name: str) -> Touching:
    sums = [total for total in space.sums if any(term == name for term, _ in total.terms)]
    names = {name, *(total.name for total in sums)}
    return [factor for factor in space.factors if names & set(factor.scope)], sums


def _ascend(
    space: SearchSpace,
    limits: Mapping[str, float],
    touching: Mapping[str, Touching],
    choice: Mapping[str, int],
    price: float,
) -> dict[str, int]:
    """Sweeps of best responses at this price, until nothing changes."""
    weights = {resource: -price / limit for resource, limit in limits.items()} | {IMPORTANCE: 1.0}
    states = space.states(choice)
    for _ in range(SWEEPS):
        before = states
        for variable in space.variables:
            factors, sums = touching[variable.name]
            varied = states | {variable.name: np.arange(len(variable.labels))}
            varied |= {total.name: total.states(total.add(varied)) for total in sums}
            values = [weights.get(f.resource, 0.0) * f.table[tuple(varied[name] for name in f.scope)] for f in factors]
            option = int(np.argmax(sum(values))) if values else states[variable.name]
            if option != states[variable.name]:
                states = states | {variable.name: option} | {t.name: int(varied[t.name][option]) for t in sums}
        if states is before:
            break
    return {v.name: int(states[v.name]) for v in space.variables}
