"""The search space as a factor graph: variables with options, sums of them, and a table per resource. Numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from network.errors import TableError

__all__ = ["IMPORTANCE", "LATENCY", "Factor", "SearchSpace", "SumVariable", "Variable", "attainable", "sum_variable"]

IMPORTANCE = "importance"
LATENCY = "latency_ms"
MOST_SUMS = 128


@dataclass(frozen=True, slots=True)
class Variable:
    """One choice: `labels` says what each option stands for (a width; an operation, a precision, …)."""

    name: str
    labels: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError(f"variable {self.name!r} has no options; give it at least one")


@dataclass(frozen=True, slots=True)
class SumVariable:
    """A derived variable: the total of what other variables' options contribute (a concat's width).

    `terms` holds (variable name, contributions (K_v,) int64). State s stands for every total in
    [low[s], high[s]] (int64, ascending, disjoint, together covering every attainable total); where low = high
    throughout, the sum is exact, else a table over it holds the worst of each range, or to bound what is possible the
    best.
    """

    name: str
    terms: tuple[tuple[str, np.ndarray], ...]
    low: np.ndarray
    high: np.ndarray

    def __post_init__(self) -> None:
        if len({name for name, _ in self.terms}) != len(self.terms):
            raise ValueError(f"sum {self.name!r} names a variable twice; add its contributions up")
        ascending = all(a < b for a, b in pairwise(self.high)) and all(a < b for a, b in pairwise(self.low))
        if self.low.shape != self.high.shape or self.low.size == 0 or not ascending or (self.low > self.high).any():
            raise ValueError(f"sum {self.name!r} needs ascending ranges low ≤ high, one pair per state")

    @property
    def exact(self) -> bool:
        """Whether each state stands for one total only."""
        return bool((self.low == self.high).all())

    def add(self, choice: Mapping[str, int | np.ndarray]) -> np.ndarray:
        """The total of a choice; arrays of options broadcast."""
        return np.asarray(sum(entries[choice[name]] for name, entries in self.terms))

    def states(self, totals: np.ndarray) -> np.ndarray:
        """The state of each total."""
        return np.searchsorted(self.high, totals)


@dataclass(frozen=True, slots=True)
class Factor:
    """What one thing costs, or is worth: `table` of `resource`, float64, with one axis per name in `scope`.

    A scope of none is a constant, of one a unary table (K_u,), of two a pair table (K_u, K_v); a name is that of a
    variable or of a sum. Entries are not negative, except a constant's. Every resource is a cost to be bounded, except
    "importance", which is to be kept. Raises ValueError, and TableError for a number that cannot be measured.
    """

    name: str
    resource: str
    scope: tuple[str, ...]
    table: np.ndarray

    def __post_init__(self) -> None:
        if self.table.ndim != len(self.scope) or len(self.scope) > 2 or len(set(self.scope)) != len(self.scope):
            raise ValueError(f"factor {self.name!r}: a table of shape {self.table.shape} does not fit {self.scope}")
        if not np.isfinite(self.table).all():
            raise TableError(f"{self.resource} of {self.name!r} has a value that is not finite; measure it again")
        if self.scope and (self.table < 0).any():
            raise TableError(f"{self.resource} of {self.name!r} has {self.table.min():.4g}, below 0; measure it again")


@dataclass(frozen=True)
class SearchSpace:
    """Variables, sums of them, and factors over both: everything that a solver knows.

    Checked at construction: names are unique and known, tables have the shape of their scope, a sum's states cover
    what its terms can add up to. Raises ValueError.
    """

    variables: tuple[Variable, ...]
    factors: tuple[Factor, ...]
    sums: tuple[SumVariable, ...] = ()

    def __post_init__(self) -> None:
        names = [v.name for v in self.variables] + [s.name for s in self.sums]
        if len(set(names)) != len(names):
            raise ValueError(f"variable {next(n for n in names if names.count(n) > 1)!r} is there twice; rename one")
        for total in self.sums:
            self._check_sum(total)
        for factor in self.factors:
            unknown = [name for name in factor.scope if name not in self.sizes]
            if unknown:
                raise ValueError(f"factor {factor.name!r} names {unknown[0]!r}, which is no variable; add it")
            expected = tuple(self.sizes[name] for name in factor.scope)
            if factor.table.shape != expected:
                raise ValueError(f"factor {factor.name!r} has shape {factor.table.shape}; its scope needs {expected}")

    def _check_sum(self, total: SumVariable) -> None:
        counts = {v.name: len(v.labels) for v in self.variables}
        for name, contributions in total.terms:
            if counts.get(name) != len(contributions):
                raise ValueError(f"sum {total.name!r}: its term {name!r} does not fit a variable of that name")
        reach = attainable([contributions for _, contributions in total.terms])
        states = np.minimum(total.states(reach), len(total.low) - 1)
        if ((reach < total.low[states]) | (reach > total.high[states])).any():
            raise ValueError(f"sum {total.name!r}: its states do not cover every total that its terms can add up to")

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The number of options of every variable and of states of every sum."""
        return {v.name: len(v.labels) for v in self.variables} | {s.name: len(s.low) for s in self.sums}

    @cached_property
    def resources(self) -> tuple[str, ...]:
        """The names of the resources, importance among them, in order of first mention."""
        return tuple(dict.fromkeys(factor.resource for factor in self.factors))

    @property
    def choices_log10(self) -> float:
        """Decimal logarithm of the number of plans."""
        return float(sum(np.log10(len(v.labels)) for v in self.variables))

    def states(self, choice: Mapping[str, int | np.ndarray]) -> dict[str, Any]:
        """The choice with the state of every sum added; arrays of options broadcast."""
        return dict(choice) | {total.name: total.states(total.add(choice)) for total in self.sums}

    def total(self, resource: str, choice: Mapping[str, int | np.ndarray]) -> float | np.ndarray:
        """The sum of all factors of this resource for a choice (variable → option index)."""
        states = self.states(choice)
        return sum(f.table[tuple(states[n] for n in f.scope)] for f in self.factors if f.resource == resource)

    def labels(self, choice: Mapping[str, int]) -> dict[str, int | str]:
        """What a choice stands for: variable → label."""
        return {v.name: v.labels[choice[v.name]] for v in self.variables}


def attainable(contributions: list[np.ndarray]) -> np.ndarray:
    """Every total that one entry of each array can add up to: sorted int64."""
    reach = np.zeros(1, dtype=np.int64)
    for entries in contributions:
        reach = np.unique(np.add.outer(reach, np.asarray(entries, dtype=np.int64)))
    return reach


def sum_variable(
    name: str,
    terms: tuple[tuple[str, np.ndarray], ...],
    most: int = MOST_SUMS,
    of_range: np.ufunc = np.maximum,
) -> tuple[SumVariable, Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """The sum of the terms with at most `most` states: exact where the attainable totals are that few.

    Returns the variable, a function that turns a table over the attainable totals (T, …) into one over the states
    (S, …), and the totals (T,). of_range: np.maximum takes the worst of each range, so that a plan that is feasible
    there is feasible; np.minimum the best, so that whatever is feasible is feasible there.
    """
    totals = attainable([contributions for _, contributions in terms])
    starts = np.unique(np.linspace(0, len(totals), min(most, len(totals)), endpoint=False).astype(np.int64))
    ends = np.append(starts[1:], len(totals)) - 1

    def over_states(table: np.ndarray) -> np.ndarray:
        found: np.ndarray = of_range.reduceat(table, starts, axis=0)
        return found

    return SumVariable(name, terms, totals[starts], totals[ends]), over_states, totals
