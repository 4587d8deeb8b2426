"""Sums of many terms as chains of sums of two, so that a graph with concats can be eliminated. No torch.

A table over all terms of a concat has the product of their options; a chain of running totals has a table for each
step. A concat that begins with another one, as DenseNet's do, goes on where that ends. Ranges would lose a few channels
at every step, to which a bound is blind; so there each total is a state of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from search.space import Factor, SearchSpace, SumVariable, sum_variable

__all__ = ["Tie", "chained"]

MOST_TOTALS = 1024
"""States of a running total; beyond that they are ranges, and the bound is a little less tight."""


@dataclass(frozen=True, slots=True)
class Tie:
    """`total` stands for what its parts add up to: each part a name, the least and the most of each of its states."""

    total: SumVariable
    parts: tuple[tuple[str, np.ndarray, np.ndarray], ...]

    @property
    def scope(self) -> tuple[str, ...]:
        """The names that the tie is between, the total last."""
        return (*(name for name, _, _ in self.parts), self.total.name)


def chained(space: SearchSpace) -> tuple[SearchSpace, tuple[Tie, ...]]:
    """The space with running totals as further sums, and the ties of all its sums, none of more than two parts.

    A sum in ranges that another one goes on from gets a state for every total, each costing what its range does.
    """
    exact = {total.name: _exact(total) if _goes_on(total, space.sums) else total for total in space.sums}
    ties: list[Tie] = []
    for total in sorted(exact.values(), key=lambda each: len(each.terms)):
        ties += _links(total, [tie.total for tie in ties])
    sums = {tie.total.name: tie.total for tie in ties}
    ranges = {total.name: total.states(exact[total.name].high) for total in space.sums}
    factors = tuple(_spread(factor, ranges) for factor in space.factors)
    return replace(space, factors=factors, sums=tuple(sums.values())), tuple(ties)


def _goes_on(total: SumVariable, sums: Sequence[SumVariable]) -> bool:
    return any(_within(total, other) for other in sums)


def _exact(total: SumVariable) -> SumVariable:
    """The sum with a state for every total, or as it is where they are too many."""
    exact, _, _ = sum_variable(total.name, total.terms, MOST_TOTALS)
    return exact if exact.exact else total


def _spread(factor: Factor, ranges: Mapping[str, np.ndarray]) -> Factor:
    """The factor's table over totals instead of ranges; ranges: sum → the range of every total."""
    table = factor.table
    for axis, name in enumerate(factor.scope):
        if name in ranges:
            table = table.take(ranges[name], axis)
    return replace(factor, table=table)


def _links(total: SumVariable, known: Sequence[SumVariable]) -> list[Tie]:
    """From the longest known total that this one begins with, or its first term, one term at a time."""
    inner = max((each for each in known if _within(each, total)), key=lambda each: len(each.terms), default=None)
    held = dict(inner.terms) if inner else dict(total.terms[:1])
    rest = [(name, entries) for name, entries in total.terms if name not in held]
    part = (inner.name, inner.low, inner.high) if inner else (total.terms[0][0], *2 * (total.terms[0][1],))
    ties: list[Tie] = []
    for number, (name, entries) in enumerate(rest):
        held[name] = entries
        last = number == len(rest) - 1
        running = total if last else sum_variable(f"{total.name} so far {number}", tuple(held.items()), MOST_TOTALS)[0]
        ties.append(Tie(running, (part, (name, entries, entries))))
        part = (running.name, running.low, running.high)
    return ties


def _within(inner: SumVariable, outer: SumVariable) -> bool:
    """Whether every term of one is a term of the other, and not the other way round."""
    terms = dict(outer.terms)
    return len(inner.terms) < len(terms) and all(
        name in terms and np.array_equal(entries, terms[name]) for name, entries in inner.terms
    )
