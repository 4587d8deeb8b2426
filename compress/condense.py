"""First stage: train the dense network until all but as many channels as the plan keeps carry nothing.

    minimise  L(W)   subject to   Σ_g ρ_g Σ_{c ∉ S_g(W)} ‖W_g[c]‖ ≤ r(t),      r(t) falling from the norm at hand to 0

W_g[c] are all coupled slices of channel c together (a convolution's filter, its norm's scale and shift, what the
consumers read), ρ_g the milliseconds that one channel of the group costs, normalised to mean 1. The constraint is the
ramped penalty λ(t) Σ ρ ‖·‖ with λ chosen at each step: projecting onto the ball is the group soft threshold
n ← max(0, n - λρ), so weights reach zero exactly instead of hovering about it, in however few steps there are.

The plan says how many channels a group keeps; which, S_g, the training decides: those of the largest a_c (n_c / n_c⁰)²,
with a the plan's importance and n⁰ the norms at the start. A gate's Taylor term is gradient times activation, squared,
and shrinks so with its channel. A channel that training makes grow comes back in the place of one that it let fade.

Projection onto the weighted l1 ball: Duchi et al., ICML 2008; group norms: Yuan & Lin, JRSS B 2006; condensing before
pruning: Shah & Bharaj, BMVC 2022 (arXiv 2203.10363), and US 2023/0289609 A1 for the filter-wise l1 form; channels that
may come back: He et al., "Soft filter pruning", IJCAI 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from network.types import ZERO, Group, Network

__all__ = ["MASS_TOLERANCE", "RAMP", "CondensationReport", "Condenser", "costs_per_channel", "fading", "threshold"]

RAMP = 0.8
"""Share of the stage in which the mass falls; in the rest the survivors settle without the others."""

FLOOR = 1e-12
"""A channel's norm ends at this share of its start, not at 0: under weight norm a zero direction is 0/0."""

FAINT = 1e-2
"""Channels below this share of their group's mean norm count as this large at the start: what is next to nothing must
not seem to grow a hundredfold."""

GONE = 1e-6
"""A channel with less than this share of its norm at the start is no survivor while another has more."""

MASS_TOLERANCE = 1e-6
"""Condensed means: at most this share of the given-up channels' norm is left."""


@dataclass(frozen=True, slots=True)
class CondensationReport:
    """What is left in the given-up channels, as a share of its mass at the start, the last threshold λ, how many
    channels are given up, and how many of those that the plan gave up are not."""

    mass_left: float
    threshold: float
    channels: int
    returned: int

    @property
    def reached(self) -> bool:
        """Whether the mass is below tolerance."""
        return self.mass_left <= MASS_TOLERANCE


def fading(net: Network, widths: Mapping[str, int]) -> list[Group]:
    """The groups whose channels outside these widths can fade away.

    One that goes whole before an instance norm cannot: the norm scales up whatever is left, and in the end noise.
    """
    narrowed = [group for group in net.groups if widths.get(group.name, group.width) < group.width]
    return [group for group in narrowed if widths[group.name] or ZERO not in dict(group.remains).values()]


class Slices:
    """The coupled slices of one group's channels: of each, what its parameters hold along its index."""

    def __init__(self, group: Group, parameters: Mapping[str, Tensor]):
        self.name, self.width = group.name, group.width
        seen: set[tuple[int, int, bytes]] = set()
        self._parts: list[tuple[Tensor, int, Tensor]] = []
        for member in group.members:
            parameter = parameters.get(member.parameter)
            key = (id(parameter), member.dim, member.index.tobytes())
            if parameter is not None and parameter.is_floating_point() and key not in seen:
                seen.add(key)
                index = torch.from_numpy(np.asarray(member.index).reshape(self.width, -1)).long()
                self._parts.append((parameter, member.dim, index.to(parameter.device)))

    def norms(self) -> Tensor:
        """How much each channel carries now: (C,), float64."""
        rows = [self._rows(part, torch.arange(self.width)) for part in self._parts]
        return torch.stack([r.double().square().sum(1).cpu() for r in rows]).sum(0).sqrt()

    def entries(self, channels: Tensor) -> Tensor:
        """The absolute values of all that these channels hold: (E,), float64."""
        return torch.cat([self._rows(part, channels).abs().flatten() for part in self._parts]).double().cpu()

    def scale(self, channels: Tensor, factors: Tensor) -> None:
        """Multiply each channel's slices, or each entry, by its factor: (R,) or (E,)."""
        for part in self._parts:
            parameter, dim, index = part
            rows = self._rows(part, channels)
            if len(factors) > len(channels):
                mine, factors = factors[: rows.numel()].reshape(rows.shape), factors[rows.numel() :]
            else:
                mine = factors.reshape(-1, 1)
            positions = index[channels].reshape(-1)
            shape = parameter.movedim(dim, 0).index_select(0, positions).shape
            scaled = (rows * mine.to(rows)).reshape(shape).movedim(0, dim)
            parameter.data.index_copy_(dim, positions, scaled)

    def _rows(self, part: tuple[Tensor, int, Tensor], channels: Tensor) -> Tensor:
        """All that belongs to each channel, (R, E/R)."""
        parameter, dim, index = part
        positions = index[channels].reshape(-1)
        return parameter.detach().movedim(dim, 0).index_select(0, positions).reshape(len(channels), -1)


