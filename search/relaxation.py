"""The Lagrangian relaxation of the integer program: a bound, a good plan, and the options that no best plan has.

Limits become prices: θ(μ) = max_x importance(x) + Σ_r μ_r (1 - cost_r(x) / limit_r) is, for any μ ≥ 0, a bound on what
a plan within the limits can be worth (Everett, Operations Research 11, 1963; Geoffrion, 1974). The inner maximum is
exact (`search.elimination`); the prices that bound best come from cutting planes (Kelley, SIAM J. 8, 1960). An option
whose max-marginal at these prices is below a known plan's worth is in no better plan, and goes. Numpy and scipy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from search.elimination import MOST_ENTRIES, TooWide, eliminate
from search.incumbent import TOLERANCE, fill
from search.space import IMPORTANCE, SearchSpace, SumVariable

__all__ = ["Relaxation", "Relaxed"]

MOST_CUTS = 60
CLOSE = 1e-7
"""Relative: prices that could lower the bound by no more than this are the best; the linear program sees no finer."""

BETTER = 1e-9
"""Relative: a plan is better than another from here on."""

STEEPEST = 1e4
"""The highest price of a whole limit, in units of all importance; where it still pays, no plan keeps the limits."""

FORBIDDEN = -1e30


@dataclass(frozen=True, slots=True)
class Relaxation:
    """`bound` on every plan within the limits, the best plan met on the way, the prices per limit and the options
    (variable → indices) that a plan better than it may have."""

    bound: float
    choice: Mapping[str, int] | None
    prices: Mapping[str, float]
    kept: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class _Cut:
    """A plan, its importance and its costs, in the order of the resources."""

    choice: Mapping[str, int]
    worth: float
    costs: np.ndarray


class Relaxed:
    """A space made ready for prices on these resources; plans met for one set of limits help with the next.

    Raises TooWide for a graph that cannot be eliminated in reasonable memory.
    """

    def __init__(self, space: SearchSpace, resources: Iterable[str]):
        self.space, self.resources = space, tuple(resources)
        self._tables: dict[str, dict[tuple[str, ...], np.ndarray]] = {r: {} for r in (IMPORTANCE, *self.resources)}
        for factor in space.factors:
            if factor.resource in self._tables:
                tables = self._tables[factor.resource]
                tables[factor.scope] = tables.get(factor.scope, 0.0) + factor.table
        self._constants = {r: float(tables.pop((), 0.0)) for r, tables in self._tables.items()}
        self._hard = {(*(name for name, _ in t.terms), t.name): _ties(t, space) for t in space.sums}
        scopes = [scope for tables in self._tables.values() for scope in tables]
        self._graph = eliminate(space.sizes, [*scopes, *self._hard])
        self._cuts: list[_Cut] = []

    def solve(self, limits: Mapping[str, float]) -> Relaxation:
        """Prices, bound and plan for these limits, which are all positive and on the resources named at first."""
        most = sum(float(table.max()) for table in self._tables[IMPORTANCE].values()) or 1.0
        scale = np.array([limits[resource] for resource in self.resources])
        prices = np.zeros(len(scale))
        bound, best_prices = math.inf, prices
        for _ in range(MOST_CUTS):
            value, cut = self._at(prices, scale)
            if value < bound:
                bound, best_prices = value, prices
            self._cuts.append(cut)
            cheapest = self._cheapest(scale, most)
            if cheapest is None or bound - cheapest[1] <= CLOSE * most:
                break
            prices = cheapest[0]
        known = [cut for cut in self._cuts if (cut.costs <= scale * (1 + TOLERANCE)).all()]
        choice = max(known, key=lambda cut: cut.worth).choice if known else None
        most_with = self._marginals(best_prices, scale)
        kept = self._promising(most_with, choice)
        if choice is not None:
            choice = fill(self.space, limits, choice, kept)
            kept = self._promising(most_with, choice)
        return Relaxation(bound, choice, dict(zip(self.resources, best_prices / scale, strict=True)), kept)

    def least(self, resource: str) -> float:
        """The least of one of the resources that any plan needs."""
        tables = dict(self._hard)
        for scope, table in self._tables[resource].items():
            tables[scope] = tables[scope] - table if scope in tables else -table
        return self._constants[resource] - self._graph.maximise(tables)[0]

    def _priced(self, prices: np.ndarray, scale: np.ndarray) -> tuple[dict[tuple[str, ...], np.ndarray], float]:
        """Importance minus priced costs, as one table per scope, and the constant beside them."""
        tables = dict(self._hard)
        constant = self._constants[IMPORTANCE] + float(prices.sum())
        for resource, weight in ((IMPORTANCE, 1.0), *zip(self.resources, -prices / scale, strict=True)):
            if resource != IMPORTANCE:
                constant += weight * self._constants[resource]
            for scope, table in self._tables[resource].items():
                tables[scope] = tables[scope] + weight * table if scope in tables else weight * table
        return tables, constant

    def _at(self, prices: np.ndarray, scale: np.ndarray) -> tuple[float, _Cut]:
        """θ at these prices, and the plan that reaches it."""
        tables, constant = self._priced(prices, scale)
        value, states = self._graph.maximise(tables)
        choice = {variable.name: states[variable.name] for variable in self.space.variables}
        worth, *costs = (float(self.space.total(resource, choice)) for resource in (IMPORTANCE, *self.resources))
        return value + constant, _Cut(choice, worth, np.array(costs))

    def _cheapest(self, scale: np.ndarray, most: float) -> tuple[np.ndarray, float] | None:
        """The prices at which the plans met so far bound best, and that bound: min θ, θ ≥ worth + μ·slack.

        None where the linear program fails, as it may when a limit is far below what plans cost.
        """
        slack = np.array([1 - cut.costs / scale for cut in self._cuts])
        worth = np.array([cut.worth for cut in self._cuts]) / most
        found = linprog(
            [0.0] * len(scale) + [1.0],
            A_ub=np.column_stack([slack, -np.ones(len(worth))]),
            b_ub=-worth,
            bounds=[(0, STEEPEST)] * len(scale) + [(None, None)],
            method="highs",
        )
        return None if found.x is None else (found.x[:-1] * most, float(found.x[-1]) * most)

    def _marginals(self, prices: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
        """A bound for every option on what a plan with it is worth: variable → (K,)."""
        tables, constant = self._priced(prices, scale)
        marginals = self._graph.marginals(tables)
        return {variable.name: marginals[variable.name] + constant for variable in self.space.variables}

    def _promising(
        self, most_with: Mapping[str, np.ndarray], choice: Mapping[str, int] | None
    ) -> dict[str, np.ndarray]:
        """The options that a plan better than `choice` may have, and those of `choice`."""
        if choice is None:
            return {name: np.arange(len(bounds)) for name, bounds in most_with.items()}
        worth = float(self.space.total(IMPORTANCE, choice))
        enough = worth + BETTER * abs(worth)
        return {
            name: np.flatnonzero((bounds > enough) | (np.arange(len(bounds)) == choice[name]))
            for name, bounds in most_with.items()
        }


def _ties(total: SumVariable, space: SearchSpace) -> np.ndarray:
    """0 where the last axis is the state of the sum of the others, else FORBIDDEN. Raises TooWide."""
    sizes = [space.sizes[name] for name, _ in total.terms]
    if math.prod(sizes) * len(total.low) > MOST_ENTRIES:
        raise TooWide
    axes = np.ogrid[tuple(slice(size) for size in sizes)]
    states = total.states(total.add({name: axis for (name, _), axis in zip(total.terms, axes, strict=True)}))
    return np.where(states[..., None] == np.arange(len(total.low)), 0.0, FORBIDDEN)
