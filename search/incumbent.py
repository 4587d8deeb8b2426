"""A good plan in a moment, by local search: what the bounds are held against, and the answer if time is up at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.space import IMPORTANCE, Factor, SearchSpace

__all__ = ["TOLERANCE", "Climber"]

STEPS = 24
SWEEPS = 4
MOST_MOVES = 24
"""Options of one variable that are tried together with another's: those that pay best at the prices."""

TOLERANCE = 1e-9  # relative; rounding when a plan that meets its limit exactly is added up again


@dataclass(frozen=True, slots=True)
class _Point:
    """A choice as local search stands on it: the option of every variable and the state of every sum, the sums' totals,
    and what each factor gives there, by its number."""

    states: Mapping[str, int]
    totals: Mapping[str, int]
    given: Mapping[int, float]


class Climber:
    """Local search in a space: worth is importance, or the least of another `objective`; costs are the `resources`."""

    def __init__(self, space: SearchSpace, resources: Iterable[str], objective: str = IMPORTANCE):
        self.space, self.resources, self.objective = space, tuple(resources), objective
        rows = {resource: row for row, resource in enumerate(self.resources, 1)}
        self._rows = [(objective, 0, 1.0 if objective == IMPORTANCE else -1.0), *((r, n, 1.0) for r, n in rows.items())]
        self._names = [variable.name for variable in space.variables]
        self._sums = {name: [t for t in space.sums if any(term == name for term, _ in t.terms)] for name in self._names}
        self._by_name = {total.name: total for total in space.sums}
        self._entries = {(t.name, name): entries for t in space.sums for name, entries in t.terms}
        self._touching = {name: self._factors(name) for name in self._names}
        reach = {name: {number for number, _, _, _ in self._touching[name]} for name in self._names}
        self._near = {a: {b for b in self._names if reach[a] & reach[b]} for a in self._names}

    def totals(self, choice: Mapping[str, int]) -> np.ndarray:
        """Worth, then costs, of a choice: (1 + R,)."""
        return np.array([sign * float(self.space.total(resource, choice)) for resource, _, sign in self._rows])

    def fits(self, limits: np.ndarray, totals: np.ndarray) -> bool:
        """Whether totals keep limits (R,)."""
        return bool((totals[1:] <= limits * (1 + TOLERANCE)).all())

    def change(self, choice: Mapping[str, int], name: str, option: int) -> np.ndarray:
        """What another option of one variable changes in worth and costs: (1 + R,)."""
        return self._gains(self._point(choice), {name: np.array([option])})[:, 0]

    def start(self, limits: np.ndarray) -> dict[str, int] | None:
        """Coordinate ascent on the Lagrangian; the best choice within all limits, or None if it met none.

            maximise  worth - λ · Σ_r cost_r / limit_r

        one variable at a time, bisecting λ between "worth only" and "cost only".
        """
        most = sum(float(f.table.max()) for f in self.space.factors if f.resource == self.objective) or 1.0
        low, high = np.log(most * 1e-6), np.log(most * 1e6)
        choice = self.ascend(dict.fromkeys(self._names, 0), np.exp(high) / limits)
        if not self.fits(limits, self.totals(choice)):
            return None
        best = choice
        for _ in range(STEPS):
            middle = (low + high) / 2
            choice = self.ascend(choice, np.exp(middle) / limits)
            if self.fits(limits, self.totals(choice)):
                high, best = middle, max(best, choice, key=lambda plan: self.totals(plan)[0])
            else:
                low = middle
        return best

    def ascend(self, choice: Mapping[str, int], prices: np.ndarray) -> dict[str, int]:
        """Sweeps of best responses at these prices (R,), until nothing changes."""
        weights, point = np.concatenate([[1.0], -prices]), self._point(choice)
        for _ in range(SWEEPS):
            before = point
            for name in self._names:
                best = int((weights @ self._gains(point, {name: np.arange(self.space.sizes[name])})).argmax())
                point = self._moved(point, {name: best})
            if point.states == before.states:
                break
        return self._choice(point)

    def climb(
        self,
        limits: np.ndarray,
        prices: np.ndarray,
        choice: Mapping[str, int],
        options: Mapping[str, np.ndarray],
        enough: float,
        *,
        together: bool = True,
    ) -> dict[str, int]:
        """A choice within the limits (R,), changed one or two variables at a time, until that gains no more or its
        worth is `enough`. options: those to try; prices (R,) say which of them to try together.
        """
        point, totals = self._point(choice), self.totals(choice)
        gains: dict[str, np.ndarray] = {}
        stale = {name for name in self._names if len(options[name]) > 1}
        while totals[0] < enough:
            left = limits * (1 + TOLERANCE) - totals[1:]
            gains |= {name: self._gains(point, {name: options[name]}) for name in self._names if name in stale}
            move = self._single(gains, options, left)
            if move is None:
                tried = {name: _promising(each, options[name], prices) for name, each in gains.items()}
                move = self._apart(tried, left) or (self._together(point, tried, left) if together else None)
            if move is None:
                break
            moved = self._moved(point, move)
            after = self.totals(self._choice(moved))
            if after[0] <= totals[0]:  # a gain that is rounding
                break
            point, totals = moved, after
            stale = {near for name in move for near in self._near[name] if near in gains}
        return self._choice(point)

    def _factors(self, name: str) -> list[tuple[int, int, float, Factor]]:
        """(number, row, sign, factor) of every factor that depends on a variable, through a sum too."""
        names = {name, *(total.name for total in self._sums[name])}
        return [
            (number, row, sign, factor)
            for resource, row, sign in self._rows
            for number, factor in enumerate(self.space.factors)
            if factor.resource == resource and names & set(factor.scope)
        ]

    # ---- points and moves --------------------------------------------------------------------------------------------
    def _point(self, choice: Mapping[str, int]) -> _Point:
        totals = {total.name: total.add(choice) for total in self.space.sums}
        states = dict(choice) | {name: int(self._by_name[name].states(total)) for name, total in totals.items()}
        given = self._given(states, self._names)
        return _Point(states, {name: int(total) for name, total in totals.items()}, given)

    def _given(self, states: Mapping[str, int], names: Iterable[str]) -> dict[int, float]:
        """What each factor that depends on these variables gives."""
        return {
            number: sign * float(factor.table[tuple(states[name] for name in factor.scope)])
            for number, _, sign, factor in self._touched(names)
        }

    def _choice(self, point: _Point) -> dict[str, int]:
        return {name: int(point.states[name]) for name in self._names}

    def _touched(self, names: Iterable[str]) -> list[tuple[int, int, float, Factor]]:
        """Every factor that depends on one of these variables, once."""
        return list({each[0]: each for name in names for each in self._touching[name]}.values())

    def _shifted(self, point: _Point, moves: Mapping[str, Any]) -> dict[str, Any]:
        """The totals of the sums that these variables are terms of, after their moves."""
        totals: dict[str, Any] = {}
        for name, options in moves.items():
            for total in self._sums[name]:
                entries = self._entries[total.name, name]
                change = entries[options] - entries[point.states[name]]
                totals[total.name] = totals.get(total.name, point.totals[total.name]) + change
        return totals

    def _gains(self, point: _Point, moves: Mapping[str, np.ndarray]) -> np.ndarray:
        """Changes of worth and costs, (1 + R, …), for arrays of options that broadcast."""
        varied: dict[str, Any] = dict(point.states) | dict(moves)
        for name, totals in self._shifted(point, moves).items():
            varied[name] = self._by_name[name].states(totals)
        gains = np.zeros((len(self._rows), *np.broadcast_shapes(*(options.shape for options in moves.values()))))
        for number, row, sign, factor in self._touched(moves):
            gains[row] += sign * factor.table[tuple(varied[name] for name in factor.scope)] - point.given[number]
        return gains

    def _moved(self, point: _Point, move: Mapping[str, int]) -> _Point:
        totals = {name: int(total) for name, total in self._shifted(point, move).items()}
        states = {name: int(self._by_name[name].states(np.array(total))) for name, total in totals.items()}
        states = dict(point.states) | dict(move) | states
        given = self._given(states, move)
        return _Point(states, dict(point.totals) | totals, dict(point.given) | given)

    def _single(
        self, gains: Mapping[str, np.ndarray], options: Mapping[str, np.ndarray], left: np.ndarray
    ) -> dict[str, int] | None:
        """The best change of one variable within what is left."""
        best: tuple[float, dict[str, int] | None] = (0.0, None)
        for name, changes in gains.items():
            at, gain = _best(changes, left)
            if gain > best[0]:
                best = gain, {name: int(options[name][at])}
        return best[1]

    def _apart(self, tried: Mapping[str, tuple[np.ndarray, np.ndarray]], left: np.ndarray) -> dict[str, int] | None:
        """The first change of two variables that share no factor, and gain together: what each alone gains adds up."""
        names = list(tried)
        for number, name in enumerate(names):
            others = [other for other in names[number + 1 :] if other not in self._near[name]]
            if not others:
                continue
            beside = np.concatenate([tried[other][1] for other in others], axis=1)
            at, gain = _best(tried[name][1][:, :, None] + beside[:, None, :], left)
            if gain > 0:
                first, second = np.unravel_index(at, (tried[name][1].shape[1], beside.shape[1]))
                other = np.repeat(others, [len(tried[other][0]) for other in others])[second]
                option = np.concatenate([tried[other][0] for other in others])[second]
                return {name: int(tried[name][0][first]), str(other): int(option)}
        return None

    def _together(
        self, point: _Point, tried: Mapping[str, tuple[np.ndarray, np.ndarray]], left: np.ndarray
    ) -> dict[str, int] | None:
        """The first change of two variables that share a factor and gain together."""
        for name in tried:
            for other in (other for other in tried if other in self._near[name] and other > name):
                moves = dict(zip((name, other), np.ix_(tried[name][0], tried[other][0]), strict=True))
                changes = self._gains(point, moves)
                at, gain = _best(changes, left)
                if gain > 0:
                    first, second = np.unravel_index(at, changes.shape[1:])
                    return {name: int(tried[name][0][first]), other: int(tried[other][0][second])}
        return None


def _best(gains: np.ndarray, left: np.ndarray) -> tuple[int, float]:
    """Where the greatest gain (row 0) within what is left (R,) of the limits is, and that gain; -inf if none is."""
    within = np.ones(gains.shape[1:], dtype=bool)
    for row, rest in enumerate(left, 1):
        within &= gains[row] <= rest
    worth = np.where(within, gains[0], -np.inf).ravel()
    at = int(worth.argmax())
    return at, float(worth[at])


def _promising(gains: np.ndarray, options: np.ndarray, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The options that pay best at these prices, and their gains."""
    if len(options) > MOST_MOVES:
        paying = np.sort(np.argpartition(prices @ gains[1:] - gains[0], MOST_MOVES)[:MOST_MOVES])
        options, gains = options[paying], gains[:, paying]
    return options, gains
