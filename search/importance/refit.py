"""What a least-squares refit of its readers repairs when a group is narrowed alone, from the original's inputs only.

    W_K + Δ,   Δ = (G_KK + α D_K)⁻¹ G_KR W_R,   G = XᵀX

X are a layer's inputs in the original network (a column of ones for its bias), K the kept and R the removed columns,
D the diagonal of G. As only this group is cut, the layer reads X_K afterwards, wherever what lies between works channel
by channel; its output was X W. α is the best of RIDGES on rows that took no part. Reconstruction after channel
selection: He et al., ICCV 2017, eq. 5. Of a group that is removed, readers become constants: their mean output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from network.modes import evaluating
from network.narrowing import positions
from network.observing import LayerCall, Observer, sample_rows
from network.refitting import add_update, best_ridge, fill_constants, portions
from network.types import BIAS, Group, Keep, Network
from search.importance.data import forward

__all__ = ["Readers", "group_portions"]

RIDGES = (1e-6, 1e-4, 1e-2)
LARGEST = 4608
"""Inputs × kernel positions beyond which a layer is left as it was cut."""

ROWS = (2048, 16384)
"""Sampled output positions per layer, at least (where there are that many) and at most."""

MOST_BYTES = 1 << 30
"""Of Gram matrices that are held at once, where one group's do not need more."""

ROWS_PER_INPUT = 6
HELD = 4
"""One row in so many only judges."""


@dataclass(slots=True)
class _Reader:
    """One layer that reads groups: its Gram matrices (d, d) of the rows that fit and of those that judge."""

    transposed: bool
    kernel: int
    bias: str | None
    fit: Tensor
    held: Tensor


class Readers:
    """The convolutions and linear layers that read these groups, with what they read. Grouped layers are left out."""

    def __init__(self, model: nn.Module, net: Network, groups: Sequence[Group], inputs: Sequence[Any]):
        self._net, self._count = net, len(inputs)
        self._original = dict(model.named_parameters(remove_duplicate=False))
        self._names = {id(tensor): name for name, tensor in self._original.items()}
        weights = {name: self._original[name] for group in groups for name in _weights(group, self._original)}
        self._readers: dict[str, _Reader] = {}
        self._constants = {f"{path}.weight" for group in groups for path, word in group.remains if word == BIAS}
        self._means: dict[str, Tensor] = {}
        self._calls: Counter[str] = Counter()
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._random = torch.Generator().manual_seed(0)
        with torch.no_grad(), evaluating(model), Observer(weights, self._take):
            for each in inputs:
                forward(model, each, device)

    def refit(self, narrow: nn.Module, keep: Keep) -> None:
        """Refit, in place, what reads the groups that `narrow` was cut in; keep: as `narrow` was given it."""
        fill_constants(narrow, self._net, keep, self._means)
        named = dict(narrow.named_parameters(remove_duplicate=False))
        for name, cuts in positions(self._net, keep).items():
            reader = self._readers.get(name)
            if reader is not None and name in named and (0 if reader.transposed else 1) in cuts:
                self._refit(name, reader, cuts, named)

    def _take(self, name: str, call: LayerCall) -> None:
        """Add one call's rows to the layer's Gram matrices, and its mean where that may be all that remains of it."""
        if name in self._constants:
            self._calls[name] += 1  # a layer may be called several times for one input
            before = self._means.get(name, torch.zeros_like(call.mean))
            self._means[name] = before + (call.mean - before) / self._calls[name]
        weight = self._original[name]
        inputs = weight.shape[0 if call.transposed else 1] * prod(call.kernel)
        if call.groups != 1 or call.x.dim() < call.spatial + 2 or inputs > LARGEST:
            return
        wanted = min(ROWS[1], max(ROWS[0], ROWS_PER_INPUT * inputs)) // self._count
        at = torch.randint(call.positions, (min(call.positions, wanted),), generator=self._random).to(call.y.device)
        x = sample_rows(call, at)[0]
        bias = None if call.bias is None else self._names.get(id(call.bias))
        if bias is not None:
            x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        if name not in self._readers:
            zeros = (torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype) for _ in range(2))
            self._readers[name] = _Reader(call.transposed, prod(call.kernel), bias, *zeros)
        judge = torch.arange(len(x)) % HELD == HELD - 1
        for gram, rows in ((self._readers[name].fit, x[~judge]), (self._readers[name].held, x[judge])):
            gram += (rows.T @ rows).cpu()

    def _refit(self, name: str, reader: _Reader, cuts: dict[int, np.ndarray], named: dict[str, nn.Parameter]) -> None:
        read, made = (0, 1) if reader.transposed else (1, 0)
        weight = _flat(self._original[name], read, made)
        kept = (torch.from_numpy(cuts[read])[:, None] * reader.kernel + torch.arange(reader.kernel)).flatten()
        gone = torch.ones(len(weight), dtype=torch.bool)
        gone[kept] = False
        lost = weight[gone]
        if made in cuts:
            lost = lost[:, torch.from_numpy(cuts[made])]
        if reader.bias is not None:
            kept = torch.cat([kept, torch.tensor([len(weight)])])
        removed = torch.cat([gone, torch.zeros(len(reader.fit) - len(gone), dtype=torch.bool)])
        held = reader.held[kept].double()
        _, update, change = best_ridge(
            RIDGES,
            reader.fit[kept][:, kept].double(),
            reader.fit[kept][:, removed].double() @ lost,
            held[:, kept],
            held[:, removed] @ lost,
        )
        if update is not None and change < 0:
            bias = None if reader.bias is None else named[reader.bias]
            add_update(named[name], bias, update[None], kernel=reader.kernel, transposed=reader.transposed)


def group_portions(net: Network, model: nn.Module) -> Iterator[list[Group]]:
    """The groups in their order, so many at a time that what their readers read fits into memory."""
    parameters = dict(model.named_parameters(remove_duplicate=False))

    def size(group: Group) -> int:
        inputs = (parameters[name].numel() // min(parameters[name].shape[:2]) for name in _weights(group, parameters))
        return sum(2 * count**2 * 4 for count in inputs if count <= LARGEST)

    return portions(net.groups, size, MOST_BYTES)


def _weights(group: Group, parameters: Mapping[str, Tensor]) -> list[str]:
    """The parameters that read the group."""
    names = (member.parameter for member in group.members if member.role == "consumer")
    return [name for name in dict.fromkeys(names) if name in parameters and parameters[name].dim() > 1]


def _flat(weight: Tensor, read: int, made: int) -> Tensor:
    """(C_in · K, C_out), kernel position fastest, float64."""
    flat = weight.detach().double().cpu().flatten(2) if weight.dim() > 2 else weight.detach().double().cpu()[..., None]
    return flat.permute(read, 2, made).flatten(0, 1)
