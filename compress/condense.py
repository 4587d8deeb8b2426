"""First stage: train the dense network until the channels that the plan gives up carry nothing.

    minimise  L(W)   subject to   Σ_g ρ_g Σ_{c ∉ keep_g} ‖W_g[c]‖ ≤ r(t),      r(t) falling from the norm at hand to 0

W_g[c] are all coupled slices of channel c together (a convolution's filter, its norm's scale and shift, what the
consumers read), ρ_g the milliseconds that one channel of the group costs, normalised to mean 1. The constraint is the
ramped penalty λ(t) Σ ρ ‖·‖ with λ chosen at each step: projecting onto the ball is the group soft threshold
n ← max(0, n - λρ), so weights reach zero exactly instead of hovering about it, in however few steps there are.
Projection onto the weighted l1 ball: Duchi et al., ICML 2008; group norms: Yuan & Lin, JRSS B 2006; condensing before
pruning: Shah & Bharaj, BMVC 2022 (arXiv 2203.10363), and US 2023/0289609 A1 for the filter-wise l1 form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from network.types import Group, Keep, Network

__all__ = ["MASS_TOLERANCE", "RAMP", "CondensationReport", "Condenser", "costs_per_channel", "threshold"]

RAMP = 0.8
"""Share of the stage in which the mass falls; in the rest the survivors settle without the others."""

FLOOR = 1e-12
"""A channel's norm ends at this share of its start, not at 0: under weight norm a zero direction is 0/0."""

MASS_TOLERANCE = 1e-6
"""Condensed means: at most this share of the given-up channels' norm is left."""


@dataclass(frozen=True, slots=True)
class CondensationReport:
    """What condensation left outside the plan, as a share of its mass at the start, and the last threshold λ."""

    mass_left: float
    threshold: float
    channels: int

    @property
    def reached(self) -> bool:
        """Whether the mass is below tolerance."""
        return self.mass_left <= MASS_TOLERANCE


class Slices:
    """The coupled slices of one group's given-up channels.

    Sizes are the norms of whole channels, (R,), or, with `entries`, the absolute values of all E entries, (E,).
    """

    def __init__(self, group: Group, removed: np.ndarray, parameters: Mapping[str, Tensor], *, entries: bool):
        self.removed, self._entries = removed, entries
        seen: set[tuple[int, int, bytes]] = set()
        self._parts: list[tuple[Tensor, int, Tensor]] = []
        for member in group.members:
            parameter = parameters.get(member.parameter)
            key = (id(parameter), member.dim, member.index.tobytes())
            if parameter is not None and parameter.is_floating_point() and key not in seen:
                seen.add(key)
                positions = torch.from_numpy(np.asarray(member.index)[removed].reshape(-1)).long()
                self._parts.append((parameter, member.dim, positions.to(parameter.device)))

    def sizes(self) -> Tensor:
        """How much each channel, or each entry, carries now; float64."""
        rows = [self._rows(*part) for part in self._parts]
        if self._entries:
            return torch.cat([r.abs().flatten() for r in rows]).double().cpu()
        return torch.stack([r.double().square().sum(1).cpu() for r in rows]).sum(0).sqrt()

    def scale(self, factors: Tensor) -> None:
        """Multiply each channel's slices, or each entry, by its factor; factors has the shape of `sizes`."""
        for parameter, dim, positions in self._parts:
            rows = self._rows(parameter, dim, positions)
            if self._entries:
                mine, factors = factors[: rows.numel()].reshape(rows.shape), factors[rows.numel() :]
            else:
                mine = factors.reshape(-1, 1)
            shape = parameter.movedim(dim, 0).index_select(0, positions).shape
            scaled = (rows * mine.to(rows)).reshape(shape).movedim(0, dim)
            parameter.data.index_copy_(dim, positions, scaled)

    def _rows(self, parameter: Tensor, dim: int, positions: Tensor) -> Tensor:
        """All that belongs to each channel, (R, E/R)."""
        return parameter.detach().movedim(dim, 0).index_select(0, positions).reshape(len(self.removed), -1)