class Condenser:
    """Keeps the channels that a network gives up within the falling ball; `after_step` is what the trainer calls.

    model: what is trained; original: the same network with the weights that the ramp starts from; widths: how many
    channels each group keeps; importance: (C,) per group, which decides at the start; costs: ρ per group; entries:
    threshold single weights instead of channels, which is the plain l1 norm. Nothing but the weights is state, so a
    condenser may be made anew at any step.
    """

    def __init__(
        self,
        model: nn.Module,
        original: nn.Module,
        net: Network,
        widths: Mapping[str, int],
        importance: Mapping[str, Sequence[float]],
        *,
        costs: Mapping[str, float],
        entries: bool = False,
    ):
        narrowed = fading(net, widths)
        self._slices = _slices(model, narrowed)
        self._widths, self._entries = [widths[group.name] for group in narrowed], entries
        self._importance = [torch.tensor(importance[group.name], dtype=torch.float64) for group in narrowed]
        self._costs = [costs.get(group.name, 1.0) for group in narrowed]
        first = _slices(original, narrowed)
        norms = [part.norms() for part in first]
        self._start = [each.clamp_min(FAINT * float(each.mean())) for each in norms]
        self._given_up_first = self._given_up(self._start)
        sizes = self._sizes(first, norms, self._given_up_first)
        self._mass = self._weigh(sizes)
        self._floors = [FLOOR * float(size.mean()) for size in sizes]
        self.threshold = 0.0

    @property
    def keep(self) -> dict[str, tuple[int, ...]]:
        """The channels of each narrowed group that survive, as things stand."""
        chosen = zip(self._slices, self._given_up(self._norms()), strict=True)
        return {part.name: tuple(np.setdiff1d(range(part.width), gone.numpy()).tolist()) for part, gone in chosen}

    def after_step(self, progress: float) -> None:
        """Project onto the ball of this moment; `progress` is the share of the stage that is done."""
        if not self._slices:
            return
        given_up, sizes = self._now()
        costs = torch.cat([torch.full_like(size, cost) for size, cost in zip(sizes, self._costs, strict=True)])
        self.threshold = threshold(torch.cat(sizes), costs, max(0.0, 1 - progress / RAMP) * self._mass)
        for part, gone, size, cost, floor in zip(self._slices, given_up, sizes, self._costs, self._floors, strict=True):
            target = torch.maximum(size - self.threshold * cost, size.clamp_max(floor))
            part.scale(gone, target / size.clamp_min(1e-300))

    def report(self) -> CondensationReport:
        """The mass that is left now, as a share of the start."""
        given_up, sizes = self._now()
        pairs = zip(self._given_up_first, given_up, strict=True)
        back = sum(len(np.setdiff1d(first.numpy(), now.numpy())) for first, now in pairs)
        mass = self._weigh(sizes) / self._mass if self._mass else 0.0
        return CondensationReport(mass, self.threshold, sum(map(len, given_up)), back)

    def _now(self) -> tuple[list[Tensor], list[Tensor]]:
        """The channels of each group outside its survivors, and the sizes of what they hold, as things stand."""
        norms = self._norms()
        given_up = self._given_up(norms)
        return given_up, self._sizes(self._slices, norms, given_up)

    def _norms(self) -> list[Tensor]:
        return [part.norms() for part in self._slices]

    def _given_up(self, norms: Sequence[Tensor]) -> list[Tensor]:
        """The channels of each group outside its survivors, ascending. Of equals the first survive."""
        found = zip(self._importance, norms, self._start, self._widths, strict=True)
        return [_outside(importance, now / start, width) for importance, now, start, width in found]

    def _sizes(self, slices: Sequence[Slices], norms: Sequence[Tensor], given_up: Sequence[Tensor]) -> list[Tensor]:
        parts = zip(slices, norms, given_up, strict=True)
        return [part.entries(gone) if self._entries else norm[gone] for part, norm, gone in parts]

    def _weigh(self, sizes: Sequence[Tensor]) -> float:
        return sum(cost * float(size.sum()) for cost, size in zip(self._costs, sizes, strict=True))


def _slices(model: nn.Module, groups: Sequence[Group]) -> list[Slices]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [Slices(group, parameters) for group in groups]


def _outside(importance: Tensor, shares: Tensor, width: int) -> Tensor:
    """The channels past the first `width` by importance · share², then by share, so that nothing counts for less than
    what counts for nothing but is there."""
    there = torch.where(shares < GONE, 0.0, shares)
    order = np.lexsort((-shares.numpy(), -(importance * there.square()).numpy()))
    return torch.from_numpy(np.sort(order[width:]))


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
