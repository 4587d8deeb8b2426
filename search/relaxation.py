"""The Lagrangian relaxation of the integer program: a bound, good plans, and what a plan with an option can be worth.

Limits become prices: θ(μ) = max_x worth(x) + Σ_r μ_r (1 - cost_r(x) / limit_r) is, for any μ ≥ 0, a bound on what
a plan within the limits can be worth (Everett, Operations Research 11, 1963; Geoffrion, 1974). The inner maximum is
exact (`search.elimination`); the prices that bound best come from cutting planes (Kelley, SIAM J. 8, 1960). An option
whose max-marginal at these prices is below a known plan's worth is in no better plan. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import highspy
import numpy as np

from search.chains import Tie
from search.elimination import eliminate
from search.quiet import no_greeting
from search.runs import FORBIDDEN, Runs
from search.space import IMPORTANCE, SearchSpace

__all__ = ["Cut", "Relaxation", "Relaxed"]

MOST_CUTS = 60
CLOSE = 1e-7
"""Relative: prices that could lower the bound by no more than this are the best; the linear program sees no finer."""

STEEPEST = 1e4
"""The highest price of a whole limit, in units of all worth; where it still pays, no plan keeps the limits."""


Tables = dict[tuple[str, ...], np.ndarray]


@dataclass(frozen=True, slots=True)
class Cut:
    """What is best at some prices: the option that begins each chosen run, its worth and its costs as the runs see
    them, in the order of the resources."""

    choice: Mapping[str, int]
    worth: float
    costs: np.ndarray


@dataclass(frozen=True, slots=True)
class Relaxation:
    """`bound` on every plan within the limits; the `prices` of each whole limit that give it; the cuts met on the way;
    and two that are best at the prices (one, if all are alike; none, if the runs left of a sum's terms add up to none
    of its own)."""

    bound: float
    prices: np.ndarray
    cuts: tuple[Cut, ...]
    mixed: tuple[Cut, ...]


class Relaxed:
    """A space, seen in runs, made ready for prices on these resources; cuts of one set of limits help with the next.

    space, ties: as `search.chains.chained` gives them. What is worth most is importance, or the least of another
    `objective`. Tables are made when they are first needed. Raises TooWide for a graph that cannot be eliminated in
    reasonable memory.
    """

    def __init__(
        self,
        space: SearchSpace,
        ties: Sequence[Tie],
        runs: Runs,
        resources: Iterable[str],
        objective: str = IMPORTANCE,
    ):
        self.runs, self.resources = runs, tuple(resources)
        self._space, self._objective = space, objective
        self._names = [variable.name for variable in space.variables]
        scopes = [factor.scope for factor in space.factors if factor.scope]
        self._graph = eliminate(runs.sizes, [*scopes, *(tie.scope for tie in ties)])
        self._chains = ties
        self._cuts: list[Cut] = []

    def solve(
        self,
        limits: Mapping[str, float],
        prices: np.ndarray | None = None,
        close: float = CLOSE,
        known: Iterable[Mapping[str, int]] = (),
    ) -> Relaxation:
        """Bound, prices and cuts for these limits, which are all positive and on the resources named at first.

        prices: where to begin; close: relative, how near to the best bound to come; known: choices that may be best at
        prices near by, which saves looking for them.
        """
        held = (self.runs.containing(self._space.states(choice)) for choice in known)
        self._cuts += [self._cut(runs) for runs in held if runs is not None]
        scale = np.array([limits[resource] for resource in self.resources])
        most = sum(float(np.abs(table).max()) for table in self._worth[0].values()) or 1.0
        cheapest = self._cheapest(scale, most)
        trial = prices if prices is not None else np.zeros(len(scale)) if cheapest is None else cheapest[0]
        bound, best_prices, met = math.inf, trial, []
        for _ in range(MOST_CUTS):
            value, cut = self.at(trial, scale)
            if value < bound:
                bound, best_prices = value, trial
            if value <= FORBIDDEN / 2:
                break
            met.append(cut)
            self._cuts.append(cut)
            cheapest = self._cheapest(scale, most)
            if cheapest is None or bound - cheapest[1] <= max(CLOSE * most, close * abs(bound)):
                break
            trial = cheapest[0]
        return Relaxation(bound, best_prices, tuple(met), self._mixed(best_prices, scale))

    def most_with(self, prices: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
        """The most that a plan with each run can be worth, by these prices of the whole limits `scale`: name → (R,)."""
        tables, constant = self._priced(prices, scale)
        return {name: most + constant for name, most in self._graph.marginals(tables).items()}

    def forget(self) -> None:
        """Let go of the cuts met so far."""
        self._cuts.clear()

    def _mixed(self, prices: np.ndarray, scale: np.ndarray) -> tuple[Cut, ...]:
        best = sorted(self._cuts, key=lambda cut: -cut.worth - float(prices @ (1 - cut.costs / scale)))
        others = [cut for cut in best if cut.choice != best[0].choice]
        return (*best[:1], *others[:1])

    @cached_property
    def _ties(self) -> Tables:
        return {tie.scope: self.runs.tie(tie) for tie in self._chains}

    @cached_property
    def _worth(self) -> tuple[Tables, float]:
        return self._tables(self._objective, 1.0 if self._objective == IMPORTANCE else -1.0)

    @cached_property
    def _costs(self) -> tuple[list[Tables], np.ndarray]:
        costs = [self._tables(resource, 1.0) for resource in self.resources]
        return [tables for tables, _ in costs], np.array([fixed for _, fixed in costs])

    def _tables(self, resource: str, sign: float) -> tuple[Tables, float]:
        """The resource's tables over runs, by scope, and its constant."""
        tables: Tables = {}
        for factor in self._space.factors:
            if factor.resource == resource:
                best = np.maximum if resource == IMPORTANCE else np.minimum
                seen = sign * self.runs.seen(factor.table, factor.scope, best)
                tables[factor.scope] = tables[factor.scope] + seen if factor.scope in tables else seen
        return tables, float(tables.pop((), 0.0))

    def _priced(self, prices: np.ndarray, scale: np.ndarray) -> tuple[Tables, float]:
        """Worth minus priced costs, as one table per scope, and the constant beside them."""
        (worth, fixed_worth), (costs, fixed) = self._worth, self._costs
        tables = dict(self._ties)
        for weight, parts in ((1.0, worth), *zip(-prices / scale, costs, strict=True)):
            for scope, table in parts.items():
                tables[scope] = tables[scope] + weight * table if scope in tables else weight * table
        return tables, fixed_worth + float(prices @ (1 - fixed / scale))

    def at(self, prices: np.ndarray, scale: np.ndarray) -> tuple[float, Cut]:
        """θ at these prices of the whole limits `scale`, both (R,), and what reaches it."""
        tables, constant = self._priced(prices, scale)
        value, states = self._graph.maximise(tables)
        return value + constant, self._cut(states)

    def _cut(self, states: Mapping[str, int]) -> Cut:
        """What these runs are worth and cost."""
        worth, *costs = (
            sum(float(table[tuple(states[name] for name in scope)]) for scope, table in tables.items())
            for tables in (self._worth[0], *self._costs[0])
        )
        choice = self.runs.first({name: states[name] for name in self._names})
        return Cut(choice, worth + self._worth[1], np.array(costs) + self._costs[1])

    def _cheapest(self, scale: np.ndarray, most: float) -> tuple[np.ndarray, float] | None:
        """The prices at which the cuts so far bound best, and that bound: min θ, θ ≥ worth + μ·slack.

        None without cuts, and where the linear program fails, as it may when a limit is far below what plans cost.
        """
        if not self._cuts or not len(scale):
            return None
        slack = np.array([1 - cut.costs / scale for cut in self._cuts])
        worth = np.array([cut.worth for cut in self._cuts]) / most
        found = _least_top(slack, worth)
        return None if found is None else (found[:-1] * most, float(found[-1]) * most)


def _least_top(slack: np.ndarray, worth: np.ndarray) -> np.ndarray | None:
    """(μ, θ) of the least θ with θ ≥ worth + slack · μ and 0 ≤ μ ≤ STEEPEST; slack: (C, R), worth: (C,).

    scipy's linprog takes five times as long for programs this small.
    """
    count, prices = slack.shape
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = prices + 1, count
    program.col_cost_ = np.append(np.zeros(prices), 1.0)
    program.col_lower_ = np.append(np.zeros(prices), -highspy.kHighsInf)
    program.col_upper_ = np.append(np.full(prices, STEEPEST), highspy.kHighsInf)
    program.row_lower_, program.row_upper_ = np.full(count, -highspy.kHighsInf), -worth
    program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    program.a_matrix_.start_ = np.arange(count + 1) * (prices + 1)
    program.a_matrix_.index_ = np.tile(np.arange(prices + 1), count)
    program.a_matrix_.value_ = np.column_stack([slack, -np.ones(count)]).ravel()
    with no_greeting():
        solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)  # as the integer program has it: a process has HiGHS's scheduler only once
    solver.passModel(program)
    solver.run()
    optimal = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return np.array(solver.getSolution().col_value) if optimal else None
