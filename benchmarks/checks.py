"""How a narrowed network is held against the dense one: used by the tests and by benchmarks.coverage."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from network.types import Network

__all__ = ["calibrated", "random_keep", "relative_difference", "worst_difference"]


def calibrated(model: nn.Module, *shapes: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Batch norms with random scales and shifts, their statistics those of noise; then eval mode, in place.

    A network with random weights and untouched statistics is so ill-conditioned that exact looks wrong.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5, generator=generator)
                norm.bias.uniform_(-0.3, 0.3, generator=generator)
        model.train()
        for _ in range(2 if norms else 0):
            model(*(torch.randn((4, *shape[1:]), generator=generator, dtype=dtype) for shape in shapes))
    return model.eval()


def random_keep(net: Network, seed: int = 0, most: float = 0.8, whole: float = 0.25) -> dict[str, list[int]]:
    """Random channels to keep in every group at once, up to `most` of each group removed, its step respected.

    whole: the probability with which a group goes that may.
    """
    drawn = np.random.default_rng(seed)
    keep = {}
    for group in net.groups:
        least = max(1, int(np.ceil(group.width * (1 - most))))
        count = int(drawn.integers(least, group.width + 1))
        keep[group.name] = sorted(int(i) for i in drawn.choice(group.width, count, replace=False))
        if group.removable and drawn.random() < whole:
            keep[group.name] = []
    return keep


def relative_difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(b.dtype).tiny))


def worst_difference(a: object, b: object) -> float:
    """The largest relative difference between the tensors of two outputs of the same structure."""
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    return max(relative_difference(x, y) for x, y in pairs if isinstance(x, Tensor))
