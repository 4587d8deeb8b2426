"""Condensation by gates: every channel is read through a random gate, and training learns how often it is open.

    z = clamp(s (ζ - γ) + γ, 0, 1),   s = σ((log u - log(1 - u) + log α) / β),   u uniform
    P(z ≠ 0) = σ(log α - β log(-γ/ζ))

Hard-concrete gates: Louizos, Welling & Kingma, "Learning sparse neural networks through L0 regularization", ICLR 2018,
eq. 10 to 12. Their penalty on Σ P is a constraint here, as the mass is in `compress.condense`: after each step a shift
of its log α brings a group's expected number of open gates to what the ramp allows, which ends at the plan's width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from compress.condense import FLOOR, RAMP, Slices, fading
from network.types import Group, Network
from search.importance.data import gate_members

__all__ = ["Gated", "chance_open", "shifted"]

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
OPEN, SPREAD = 3.0, 2.0
"""log α at the start: its mean, and how far the most important channel of a group lies above the least."""

CLOSED = -30.0
BISECTIONS = 50


class Gated(nn.Module):
    """`model` with a gate on each channel of the groups that `widths` narrows, wherever a weight reads it.

    Gates are random in train mode until the ramp ends, and from then on, and in eval mode, what they are at u = 1/2.
    importance: (C,) per group; its order is that of log α at the start.
    """

    settled: Tensor

    def __init__(
        self, model: nn.Module, net: Network, widths: Mapping[str, int], importance: Mapping[str, Sequence[float]]
    ):
        super().__init__()
        self.model = model
        self._groups = fading(net, widths)
        self._widths = [widths[group.name] for group in self._groups]
        device = next(iter(model.parameters())).device
        first = [_ranks(importance[group.name]) for group in self._groups]
        self.log_alpha = nn.ParameterList([(OPEN + SPREAD * (ranks - 0.5)).to(device) for ranks in first])
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool))
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._read = [_places(group, parameters) for group in self._groups]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the network gives when its weights read every channel through its gate."""
        return functional_call(self.model, self._weights(), inputs, named)

    def _weights(self) -> dict[str, Tensor]:
        """The weights that gates scale, scaled."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        weights: dict[str, Tensor] = {}
        for log_alpha, places in zip(self.log_alpha, self._read, strict=True):
            gates = self._drawn(log_alpha)
            for name, dim, index in places:
                weight = weights.get(name, parameters[name])
                along = torch.ones(weight.shape[dim], device=gates.device, dtype=gates.dtype)
                along = along.index_put((index.reshape(-1),), gates.repeat_interleave(index.shape[1]))
                shape = [-1 if axis == dim else 1 for axis in range(weight.dim())]
                weights[name] = weight * along.reshape(shape).to(weight.dtype)
        return weights

    def after_step(self, progress: float) -> None:
        """Shift log α to what the ramp allows; `progress` is the share of the stage that is done."""
        share = min(1.0, progress / RAMP)
        for log_alpha, width in zip(self.log_alpha, self._widths, strict=True):
            allowed = len(log_alpha) - share * (len(log_alpha) - width)
            log_alpha.data.copy_(shifted(log_alpha.detach(), allowed))
            if share == 1:
                log_alpha.data[log_alpha.detach().sort(descending=True, stable=True).indices[width:]] = CLOSED
        self.settled.fill_(share == 1)

    def fold(self) -> nn.Module:
        """The network with its gates multiplied into its weights, in place; channels past the widths carry nothing."""
        self.after_step(1.0)
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for name, weight in self._weights().items():
            parameters[name].data.copy_(weight.detach())
        for group, log_alpha in zip(self._groups, self.log_alpha, strict=True):
            gone = (log_alpha.detach() == CLOSED).nonzero().reshape(-1).cpu()
            Slices(group, parameters).scale(gone, torch.full((len(gone),), FLOOR, dtype=torch.float64))
        return self.model

    def _drawn(self, log_alpha: Tensor) -> Tensor:
        if not self.training or self.settled:
            return _gates(log_alpha, torch.full_like(log_alpha, 0.5))
        tiny = torch.finfo(log_alpha.dtype).eps
        return _gates(log_alpha, torch.rand_like(log_alpha).clamp(tiny, 1 - tiny))


def chance_open(log_alpha: Tensor) -> Tensor:
    """P(z ≠ 0) of each gate, (C,); eq. 12."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def shifted(log_alpha: Tensor, allowed: float) -> Tensor:
    """log α, (C,), less the smallest shift at which at most `allowed` gates are expected to be open."""
    if float(chance_open(log_alpha).sum()) <= allowed:
        return log_alpha
    low, high = 0.0, float(log_alpha.max()) - CLOSED
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(chance_open(log_alpha - middle).sum()) > allowed else (low, middle)
    return log_alpha - high


def _gates(log_alpha: Tensor, u: Tensor) -> Tensor:
    """Eq. 10 and 11."""
    s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def _ranks(importance: Sequence[float]) -> Tensor:
    """0 for the least important channel to 1 for the most important; of equals the first is the higher."""
    order = np.lexsort((np.arange(len(importance)), -np.asarray(importance)))
    ranks = np.empty(len(order))
    ranks[order] = np.linspace(1, 0, len(order))
    return torch.from_numpy(ranks).float()


def _places(group: Group, parameters: Mapping[str, Tensor]) -> list[tuple[str, int, Tensor]]:
    """(parameter, dimension, index (C, m)) of every slice that a gate scales."""
    found = gate_members(group, parameters)
    return [
        (m.parameter, m.dim, torch.from_numpy(np.asarray(m.index)).long().to(parameters[m.parameter].device))
        for m in found
    ]
