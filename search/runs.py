"""The search space seen more coarsely: neighbouring options as one run, which is as good as the best of them. No torch.

A table over runs holds the least cost (the most importance) of every block, so whatever bounds the coarse space
bounds the space itself; a run whose bound is below a known plan goes, and the runs that stay are halved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from search.chains import Tie
from search.space import SearchSpace

__all__ = ["Runs", "coarsest"]

FORBIDDEN = -1e30


@dataclass(frozen=True, slots=True)
class Runs:
    """What is still in question of every variable's options and every sum's states, by name.

    `options` (N,) are ascending indices of the space, `starts` (R,) the positions in them at which a run begins.
    """

    options: Mapping[str, np.ndarray]
    starts: Mapping[str, np.ndarray]

    @property
    def sizes(self) -> dict[str, int]:
        """The number of runs."""
        return {name: len(starts) for name, starts in self.starts.items()}

    @property
    def finest(self) -> bool:
        """Whether every run is one option."""
        return all(len(self.starts[name]) == len(options) for name, options in self.options.items())

    def first(self, choice: Mapping[str, int]) -> dict[str, int]:
        """The first option of each chosen run."""
        return {name: int(self.options[name][self.starts[name][run]]) for name, run in choice.items()}

    def containing(self, states: Mapping[str, int]) -> dict[str, int] | None:
        """The run that each of these options is in, or None if one is in none."""
        found = {}
        for name, options in self.options.items():
            at = int(np.searchsorted(options, states[name]))
            if at == len(options) or options[at] != states[name]:
                return None
            found[name] = int(np.searchsorted(self.starts[name], at, side="right")) - 1
        return found

    def seen(self, table: np.ndarray, scope: tuple[str, ...], best: np.ufunc) -> np.ndarray:
        """A table over these names' options as one over their runs: the `best` of every block."""
        for axis, name in enumerate(scope):
            if len(self.options[name]) < table.shape[axis]:
                table = table.take(self.options[name], axis)
            if len(self.starts[name]) < table.shape[axis]:
                table = best.reduceat(table, self.starts[name], axis)
        return table

    def tie(self, tie: Tie) -> np.ndarray:
        """0 where the last axis is a run of the total that the runs of its parts may add up to, else FORBIDDEN."""
        total = tie.total
        low, high = (
            reduce(np.add.outer, parts)[..., None]
            for parts in (
                [self.seen(least, (name,), np.minimum) for name, least, _ in tie.parts],
                [self.seen(most, (name,), np.maximum) for name, _, most in tie.parts],
            )
        )
        least, most = self.seen(total.low, (total.name,), np.minimum), self.seen(total.high, (total.name,), np.maximum)
        return np.where((low <= most) & (high >= least), 0.0, FORBIDDEN)

    def only(self, alive: Mapping[str, np.ndarray]) -> Runs:
        """Without the runs that are not alive: name → (R,) bool."""
        options, starts = dict(self.options), dict(self.starts)
        for name, stays in alive.items():
            lengths = np.diff(self.starts[name], append=len(self.options[name]))
            options[name] = self.options[name][np.repeat(stays, lengths)]
            starts[name] = np.cumsum(lengths[stays]) - lengths[stays]
        return Runs(options, starts)

    def halved(self) -> Runs:
        """Every run of several options as two."""
        starts = {}
        for name, begin in self.starts.items():
            middle = begin + np.diff(begin, append=len(self.options[name])) // 2
            starts[name] = np.unique(np.concatenate([begin, middle]))
        return Runs(self.options, starts)


def coarsest(space: SearchSpace, most: int) -> Runs:
    """All options of the space, in at most `most` runs of about equal length for every variable and sum."""
    return Runs(
        {name: np.arange(size) for name, size in space.sizes.items()},
        {name: np.arange(min(size, most)) * size // min(size, most) for name, size in space.sizes.items()},
    )
