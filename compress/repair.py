"""Third stage: refit what read the removed channels, in closed form, so that its outputs are the old ones again.

For each convolution (group by group) or linear layer with inputs in a cut group, in execution order, on sampled output
positions:

    minimise over Δ   ‖ R - X Δ ‖²  +  α Σ_i (XᵀX)_ii ‖Δ_i‖²

X are the inputs that the narrow network gives the layer now, earlier layers already refitted; R is the dense network's
output of the same layer, restricted to the surviving output channels, minus the narrow one's. Where an output is added
to something, as at the end of a residual branch, R is what the sum lacks, so that a branch mends what those before it
lost; but not through an instance norm, which undoes any scale. The ridge pulls the update, not the weights, to zero.
α is the best of RIDGES on held-out items; an update that does not lower the held-out error is dropped. Only the Gram
matrices are kept, so memory is bounded by the widest layer.

Layers that read no cut group stay as they are, though what comes before them has changed: a fit to inputs with errors
shrinks what it fits, and where nothing was removed that costs more than it brings (docs/notes/2026-11-27-quality.md).
What read a removed group gives a constant: what the dense network's layer gives on average.
Reconstruction after channel selection, and of sums: He et al., ICCV 2017, eq. 5 and section 3.3.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from compress.batches import Batch, forward
from network.modes import evaluating
from network.narrowing import positions, standing
from network.observing import LayerCall, Observer, Sum, sample_rows
from network.refitting import add_update, best_ridge, fill_constants, portions
from network.removal import remains_of
from network.types import BIAS, Keep, Network, widths_of

__all__ = ["RIDGES", "Refit", "repair"]

RIDGES = (1e-10, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LARGEST = 6144
"""Inputs × kernel positions beyond which a Gram matrix would cost more than the repair is worth; those of a grouped
layer count together."""

MOST_ROWS = 16384
"""Sampled output positions per layer, at most."""

LEAST_ITEMS = 24
"""Inputs that every layer is fitted on at least, however many positions one of them has."""

HELD = 4
"""One batch in so many only judges."""

LEAST_SLOPE = 1e-2
"""Of a layer's usual slope: a channel that reaches a sum with less mends nothing there."""

TARGET_BYTES = 256 * 2**20
"""The dense network's sampled outputs are held for as many layers at once as fit in here."""


Key = tuple[str, int, int]
"""Layer, batch, and which of the layer's calls in that batch."""


@dataclass(frozen=True, slots=True)
class Refit:
    """One layer's repair: held-out squared errors relative to the target's, and the ridge; None: kept as cut."""

    layer: str
    before: float
    after: float
    ridge: float | None


@dataclass(slots=True)
class Normal:
    """Streamed normal equations of each of G groups: XᵀX (G, d, d), XᵀR (G, d, c_out), Σ R², Σ Y², float64."""

    gram: Tensor
    cross: Tensor
    residual: float = 0.0
    target: float = 0.0

    @staticmethod
    def zeros(groups: int, inputs: int, outputs: int) -> Normal:
        return Normal(
            torch.zeros(groups, inputs, inputs, dtype=torch.float64),
            torch.zeros(groups, inputs, outputs, dtype=torch.float64),
        )

    def add(self, x: Tensor, residual: Tensor, target: Tensor) -> None:
        """x: (G, P, d); residual, target: (P, G · c_out)."""
        self.gram += (x.mT @ x).double().cpu()
        self.cross += (x.mT @ _by_group(residual, len(x))).double().cpu()
        self.residual += float(residual.double().square().sum())
        self.target += float((target - target.mean(0)).double().square().sum())


def _by_group(rows: Tensor, groups: int) -> Tensor:
    """(P, G · n) → (G, P, n)."""
    return rows.unflatten(1, (groups, -1)).transpose(0, 1)


class Enough(Exception):
    """Ends a forward pass once the layer in question has been seen."""


