"""From coarse to fine: a plan, a bound on every plan, and the options that a better plan may have. No torch.

The relaxation is solved over runs of options, runs that no better plan has go, and the others are halved: tables stay
small however many options there are. Where every run is one option and the bound is still too high, branch and bound
goes on: options are divided between two plans that the bound mixes (Land & Doig, Econometrica 28, 1960).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

import numpy as np

from search.chains import chained
from search.elimination import TooWide
from search.incumbent import Climber
from search.relaxation import Cut, Relaxation, Relaxed
from search.runs import Runs, coarsest
from search.space import IMPORTANCE, SearchSpace

__all__ = ["Sieve", "Sifted"]

MOST_RUNS = 32
"""Runs of a variable to begin with."""

GOOD = 0.1
"""Share of the gap asked for at which a plan is good enough to look no further."""

NEAR = 30
"""Gaps within which changing two variables that share a factor is worth its time."""

HALVINGS, CLOSE_PRICES = 8, 1e-4
"""How often, and how far, prices are bisected between plans above and within the limits."""

MOST_NODES = 200
"""Relaxations solved before what is left goes to the integer program."""

DEARER = (1.03, 1.01, 1.1)
"""Factors on the prices that give local search another plan to start from, a little within the limits."""

STEEPER = (1.0, 1.01, 1.1, 2.0, 1e2, 1e6)
"""Factors on the prices at which a plan within the limits is looked for."""


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


@dataclass(order=True, slots=True)
class _Node:
    """What is still to be looked into, the highest bound first; the prices to begin with, and what they mixed."""

    below: float
    number: int
    relaxed: Relaxed = field(compare=False)
    prices: np.ndarray | None = field(compare=False, default=None)
    mixed: tuple[Cut, ...] = field(compare=False, default=())


class Sieve:
    """A space made ready for limits on these resources; plans met for one set of limits help with the next.

    What is worth most is importance, or the least of another `objective`.
    """

    def __init__(
        self,
        space: SearchSpace,
        resources: Iterable[str],
        objective: str = IMPORTANCE,
        most_runs: int = MOST_RUNS,
        most_nodes: int = MOST_NODES,
    ):
        self.space, self.resources, self.objective = space, tuple(resources), objective
        self.graph, self.ties = chained(space)
        self.climber = Climber(space, self.resources, objective)
        self.most_nodes = most_nodes
        self.coarsest = coarsest(self.graph, most_runs)
        self.first = self.relaxed(self.coarsest)
        self.known: list[_Plan] = []

    def solve(self, limits: Mapping[str, float], gap: float, deadline: float = math.inf) -> Sifted:
        """Sift until `gap`, relative, is proved, or nothing is left to divide, or `time.perf_counter()` is past the
        deadline. Limits are positive, and on the resources named at first."""
        return _Hunt(self, limits, gap).run(deadline)

    def learn(self, choice: Mapping[str, int]) -> None:
        """Remember a plan that something else found."""
        self.known.append(self.plan(choice))

    def forget(self) -> None:
        """Let go of the plans and cuts that earlier limits taught."""
        self.known.clear()
        if self.first is not None:
            self.first.forget()

    def relaxed(self, runs: Runs) -> Relaxed | None:
        """The relaxation over these runs, or None if the graph is too wide for it."""
        try:
            return Relaxed(self.graph, self.ties, runs, self.resources, self.objective)
        except TooWide:
            return None

    def plan(self, choice: Mapping[str, int]) -> _Plan:
        """A choice with its totals."""
        return _Plan(choice, self.climber.totals(choice))


class _Hunt:
    """One set of limits: the best plan met, the nodes still to look into, and a bound on all that was put aside."""

    def __init__(self, sieve: Sieve, limits: Mapping[str, float], gap: float):
        self._sieve, self._limits, self._gap = sieve, limits, gap
        self._scale = np.array([limits[resource] for resource in sieve.resources])
        self._plan: _Plan | None = None
        for plan in sieve.known:
            self._meet(plan)
        self._numbers = count()
        self._nodes: list[_Node] = []
        self._stuck: list[tuple[float, Runs]] = []
        if sieve.first is None:
            self._stuck.append((math.inf, sieve.coarsest))
        else:
            self._nodes.append(_Node(-math.inf, next(self._numbers), sieve.first))
        self._elsewhere = -math.inf

    def run(self, deadline: float) -> Sifted:
        """See `Sieve.solve`."""
        prices, divided, looked = np.zeros(0), False, 0
        while self._nodes and not self._proved() and looked < self._sieve.most_nodes:
            if looked and time.perf_counter() > deadline:
                break
            node = heappop(self._nodes)
            found = node.relaxed.solve(self._limits, node.prices, GOOD * self._gap, self._near(node))
            looked += 1
            prices = prices if divided else found.prices / self._scale
            divided |= self._look(found, node.relaxed, min(-node.below, found.bound), divided) > 1
        if not looked:
            self._start()
        if self._plan is not None:
            self._sieve.known.append(self._plan)
        return self._sifted(dict(zip(self._sieve.resources, map(float, prices), strict=False)))

    def _near(self, node: _Node) -> list[Mapping[str, int]]:
        """Choices on both sides of the limits that may be best at prices near a node's."""
        plan = [self._plan.choice] if node.mixed and self._plan is not None else []
        return plan + [cut.choice for cut in node.mixed]

    def _proved(self) -> bool:
        return self._bound() <= self._enough(self._gap)

    def _enough(self, gap: float) -> float:
        """What is worth no more than this is within the gap of the plan."""
        return -math.inf if self._plan is None else self._plan.worth + gap * abs(self._plan.worth)

    def _bound(self) -> float:
        """No plan within the limits is worth more."""
        left = [*(-node.below for node in self._nodes[:1]), *(bound for bound, _ in self._stuck)]
        return max([self._elsewhere, *left, -math.inf if self._plan is None else self._plan.worth])

    def _sifted(self, prices: Mapping[str, float]) -> Sifted:
        choice = None if self._plan is None else self._plan.choice
        left = [*(node.relaxed.runs for node in self._nodes), *(runs for _, runs in self._stuck)]
        kept = {}
        for name in (variable.name for variable in self._sieve.space.variables):
            parts = [runs.options[name] for runs in left]
            parts += [] if choice is None else [np.array([choice[name]])]
            kept[name] = np.unique(np.concatenate(parts))
        return Sifted(self._bound(), self._elsewhere, choice, prices, kept)

    def _look(self, found: Relaxation, relaxed: Relaxed, bound: float, divided: bool) -> int:
        """Improve the plan, put aside what cannot be much better, divide the rest; into how many parts."""
        self._improve(found, relaxed, bound, divided)
        most_with = {} if bound <= self._enough(self._gap) else relaxed.most_with(found.prices, self._scale)
        alive = {name: most > self._enough(self._gap / 2) for name, most in most_with.items()}
        if not alive or not all(stays.any() for stays in alive.values()):
            self._elsewhere = max(self._elsewhere, bound)
            return 0
        gone = [most[~alive[name]] for name, most in most_with.items()]
        self._elsewhere = max(self._elsewhere, float(np.concatenate(gone).max(initial=-math.inf)))
        runs = relaxed.runs.only(alive)
        parts = [] if self._plan is None else self._parts(runs, found)
        for part in parts:
            heappush(self._nodes, _Node(-bound, next(self._numbers), part, found.prices, found.mixed))
        if not parts:
            self._stuck.append((bound, runs))
        return len(parts)

    def _parts(self, runs: Runs, found: Relaxation) -> list[Relaxed]:
        """The runs halved; or, where each is one option or the graph would be too wide, divided between the two plans
        that the bound mixes."""
        if not runs.finest and (halved := self._sieve.relaxed(runs.halved())) is not None:
            return [halved]
        if len(found.mixed) < 2:
            return []
        here, there = (cut.choice for cut in found.mixed)
        spread = {
            name: float(np.abs(self._sieve.climber.change(here, name, there[name])[1:] / self._scale).sum())
            for name in here
            if here[name] != there[name]
        }
        for name in sorted(spread, key=lambda name: -spread[name]):
            lower = runs.options[name][runs.starts[name]] < (here[name] + there[name]) / 2
            if lower.any() and not lower.all():
                halves = [self._sieve.relaxed(runs.only({name: half})) for half in (lower, ~lower)]
                return [half for half in halves if half is not None] if None not in halves else []
        return []

    def _improve(self, found: Relaxation, relaxed: Relaxed, bound: float, divided: bool) -> None:
        """Meet the cuts' plans, and what local search among the node's options makes of some of them."""
        met = [self._sieve.plan(cut.choice) for cut in found.cuts]
        for plan in met:
            self._meet(plan)
        root = relaxed is self._sieve.first
        if root:
            self._sieve.known += met
            self._respond(found)
        within = [plan for plan in met if self._within(plan)] if divided else []
        self._climb(
            max(within, key=lambda plan: plan.worth, default=self._plan), found, relaxed.runs, bound, not divided
        )
        for dearer in () if root or divided else DEARER if relaxed.runs.finest else DEARER[:1]:
            self._climb(
                self._sieve.plan(relaxed.at(dearer * found.prices, self._scale)[1].choice), found, relaxed.runs, bound
            )

    def _climb(self, start: _Plan | None, found: Relaxation, runs: Runs, bound: float, together: bool = True) -> None:
        """Local search from a plan within the limits, unless the best is good already."""
        enough = bound - GOOD * self._gap * abs(bound)
        if start is None or self._plan is None or self._plan.worth >= enough or not self._within(start):
            return
        prices = found.prices / self._scale
        together &= bound - self._plan.worth <= NEAR * self._gap * abs(bound)
        self._meet(
            self._sieve.plan(
                self._sieve.climber.climb(self._scale, prices, start.choice, runs.options, enough, together=together)
            )
        )

    def _respond(self, found: Relaxation) -> None:
        """Meet the plans that best responses find from the last cut, at prices just high enough for the limits."""
        low, high, choice = 0.0, math.inf, found.cuts[-1].choice
        untried = iter(STEEPER)
        for _ in range(len(STEEPER) + HALVINGS):
            steeper = next(untried, math.inf) if math.isinf(high) else (low + high) / 2
            if math.isinf(steeper):
                break
            choice = self._sieve.climber.ascend(choice, steeper * found.prices / self._scale)
            plan = self._sieve.plan(choice)
            self._meet(plan)
            low, high = (low, steeper) if self._within(plan) else (steeper, high)
            if high - low < CLOSE_PRICES * high:
                break
        if self._plan is None:
            self._start()

    def _start(self) -> None:
        choice = self._sieve.climber.start(self._scale)
        if choice is not None:
            self._meet(self._sieve.plan(choice))

    def _within(self, plan: _Plan) -> bool:
        return self._sieve.climber.fits(self._scale, plan.totals)

    def _meet(self, plan: _Plan) -> None:
        """Keep the plan if it is the best within the limits."""
        if self._within(plan) and (self._plan is None or plan.worth > self._plan.worth):
            self._plan = plan
