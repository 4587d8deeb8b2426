"""Batch statistics: estimated anew where channels have changed, and taken over all processes' parts of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from compress.batches import Batch, forward
from compress.processes import count, summed
from network.modes import evaluating

__all__ = ["has_statistics", "recalibrate", "whole_batches"]


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


@contextmanager
def whole_batches(model: nn.Module) -> Iterator[None]:
    """Meanwhile batch norms normalise by the whole batch, not by this process's part of it.

    torch's SyncBatchNorm does the same on GPUs only.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if count() > 1 else []
    for layer in layers:
        layer.forward = partial(_normalise, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _normalise(layer: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    if not layer.training:
        return type(layer).forward(layer, x)
    dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    size = summed(values.new_tensor(values.numel() / values.shape[1]))
    mean = summed(values.sum(dims)) / size
    centred = values - mean.reshape(shape)
    variance = summed(centred.square().sum(dims)) / size
    _remember(layer, mean.detach(), variance.detach() * size / (size - 1))
    found = centred * (variance + layer.eps).rsqrt().reshape(shape)
    if layer.affine:
        found = found * layer.weight.reshape(shape) + layer.bias.reshape(shape)
    return found.to(x.dtype)


def _remember(layer: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
        return
    layer.num_batches_tracked.add_(1)
    share = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean, share)
    layer.running_var.lerp_(variance, share)