class Watch:
    """Runs batches through a network and hands on each call of some layers, and what some of these are added to.

    use(key, call); add(key, sum), of the layers `summed` alone. With `events`, forward passes end at that many of both.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        use: Callable[[Key, LayerCall], None],
        add: Callable[[Key, Sum], None],
        summed: Container[str],
        events: int = 0,
    ):
        named = dict(model.named_parameters(remove_duplicate=False))
        self._weights = {name: named[name] for name in layers}
        self._model, self._use, self._add, self._summed, self._limit = model, use, add, summed, events
        self.batch, self._calls, self.events = 0, Counter[str](), Counter[str]()

    def run(self, batches: Sequence[Batch]) -> None:
        for self.batch, (inputs, _) in enumerate(batches):
            self._calls, self.events = Counter(), Counter()
            with suppress(Enough), Observer(self._weights, self._take, self._added):
                forward(self._model, inputs)

    def _take(self, name: str, call: LayerCall) -> Key:
        key = name, self.batch, self._calls[name]
        self._use(key, call)
        self._calls[name] += 1
        self._count(name)
        return key

    def _added(self, found: Sum) -> None:
        if found.taken[0] in self._summed:
            self._add(found.taken, found)
            self._count(found.taken[0])

    def _count(self, name: str) -> None:
        self.events[name] += 1
        if self.events.total() == self._limit:
            raise Enough


def repair(narrow: nn.Module, dense: nn.Module, net: Network, keep: Keep, batches: Sequence[Batch]) -> list[Refit]:
    """Refit, in place, every layer of `narrow` that reads a cut group, towards what the same layer of `dense` gives.

    batches: plain training batches, of which one in HELD only judges; a layer takes as many of them as give it enough
    positions. Layers whose weight is computed (weight norm) and layers beyond LARGEST inputs stay as they are; of a
    quantised layer it is the weight before it is rounded that is refitted.
    Returns one Refit per layer.
    """
    if len(batches) < 2:
        return []
    fill_constants(narrow, net, keep, _means(dense, net, keep, batches))
    layers, summed = _layers(narrow, net, keep, batches)
    reports: list[Refit] = []
    with (
        torch.no_grad(),
        evaluating(narrow),
        evaluating(dense),
        tqdm(total=len(layers), desc="repair", leave=False) as bar,
    ):
        for chunk in _chunks(list(layers), narrow):
            enough = {name: layers[name] for name in chunk}
            targets, events = _targets(dense, net, keep, enough, summed, batches)
            for name in chunk:
                reports.append(_refit(narrow, name, targets, summed, events[name], batches[: layers[name]]))
                bar.update()
    return reports


def _means(dense: nn.Module, net: Network, keep: Keep, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """What the layers that read removed groups give on average, in the dense network: {weight: (C_out,)}."""
    constants = [f"{path}.weight" for path, word in remains_of(net, widths_of(keep)).items() if word == BIAS]
    sums: dict[str, Tensor] = {}
    calls = Counter[str]()

    def take(key: Key, call: LayerCall) -> None:
        sums[key[0]] = sums.get(key[0], 0) + call.mean
        calls[key[0]] += 1

    if constants:
        with torch.no_grad(), evaluating(dense):
            Watch(dense, constants, take, lambda key, found: None, ()).run(batches)
    return {name: total / calls[name] for name, total in sums.items()}


def _layers(narrow: nn.Module, net: Network, keep: Keep, batches: Sequence[Batch]) -> tuple[dict[str, int], set[str]]:
    """Weights to refit, in the order in which a forward pass first uses them, and how many batches each takes; and
    those of them that also mend what their outputs are added to.
    """
    cut = [g for g in net.groups if len(keep.get(g.name, range(g.width))) < g.width]
    readers = {m.parameter for g in cut for m in g.members if m.role == "consumer"}
    # a grouped layer may lose whole groups; one that is touched by removed groups alone does nothing any more
    touched = {m.parameter for g in cut if len(keep[g.name]) for m in g.members}
    weights = {n: p for n, p in narrow.named_parameters(remove_duplicate=False) if n in touched and p.dim() > 1}
    least = max(2, min(HELD, len(batches)), -(-LEAST_ITEMS // len(batches[0][0][0])))
    enough: dict[str, int] = {}
    summed: set[str] = set()

    def note(key: Key, call: LayerCall) -> None:
        reads = key[0] in readers or call.groups > 1
        size = call.groups * _inputs(weights[key[0]], call) ** 2
        if reads and call.x.dim() >= call.spatial + 2 and size <= LARGEST**2:
            wants = -(-_row_count(weights[key[0]]) // call.positions)
            enough[key[0]] = min(len(batches), max(least, wants))

    with torch.no_grad(), evaluating(narrow):
        Watch(narrow, list(weights), note, lambda key, _: summed.add(key[0]), weights).run(batches[:1])
    return enough, summed & enough.keys()


def _inputs(weight: Tensor, call: LayerCall) -> int:
    """Inputs × kernel positions of one group's outputs."""
    return (weight.shape[0] // call.groups if call.transposed else weight.shape[1]) * prod(call.kernel)


def _row_count(weight: Tensor) -> int:
    """Positions to sample for a layer: several per unknown of one output, within reason."""
    return min(MOST_ROWS, max(MOST_ROWS // 8, 6 * weight[0].numel()))


def _chunks(layers: Sequence[str], narrow: nn.Module) -> Iterator[list[str]]:
    """Consecutive layers whose targets fit into memory together."""
    weights = dict(narrow.named_parameters(remove_duplicate=False))
    return portions(layers, lambda name: 4 * _row_count(weights[name]) * max(weights[name].shape[:2]), TARGET_BYTES)


def _positions(key: Key, rows: int, call: LayerCall) -> Tensor:
    """Random output positions, the same for the dense and the narrow network."""
    total = call.positions
    generator = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
    return torch.randint(total, (min(rows, total),), generator=generator).to(call.y.device)


@dataclass(slots=True)
class Target:
    """What one call is to give at some positions: (P, c_out).

    channels: which of the dense layer's these are. inverse: where the call's output is added to something, one over
    Sum.slope, (c_out,); `y` then counts the rest of the sum as if that came from the call too: y + inverse · other.
    """

    positions: Tensor
    channels: Tensor
    y: Tensor
    inverse: Tensor | None = None


def _targets(
    dense: nn.Module,
    net: Network,
    keep: Keep,
    layers: Mapping[str, int],
    summed: Container[str],
    batches: Sequence[Batch],
) -> tuple[dict[Key, Target], Counter[str]]:
    """The dense network's surviving outputs at sampled positions, and each layer's calls and sums per pass."""
    weights = dict(dense.named_parameters(remove_duplicate=False))
    alive = positions(net, standing(keep))
    found: dict[Key, Target] = {}

    def take(key: Key, call: LayerCall) -> None:
        if key[1] >= layers[key[0]]:
            return
        at = _positions(key, -(-_row_count(weights[key[0]]) // layers[key[0]]), call)
        channels = _outputs(weights[key[0]], call, alive.get(key[0], {})).to(at.device)
        found[key] = Target(at, channels, sample_rows(call, at)[1][:, channels])

    def add(key: Key, total: Sum) -> None:
        target = found.get(key)
        if target is not None and target.inverse is None:
            usual = total.slope.square().mean().sqrt()
            slope = total.slope[target.channels]
            target.inverse = torch.where(slope.abs() > LEAST_SLOPE * usual, 1 / slope, 0.0)
            target.y = target.y + target.inverse * _rows(total.other, target.positions)[:, target.channels]

    watch = Watch(dense, list(layers), take, add, summed)
    watch.run(batches[: max(layers.values())])
    return found, watch.events


def _rows(x: Tensor, at: Tensor) -> Tensor:
    """(…, C) → (P, C) at flat indices over all leading axes."""
    return x[torch.unravel_index(at, x.shape[:-1])]


def _outputs(weight: Tensor, call: LayerCall, alive: Mapping[int, np.ndarray]) -> Tensor:
    """The output channels of a dense layer that are left, given what is left of the dimensions of its weight."""
    if not call.transposed:
        return torch.from_numpy(alive.get(0, np.arange(len(weight))))
    inputs, outputs = len(weight) // call.groups, weight.shape[1]  # of one group
    groups = np.unique(alive.get(0, np.arange(len(weight))) // inputs)
    return torch.from_numpy((groups[:, None] * outputs + alive.get(1, np.arange(outputs))).flatten())


def _refit(
    narrow: nn.Module,
    name: str,
    targets: Mapping[Key, Target],
    summed: Container[str],
    events: int,
    batches: Sequence[Batch],
) -> Refit:
    """Gather one layer's normal equations from the narrow network as it is now, solve, and update it in place."""
    weight = dict(narrow.named_parameters(remove_duplicate=False))[name]
    first: list[LayerCall] = []
    sides: list[Normal] = []
    waiting: dict[Key, tuple[Tensor, Tensor]] = {}
    held = min(HELD, len(batches))

    def take(key: Key, call: LayerCall) -> None:
        x, y = sample_rows(call, targets[key].positions)
        x = _by_group(x, call.groups)
        if call.bias is not None:
            x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        if not sides:
            first.append(call)
            sides.extend(Normal.zeros(call.groups, x.shape[-1], y.shape[1] // call.groups) for _ in range(2))
        waiting[key] = x, y
        if targets[key].inverse is None:
            learn(key, targets[key].y)

    def add(key: Key, total: Sum) -> None:
        target = targets[key]
        if key in waiting and target.inverse is not None:
            learn(key, target.y - target.inverse * _rows(total.other, target.positions))

    def learn(key: Key, wanted: Tensor) -> None:
        x, y = waiting.pop(key)
        sides[key[1] % held == held - 1].add(x, wanted - y, wanted)

    Watch(narrow, [name], take, add, summed, events).run(batches)
    fit, judge = sides
    ridge, update, change = best_ridge(RIDGES, fit.gram, fit.cross, judge.gram, judge.cross)
    after = judge.residual + change
    scale = max(judge.target, 1e-300)
    if update is None or not after < judge.residual:
        return Refit(name, judge.residual / scale, judge.residual / scale, None)
    call = first[0]
    add_update(weight, call.bias, update, kernel=prod(call.kernel), transposed=call.transposed)
    return Refit(name, judge.residual / scale, max(0.0, after) / scale, ridge)
