"""Running statistics of a network whose channels have changed, estimated anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from compress.batches import Batch, forward
from network.modes import evaluating

__all__ = ["has_statistics", "recalibrate"]


def _tracking(model: nn.Module) -> list[nn.modules.batchnorm._NormBase]:
    kind = nn.modules.batchnorm._NormBase
    return [m for m in model.modules() if isinstance(m, kind) and m.running_mean is not None]


def has_statistics(model: nn.Module) -> bool:
    """Whether any layer keeps running statistics."""
    return bool(_tracking(model))


def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Replace every running mean and variance by the plain average over these batches, in place.

    An exponential average of momentum 0.01 would remember the network before the cut for hundreds of steps.
    """
    layers = _tracking(model)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    with torch.no_grad(), evaluating(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        for inputs, _ in batches:
            forward(model, inputs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
