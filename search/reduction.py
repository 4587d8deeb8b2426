"""What can be settled before the integer program: equal scopes merged, additive pairs split, dominated options gone."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from search.space import IMPORTANCE, Factor, SearchSpace, SumVariable, Variable

__all__ = ["Reduction", "reduce_space"]

ADDITIVE = 1e-12  # relative; float64 rounding of a table that was built as a sum

SAMPLED = 4

_log = logging.getLogger(__name__)

Tables = dict[tuple[str, tuple[str, ...]], np.ndarray]


@dataclass(frozen=True, slots=True)
class Reduction:
    """A smaller space of equal optimum; `kept` holds, for each variable, the original index of each option left."""

    space: SearchSpace
    kept: Mapping[str, np.ndarray]
    removed: int

    def restore(self, choice: Mapping[str, int]) -> dict[str, int]:
        """A choice of the smaller space in the original's option indices."""
        return {name: int(self.kept[name][option]) for name, option in choice.items()}

    def only(self, kept: Mapping[str, np.ndarray]) -> Reduction:
        """The reduction with no other options of the smaller space than these: variable → ascending indices."""
        gone = sum(len(variable.labels) - len(kept[variable.name]) for variable in self.space.variables)
        tables = {(factor.resource, factor.scope): factor.table for factor in self.space.factors}
        for (resource, scope), table in tables.items():
            for axis, name in enumerate(scope):
                if name in kept:
                    table = table.take(kept[name], axis)
            tables[resource, scope] = table
        space = _rebuild(self.space, tables, kept)
        return Reduction(space, {name: self.kept[name][left] for name, left in kept.items()}, self.removed + gone)


def reduce_space(space: SearchSpace, resources: Collection[str]) -> Reduction:
    """The space with only these resources and importance, one factor a scope, and no dominated option.

    An option is dominated if another of the same variable is worth no less and costs no more in every entry of every
    table (and adds the same to every sum). Dropping it, one at a time, leaves the optimum as it is.
    """
    tables = _split_additive(_merge(space, {*resources, IMPORTANCE}))
    kept = {v.name: np.arange(len(v.labels)) for v in space.variables}
    changed = True
    while changed:
        changed = False
        for variable in space.variables:
            changed |= _drop_dominated(variable.name, tables, kept, space.sums)
    removed = sum(len(v.labels) - len(kept[v.name]) for v in space.variables)
    _log.info("removed %d of %d options, each dominated", removed, sum(len(v.labels) for v in space.variables))
    return Reduction(_rebuild(space, tables, kept), kept, removed)


def _merge(space: SearchSpace, resources: set[str]) -> Tables:
    """One table per (resource, scope), the scope in the space's order of names."""
    order = {name: i for i, name in enumerate(space.sizes)}
    tables: Tables = {}
    for factor in space.factors:
        if factor.resource in resources:
            axes = sorted(range(len(factor.scope)), key=lambda axis: order[factor.scope[axis]])
            key = factor.resource, tuple(factor.scope[axis] for axis in axes)
            tables[key] = tables.get(key, 0.0) + factor.table.transpose(axes)
    return tables


def _split_additive(tables: Tables) -> Tables:
    """Pair tables with t(i, j) = a(i) + b(j) as two unary ones, both non-negative."""
    split: Tables = {}
    for (resource, scope), table in tables.items():
        parts = {scope: table}
        if len(scope) == 2:
            column = int(table[0].argmin())
            first, second = table[:, column], table[0] - table[0, column]
            if np.abs(table - np.add.outer(first, second)).max() <= ADDITIVE * table.max():
                parts = {scope[:1]: first, scope[1:]: second}
        for part, values in parts.items():
            split[resource, part] = split.get((resource, part), 0.0) + values
    return split


def _drop_dominated(name: str, tables: Tables, kept: dict[str, np.ndarray], sums: tuple[SumVariable, ...]) -> bool:
    """Drop the variable's dominated options from `tables` and `kept`; whether there were any."""
    columns = [np.zeros((len(kept[name]), 1))]
    for (resource, scope), table in tables.items():
        if name in scope:
            rows = np.moveaxis(table, scope.index(name), 0).reshape(len(kept[name]), -1)
            columns.append(-rows if resource == IMPORTANCE else rows)
    for entries in (entries for total in sums for term, entries in total.terms if term == name):
        contribution = entries[kept[name]][:, None].astype(float)
        columns += [contribution, -contribution]
    alive = _undominated(columns)
    if alive.all():
        return False
    kept[name] = kept[name][alive]
    for (resource, scope), table in list(tables.items()):
        if name in scope:
            tables[resource, scope] = np.compress(alive, table, axis=scope.index(name))
    return True


def _undominated(costs: Sequence[np.ndarray]) -> np.ndarray:
    """Which options no other one dominates, by tables (options, entries); of equal options the last stays.

    A few entries of every table tell most pairs apart; only the others are compared whole.
    """
    may = ~np.eye(len(costs[0]), dtype=bool)  # may[a, b]: a may dominate b
    for table in sorted(costs, key=lambda table: table.shape[1]):
        for entry in {int(at) for at in np.linspace(0, table.shape[1] - 1, SAMPLED)}:
            may &= table[:, None, entry] <= table[:, entry]
        if not may.any():
            break
    alive = np.ones(len(may), dtype=bool)
    for option in np.flatnonzero(may.any(axis=0)):
        others, strictly = np.flatnonzero(may[:, option]), False
        for table in costs:
            others = others[(table[others] <= table[option]).all(axis=1)]
        for table in costs:
            strictly |= (table[others] < table[option]).any()
        alive[option] = not (strictly or (others > option).any())
    return alive


def _rebuild(space: SearchSpace, tables: Tables, kept: Mapping[str, np.ndarray]) -> SearchSpace:
    variables = tuple(Variable(v.name, tuple(v.labels[i] for i in kept[v.name])) for v in space.variables)
    factors = tuple(
        Factor("+".join(scope) or "constant", resource, scope, table) for (resource, scope), table in tables.items()
    )
    sums = tuple(
        replace(total, terms=tuple((name, entries[kept[name]]) for name, entries in total.terms))
        for total in space.sums
    )
    return SearchSpace(variables, factors, sums)
