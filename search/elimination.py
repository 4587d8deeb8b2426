"""Exact maximisation of a sum of tables over a graph, and what every single option could still reach. Numpy only.

Variable elimination: Bertelè & Brioschi, *Nonserial Dynamic Programming*, 1972; max-marginals by a second pass down
the bucket tree: Kask, Dechter, Larrosa & Dechter, Artificial Intelligence 166, 2005.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Elimination", "TooWide", "eliminate"]

MOST_ENTRIES = 8_000_000
"""Entries of the largest table that elimination may build; a graph that needs more is left to the integer program."""

Scope = tuple[str, ...]


class TooWide(Exception):
    """Raised for a graph whose elimination needs a table beyond MOST_ENTRIES."""


@dataclass(slots=True)
class Bucket:
    """One step: `scope` is the eliminated name followed by its neighbours then; `scopes` the tables that end here."""

    scope: Scope
    scopes: list[Scope] = field(default_factory=list)
    children: list[int] = field(default_factory=list)
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class Elimination:
    """An order of elimination for tables of given scopes; any tables of these scopes, or some, can be maximised."""

    sizes: Mapping[str, int]
    buckets: tuple[Bucket, ...]

    def maximise(self, tables: Mapping[Scope, np.ndarray]) -> tuple[float, dict[str, int]]:
        """The greatest Σ tables over all choices, and a choice (name → option) that reaches it."""
        potentials, messages = self._upward(tables)
        choice: dict[str, int] = {}
        for bucket, potential in zip(reversed(self.buckets), reversed(potentials), strict=True):
            at = tuple(choice[name] for name in bucket.scope[1:])
            choice[bucket.scope[0]] = int(potential[(slice(None), *at)].argmax())
        roots = (message for bucket, message in zip(self.buckets, messages, strict=True) if bucket.parent is None)
        return float(sum(float(message) for message in roots)), choice

    def marginals(self, tables: Mapping[Scope, np.ndarray]) -> dict[str, np.ndarray]:
        """For every name and option the greatest Σ tables of a choice that has this option: name → (K,)."""
        potentials, messages = self._upward(tables)
        roots = [number for number, bucket in enumerate(self.buckets) if bucket.parent is None]
        whole = sum(float(messages[number]) for number in roots)
        found: dict[str, np.ndarray] = {}
        beliefs: dict[int, np.ndarray] = {}
        for number in reversed(range(len(self.buckets))):
            bucket, belief = self.buckets[number], potentials[number]
            if bucket.parent is None:
                belief = belief + (whole - float(messages[number]))
            else:
                above = self.buckets[bucket.parent].scope
                gone = tuple(axis for axis, name in enumerate(above) if name not in bucket.scope)
                down = beliefs[bucket.parent].max(axis=gone)
                left = tuple(name for name in above if name in bucket.scope)
                belief = belief + _aligned(down, left, bucket.scope) - messages[number][None]
            beliefs[number] = belief
            found[bucket.scope[0]] = belief.max(axis=tuple(range(1, belief.ndim)))
        return found

    def _upward(self, tables: Mapping[Scope, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Every bucket's potential, and its message (…): the potential maximised over the eliminated name."""
        potentials: list[np.ndarray] = []
        messages: list[np.ndarray] = []
        for bucket in self.buckets:
            parts = [_aligned(tables[scope], scope, bucket.scope) for scope in bucket.scopes if scope in tables]
            parts += [_aligned(messages[at], self.buckets[at].scope[1:], bucket.scope) for at in bucket.children]
            potential = _added(parts, tuple(self.sizes[name] for name in bucket.scope))
            potentials.append(potential)
            messages.append(potential.max(axis=0))
        return potentials, messages


def eliminate(sizes: Mapping[str, int], scopes: Sequence[Scope]) -> Elimination:
    """An order for tables of these scopes, greedily the smallest next table. Raises TooWide."""
    neighbours: dict[str, set[str]] = {name: set() for name in sizes}
    for scope in scopes:
        for name in scope:
            neighbours[name] |= set(scope) - {name}
    rank = {name: number for number, name in enumerate(sizes)}
    order: dict[str, int] = {}
    buckets: list[Bucket] = []

    def entries(name: str) -> int:
        product = sizes[name]
        for other in neighbours[name]:
            product *= sizes[other]
        return product

    while neighbours:
        name = min(neighbours, key=lambda each: (entries(each), rank[each]))
        if entries(name) > MOST_ENTRIES:
            raise TooWide
        around = neighbours.pop(name)
        for other in around:
            neighbours[other] |= around
            neighbours[other] -= {other, name}
        order[name] = len(buckets)
        buckets.append(Bucket((name, *sorted(around, key=rank.__getitem__))))
    for scope in dict.fromkeys(scopes):
        buckets[min(order[name] for name in scope)].scopes.append(scope)
    for number, bucket in enumerate(buckets):
        if len(bucket.scope) > 1:
            bucket.parent = min(order[name] for name in bucket.scope[1:])
            buckets[bucket.parent].children.append(number)
    return Elimination(dict(sizes), tuple(buckets))


def _added(parts: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The sum of parts that broadcast to this shape, the small ones first: the whole shape is written least often."""
    total = np.zeros((1,) * len(shape))
    for part in sorted(parts, key=lambda part: part.size):
        if np.broadcast_shapes(total.shape, part.shape) == total.shape:
            total += part
        else:
            total = total + part
    return total if total.shape == shape else np.broadcast_to(total, shape)


def _aligned(table: np.ndarray, scope: Scope, onto: Scope) -> np.ndarray:
    """The table with its axes in the order of `onto`, and axes of length 1 for the names that it lacks."""
    own = sorted(range(len(scope)), key=lambda axis: onto.index(scope[axis]))
    shape = tuple(table.shape[scope.index(name)] if name in scope else 1 for name in onto)
    return table.transpose(own).reshape(shape)
