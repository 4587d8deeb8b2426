"""From a network, its latency table and its importance to the search space that the solver knows. No torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from network.types import Layer, LayerSpec, Network, Width
from search.plan import Settings
from search.space import IMPORTANCE, LATENCY, Factor, SearchSpace, SumVariable, Variable, sum_variable
from search.widths import group_options

__all__ = [
    "ITEM_BYTES",
    "MACS",
    "PARAMETERS",
    "WEIGHT_BYTES",
    "Table",
    "build_space",
    "crowded",
    "milliseconds_on",
    "worth",
]

MACS = "macs"
PARAMETERS = "parameters"
WEIGHT_BYTES = "weight bytes"

ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Bytes of one activation, or of one weight, in each precision."""

MENDED = 0.5
"""Of what a removed group was worth, the share that the layers around it learn to make up for
(docs/notes/2026-11-28-removal.md)."""

Cost = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Overhead(Protocol):
    """What a network's time is beside its layers': `fixed_ms + scale · Σ layers`."""

    @property
    def fixed_ms(self) -> float: ...

    @property
    def scale(self) -> float: ...


class Named(Protocol):
    """A device, as far as the search knows one."""

    @property
    def id(self) -> str: ...


class Table(Protocol):
    """What the search needs of a latency table."""

    @property
    def device(self) -> Named:
        """Whose milliseconds they are."""
        ...

    @property
    def overhead(self) -> Overhead:
        """The correction from the layers' sum to the network's time."""
        ...

    def milliseconds(self, spec: LayerSpec, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        """A layer's milliseconds at these channel counts, elementwise; the counts broadcast."""
        ...


@dataclass(frozen=True, slots=True)
class _Axis:
    """How a channel count depends on the choice: through `name`, or not at all; `counts` (T,) are its values.

    `over_states` turns a table over the counts into one over the states of `name`, along axis 0.
    """

    name: str | None
    counts: np.ndarray
    over_states: Callable[[np.ndarray], np.ndarray] = lambda table: table


@dataclass(frozen=True, slots=True)
class _Builder:
    """Collects the factors, and the sums that they need."""

    options: Mapping[str, np.ndarray]
    of_range: np.ufunc
    sums: dict[tuple[tuple[str, int], ...], tuple[SumVariable, Callable, np.ndarray]] = field(default_factory=dict)
    factors: list[Factor] = field(default_factory=list)

    def axis(self, width: Width) -> _Axis:
        """The axis of a width: a variable's options, or the states of a sum."""
        multiplicities: defaultdict[str, int] = defaultdict(int)
        for group, multiplicity in width.terms:
            multiplicities[group] += multiplicity
        if not multiplicities:
            return _Axis(None, np.array([width.fixed]))
        if len(multiplicities) == 1:
            ((group, multiplicity),) = multiplicities.items()
            return _Axis(group, width.fixed + multiplicity * self.options[group])
        unit = math.gcd(*multiplicities.values())
        key = tuple(sorted((group, multiplicity // unit) for group, multiplicity in multiplicities.items()))
        if key not in self.sums:
            name = "sum:" + "+".join(f"{multiplicity}*{group}" for group, multiplicity in key)
            terms = tuple((group, multiplicity * self.options[group]) for group, multiplicity in key)
            self.sums[key] = sum_variable(name, terms, of_range=self.of_range)
        total, over_states, totals = self.sums[key]
        return _Axis(total.name, width.fixed + unit * totals, over_states)

    def add(self, name: str, resource: str, first: Width, second: Width, cost: Cost) -> None:
        """Add the factor of a cost that is a function of two widths."""
        a, b = self.axis(first), self.axis(second)
        axes = (a,) if a.name == b.name else (a, b)
        counts = (a.counts, b.counts) if len(axes) == 1 else (a.counts[:, None], b.counts[None, :])
        table = np.broadcast_to(cost(*counts), np.broadcast_shapes(*(count.shape for count in counts)))
        for number, axis in enumerate(axes):
            table = np.moveaxis(axis.over_states(np.moveaxis(table, number, 0)), 0, number)
        scope = tuple(axis.name for axis in axes if axis.name)
        shape = tuple(size for size, axis in zip(table.shape, axes, strict=True) if axis.name)
        self.factors.append(Factor(name, resource, scope, table.reshape(shape).astype(np.float64)))


def build_space(
    net: Network,
    table: Table,
    importance: Mapping[str, np.ndarray],
    settings: Settings | None = None,
    item_bytes: int = 4,
    others: Sequence[Table] = (),
    *,
    of_range: np.ufunc = np.maximum,
) -> SearchSpace:
    """One variable per group, its options widths; latency, importance, and what else the settings limit.

    A layer's milliseconds are a table over the groups of its input and output counts: unary if one group decides
    both, a pair if two do, over a sum variable where a concat joins several. What keeping n channels is worth says
    `worth`; where nobody reads the group any more, as another one is removed, any n is worth all. `others` are further
    devices, each a resource of its own. of_range: as of `sum_variable`. Raises TableError if a table lacks a layer or
    holds a number that cannot be a time.
    """
    settings = settings or Settings()
    options = {name: np.array(widths) for name, widths in group_options(net, settings).items()}
    builder = _Builder(options, of_range)
    kept = {group.name: worth(importance[group.name])[options[group.name]] for group in net.groups}
    builder.factors.extend(Factor(name, IMPORTANCE, (name,), worths) for name, worths in kept.items())
    for name, removed in _unread(net):
        spared = np.outer(kept[name].max() - kept[name], options[removed] == 0)
        builder.factors.append(Factor(f"{name} without {removed}", IMPORTANCE, (name, removed), spared))
    _add_latency(builder, net, table, LATENCY)
    for other in others:
        _add_latency(builder, net, other, milliseconds_on(other))
    if settings.max_macs is not None:
        for layer in net.layers:
            builder.add(layer.name, MACS, layer.c_in, layer.c_out, _macs(layer))
    if settings.max_params is not None:
        _add_elements(builder, net, PARAMETERS, buffers=False)
    if settings.max_bytes is not None:
        _add_elements(builder, net, WEIGHT_BYTES, item_bytes, buffers=True)
    if settings.max_memory is not None:
        _add_memory(builder, net, crowded(net, settings.max_memory, item_bytes), item_bytes)
    variables = tuple(Variable(name, tuple(int(width) for width in widths)) for name, widths in options.items())
    return SearchSpace(variables, tuple(builder.factors), tuple(total for total, _, _ in builder.sums.values()))


def worth(importance: np.ndarray) -> np.ndarray:
    """What a group is worth with 0, 1, … of its channels: (width + 1,), the sum of the largest; of none MENDED of all.

    importance: (width,).
    """
    kept = np.cumsum(np.sort(importance)[::-1])
    return np.concatenate([MENDED * kept[-1:], kept])


def _unread(net: Network) -> Iterator[tuple[str, str]]:
    """(group, removed): whose channels nobody reads once the other group is removed, as they make it and nothing else.

    A bottleneck's first group and its second, a gate and what it gates: one branch, which is lost once.
    """
    removable = {Width(0, ((group.name, 1),)): group.name for group in net.groups if group.removable}
    for group in net.groups:
        made = {layer.c_out for layer in net.readers(group.name)}
        if len(made) == 1 and made <= removable.keys():
            yield group.name, removable[made.pop()]


def milliseconds_on(table: Table) -> str:
    """The name of the resource that is the time on a device beside the first."""
    return f"milliseconds on {table.device.id}"


def _add_latency(builder: _Builder, net: Network, table: Table, resource: str) -> None:
    fixed_ms, scale = table.overhead.fixed_ms, table.overhead.scale
    builder.factors.append(Factor("overhead", resource, (), np.array(fixed_ms, dtype=np.float64)))
    for layer in net.layers:
        builder.add(layer.name, resource, layer.c_in, layer.c_out, _milliseconds(table, layer, scale))


def _milliseconds(table: Table, layer: Layer, scale: float) -> Cost:
    return lambda c_in, c_out: scale * table.milliseconds(layer.spec, c_in, c_out)


def _macs(layer: Layer) -> Cost:
    return lambda c_in, c_out: layer.macs_per_pair * c_in * c_out + layer.macs_per_channel * c_out


def crowded(net: Network, most: int, item_bytes: int = 4) -> dict[str, tuple[int, ...]]:
    """The moments at which the full network holds more bytes of activations than this: resource → layers held then.

    A moment whose layers are all held at another one too is left out.
    """
    held = net.held_bytes(item_bytes=item_bytes)
    moments = {
        f"activation bytes at {layer.name}": live
        for layer, live, size in zip(net.layers, net.live, held, strict=True)
        if size > most
    }
    sets = {name: frozenset(live) for name, live in moments.items()}
    return {name: live for name, live in moments.items() if not any(sets[name] < other for other in sets.values())}


def _add_memory(builder: _Builder, net: Network, moments: Mapping[str, tuple[int, ...]], item_bytes: int) -> None:
    """What is held at each moment: a constant, and a term per group."""
    for resource, live in moments.items():
        fixed, slopes = net.input_bytes(item_bytes), defaultdict[str, int](int)
        for layer in (net.layers[made] for made in live):
            fixed += net.output_bytes(layer, layer.c_out.fixed, item_bytes)
            for group, multiplicity in layer.c_out.terms:
                slopes[group] += net.output_bytes(layer, multiplicity, item_bytes)
        builder.factors.append(Factor("fixed", resource, (), np.array(fixed, dtype=np.float64)))
        for group, slope in slopes.items():
            builder.factors.append(Factor(group, resource, (group,), builder.options[group] * float(slope)))


def _add_elements(builder: _Builder, net: Network, resource: str, each: int = 1, *, buffers: bool) -> None:
    """`each` for every element of the parameters: a product of the widths of (at most two of) their dimensions; and
    of what the remains of removed groups gained.
    """
    terms: defaultdict[str, defaultdict[int, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for group in net.groups:
        for member in group.members:
            terms[member.parameter][member.dim][group.name] = member.index.shape[1]
    full = net.widths
    for name, full_shape in sorted(net.shapes(buffers=buffers).items()):
        shape = list(full_shape)
        widths = []
        # A third narrowed dimension counts whole: an upper bound, so that the limit still holds.
        for dim, groups in list(terms[name].items())[:2]:
            fixed = shape[dim] - sum(multiplicity * full[group] for group, multiplicity in groups.items())
            widths.append(Width(fixed, tuple(groups.items())))
            shape[dim] = 1
        first, second = [*widths, Width(1), Width(1)][:2]
        builder.add(name, resource, first, second, _product(each * math.prod(shape)))
    for removed, width in net.gained(buffers=buffers):
        if 0 in builder.options[removed]:
            builder.add(f"bias without {removed}", resource, Width(0, ((removed, 1),)), width, _where_none(each))


def _where_none(size: int) -> Cost:
    return lambda first, second: np.where(first == 0, second, 0) * float(size)


def _product(size: int) -> Cost:
    return lambda first, second: np.multiply(first, second, dtype=np.float64) * size
