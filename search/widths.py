"""Which widths a channel group may have: the settings' constraints, by name of module or group. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from network.errors import InputError
from network.types import Group, Network
from search.plan import LEAST, Settings

__all__ = ["group_options", "width_options"]

MOST_OPTIONS = 32

Value = TypeVar("Value")


def group_options(net: Network, settings: Settings) -> dict[str, tuple[int, ...]]:
    """Every group's widths, ascending, the full one last. Raises InputError for a pattern that matches nothing."""
    _check_patterns(net, settings)
    return {group.name: _options(group, settings) for group in net.groups}


def width_options(width: int, step: int, most: int | None = None, min_fraction: float = 0.1) -> tuple[int, ...]:
    """At most `most` widths up to the full one, ascending, multiples of `step`, none below `min_fraction · width`.

    Without `most`, up to 32 that suit hardware: multiples of 8 from 64 channels up, of an eighth of the width below.
    The full width is always one of them.
    """
    preferred = 1 if most else max(1, 2 ** int(math.log2(min(8.0, max(1.0, width / 8)))))
    most = most or MOST_OPTIONS
    lowest = max(step, math.ceil(min_fraction * width))
    unit = step * math.ceil(preferred / step)
    while len(widths := {*range(-(-lowest // unit) * unit, width, unit), width}) > most:
        unit += step
    return tuple(sorted(widths))


def _options(group: Group, settings: Settings) -> tuple[int, ...]:
    made, touched = [group.name, *group.producers], [group.name, *group.producers, *group.consumers]
    if _any(settings.keep, made) or _any(settings.frozen, touched):
        return (group.width,)
    step = _last(settings.multiple_of, made, 1)
    least = _last(settings.min_width, made, 0.0)
    widths = width_options(group.width, step, settings.options, least)
    return (0, *widths) if settings.removal and group.removable and least <= LEAST else widths


def _last(rules: Mapping[str, Value], names: Iterable[str], default: Value) -> Value:
    """The value of the last rule whose pattern matches one of the names."""
    names = list(names)
    return [default, *(value for pattern, value in rules.items() if _any([pattern], names))][-1]


def _any(patterns: Iterable[str], names: Iterable[str]) -> bool:
    places = [place for name in names for place in _places(name)]
    return any(fnmatchcase(place, pattern) for pattern in patterns for place in places)


def _places(name: str) -> Iterator[str]:
    """layer1.0.conv → layer1.0.conv, layer1.0, layer1: a module's name stands for all that is in it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _check_patterns(net: Network, settings: Settings) -> None:
    names = {layer.module for layer in net.layers}
    for group in net.groups:
        names |= {group.name, *group.producers, *group.consumers}
    for pattern in (*settings.keep, *settings.frozen, *settings.min_width, *settings.multiple_of):
        if pattern != "*" and not _any([pattern], names):
            raise InputError(f"nothing is called {pattern!r}; `python -m network` lists modules and channel groups")
