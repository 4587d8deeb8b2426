"""Norm importance: no data, and no say on which group matters more."""

from __future__ import annotations

import numpy as np
from torch import nn

from network.types import Network
from search.importance.data import per_channel

__all__ = ["magnitude"]


def magnitude(model: nn.Module, net: Network) -> dict[str, np.ndarray]:
    """Norm importance: the L2 norm of all the slices that go with a channel, in units of its group's mean.

    Parameters only, no running statistics. A mean of 1 in every group makes groups comparable whatever the scale of
    their weights; it says nothing about which group matters more. Returns float64 arrays (width,), one per group.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    scores = {}
    for group in net.groups:
        squares = np.zeros(group.width)
        for member in group.members:
            if member.parameter in parameters:
                squares += per_channel(parameters[member.parameter].detach().double().square(), member)
        norms = np.sqrt(squares)
        scores[group.name] = norms / (norms.mean() or 1.0)
    return scores
