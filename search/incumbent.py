"""A good plan in a moment: the integer program's first incumbent, and the answer if its time is up at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from search.space import IMPORTANCE, Factor, SearchSpace, SumVariable

__all__ = ["TOLERANCE", "fill", "fits", "incumbent"]

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


def fill(
    space: SearchSpace, limits: Mapping[str, float], choice: Mapping[str, int], kept: Mapping[str, np.ndarray]
) -> dict[str, int]:
    """A choice within the limits, made better by changing one variable, or two at once, until that gains no more.

    kept: the options to try, variable → indices.
    """
    walk = _Walk(space, limits, choice, kept)
    names = [variable.name for variable in space.variables if len(kept[variable.name]) > 1]
    moves = 1
    while moves:
        moves = sum(walk.step(name) for name in names) or sum(walk.step(*pair) for pair in combinations(names, 2))
    return {variable.name: int(walk.states[variable.name]) for variable in space.variables}


class _Walk:
    """A choice that changes step by step within its limits."""

    def __init__(
        self,
        space: SearchSpace,
        limits: Mapping[str, float],
        choice: Mapping[str, int],
        kept: Mapping[str, np.ndarray],
    ):
        self._space, self._limits, self._kept = space, limits, kept
        self.states = space.states(choice)
        self._totals = {resource: float(space.total(resource, choice)) for resource in limits}
        self._touching = {variable.name: _touching(space, variable.name) for variable in space.variables}

    def step(self, *names: str) -> bool:
        """Move these variables to the options that are worth most within the limits; whether that gained anything."""
        axes = np.ix_(*(self._kept[name] for name in names))
        sums = {total.name: total for name in names for total in self._touching[name][1]}
        varied = _vary(self.states, dict(zip(names, axes, strict=True)), sums.values())
        shape = [len(self._kept[name]) for name in names]
        gains = {resource: np.zeros(shape) for resource in (IMPORTANCE, *self._limits)}
        for f in {id(f): f for name in names for f in self._touching[name][0]}.values():
            if f.resource in gains:
                now = f.table[tuple(self.states[name] for name in f.scope)]
                gains[f.resource] += f.table[tuple(varied[name] for name in f.scope)] - now
        within = np.logical_and.reduce(
            [self._totals[r] + gains[r] <= limit * (1 + TOLERANCE) for r, limit in self._limits.items()]
        )
        at = np.unravel_index(np.where(within, gains[IMPORTANCE], -np.inf).argmax(), within.shape)
        if not (within[at] and gains[IMPORTANCE][at] > 0):
            return False
        self._totals = {resource: self._totals[resource] + gains[resource][at] for resource in self._limits}
        choice = self.states | {name: int(self._kept[name][i]) for name, i in zip(names, at, strict=True)}
        self.states = self._space.states({variable.name: choice[variable.name] for variable in self._space.variables})
        return True


def _touching(space: SearchSpace, name: str) -> Touching:
    sums = [total for total in space.sums if any(term == name for term, _ in total.terms)]
    names = {name, *(total.name for total in sums)}
    return [factor for factor in space.factors if names & set(factor.scope)], sums


def _vary(states: Mapping[str, Any], options: Mapping[str, np.ndarray], sums: Iterable[SumVariable]) -> dict[str, Any]:
    """The states with whole arrays of options for some variables, and with what the sums then are."""
    varied = dict(states) | dict(options)
    return varied | {total.name: total.states(total.add(varied)) for total in sums}


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
            varied = _vary(states, {variable.name: np.arange(len(variable.labels))}, sums)
            values = [weights.get(f.resource, 0.0) * f.table[tuple(varied[name] for name in f.scope)] for f in factors]
            option = int(np.argmax(sum(values))) if values else states[variable.name]
            if option != states[variable.name]:
                states = states | {variable.name: option} | {t.name: int(varied[t.name][option]) for t in sums}
        if states is before:
            break
    return {v.name: int(states[v.name]) for v in space.variables}