class Condenser:
    """Keeps a network's given-up channels within the falling ball; `after_step` is what the trainer calls.

    model: the dense network, at the weights that the ramp starts from; keep: the plan's channels; costs: ρ per group;
    entries: threshold single weights instead of channels, which is the plain l1 norm.
    """

    def __init__(
        self, model: nn.Module, net: Network, keep: Keep, *, costs: Mapping[str, float], entries: bool = False
    ):
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._slices: list[Slices] = []
        self._costs: list[float] = []
        for group in net.groups:
            removed = np.setdiff1d(np.arange(group.width), np.asarray(keep.get(group.name, range(group.width))))
            if len(removed):
                self._slices.append(Slices(group, removed, parameters, entries=entries))
                self._costs.append(costs.get(group.name, 1.0))
        sizes = [part.sizes() for part in self._slices]
        self._mass = self._weigh(sizes)
        self._floors = [FLOOR * float(size.mean()) for size in sizes]
        self.threshold = 0.0

    @property
    def channels(self) -> int:
        """How many channels are given up."""
        return sum(len(part.removed) for part in self._slices)

    def after_step(self, progress: float) -> None:
        """Project onto the ball of this moment; `progress` is the share of the stage that is done."""
        if not self._slices:
            return
        sizes = [part.sizes() for part in self._slices]
        costs = torch.cat([torch.full_like(size, cost) for size, cost in zip(sizes, self._costs, strict=True)])
        self.threshold = threshold(torch.cat(sizes), costs, max(0.0, 1 - progress / RAMP) * self._mass)
        for part, size, cost, floor in zip(self._slices, sizes, self._costs, self._floors, strict=True):
            target = torch.maximum(size - self.threshold * cost, size.clamp_max(floor))
            part.scale(target / size.clamp_min(1e-300))

    def report(self) -> CondensationReport:
        """The mass that is left now, as a share of the start."""
        left = self._weigh([part.sizes() for part in self._slices])
        return CondensationReport(left / self._mass if self._mass else 0.0, self.threshold, self.channels)

    def _weigh(self, sizes: list[Tensor]) -> float:
        return sum(cost * float(size.sum()) for cost, size in zip(self._costs, sizes, strict=True))


def threshold(sizes: Tensor, costs: Tensor, budget: float) -> float:
    """The least λ ≥ 0 with Σ_i ρ_i max(0, n_i - λ ρ_i) ≤ budget.

    sizes n ≥ 0 and costs ρ > 0: (N,), float64; budget ≥ 0. Duchi et al., ICML 2008, figure 1, with weights.
    """
    if float((sizes * costs).sum()) <= budget:
        return 0.0
    breakpoints, order = (sizes / costs).sort(descending=True)
    n, rho = sizes[order], costs[order]
    candidates = ((n * rho).cumsum(0) - budget) / rho.square().cumsum(0)
    active = int((breakpoints > candidates).nonzero().max()) if bool((breakpoints > candidates).any()) else 0
    return max(0.0, float(candidates[active]))


def costs_per_channel(plan_layers: Mapping[str, float], net: Network) -> dict[str, float]:
    """ρ_g: the milliseconds that a channel of each group costs, relative to the groups' mean, within [1/4, 4].

    plan_layers: layer name → ms of the full network. A layer counts for every group that its input or its output has.
    """
    total = dict.fromkeys(net.widths, 0.0)
    for layer in net.layers:
        for group in {*layer.c_in.groups, *layer.c_out.groups}:
            total[group] += plan_layers.get(layer.name, 0.0)
    per_channel = {group: ms / net.widths[group] for group, ms in total.items()}
    mean = sum(per_channel.values()) / max(1, len(per_channel))
    return {group: min(4.0, max(0.25, ms / mean)) if mean > 0 else 1.0 for group, ms in per_channel.items()}
