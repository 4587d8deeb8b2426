"""Torch-Pruning on the same networks, held to the same rule: its narrow network against the silenced dense one.

It cuts half of every layer's channels, drawn at random, as its documentation shows for any network: layers as wide as
an output are ignored, nothing is said about heads or parameters of the network's own.
"""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.checks import worst_difference
from network.masking import silenced
from network.narrowing import named_tensors

__all__ = ["EXACT", "cut_by_torch_pruning", "output_layers", "torch_pruning_row"]

EXACT = 1e-10
RATIO = 0.5


def torch_pruning_row(model: nn.Module, inputs: tuple[Tensor, ...], seed: int) -> dict[str, Any]:
    """`outcome` is exact, wrong, failed or nothing cut; `error` is relative, `kept` the share of parameters left."""
    start = time.perf_counter()
    try:
        thin, kept = cut_by_torch_pruning(model, inputs, seed)
        with torch.no_grad():
            found = thin(*inputs)
    except Exception as error:  # whatever it meets is its outcome
        return {"outcome": "failed", "reason": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    seconds = time.perf_counter() - start
    share = sum(p.numel() for p in thin.parameters()) / sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        expected = silenced(copy.deepcopy(model), kept)(*inputs)
    if [t.shape for t in pytree.tree_leaves(found)] != [t.shape for t in pytree.tree_leaves(expected)]:
        return {"outcome": "wrong", "reason": "the output has another shape", "kept": share, "seconds": seconds}
    error = worst_difference(found, expected)
    outcome = "wrong" if error > EXACT else "exact" if share < 1 else "nothing cut"
    return {"outcome": outcome, "error": error, "kept": share, "seconds": seconds}


def cut_by_torch_pruning(
    model: nn.Module, inputs: tuple[Tensor, ...], seed: int
) -> tuple[nn.Module, dict[str, dict[int, np.ndarray]]]:
    """Its narrow network, and which positions of each parameter and buffer it kept, per dimension.

    It prunes a copy whose every entry is its own number, so that what is left tells where it came from.
    """
    import torch_pruning

    numbered = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in _floats(numbered).values():
            tensor.copy_(torch.arange(tensor.numel(), dtype=tensor.dtype).view(tensor.shape))
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_pruning.pruner.BasePruner(
            numbered,
            inputs,
            torch_pruning.importance.RandomImportance(),
            pruning_ratio=RATIO,
            ignored_layers=output_layers(numbered, inputs),
        ).step()
    originals = _floats(model)
    kept = {}
    with torch.no_grad():
        for name, tensor in _floats(numbered).items():
            shape, entries = originals[name].shape, tensor.detach().long()
            if tensor.shape != shape:
                where = np.unravel_index(entries.flatten().numpy(), tuple(shape))
                kept[name] = {dim: np.unique(each) for dim, each in enumerate(where)}
            tensor.copy_(originals[name].reshape(-1)[entries])
    return numbered, kept


def _floats(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in named_tensors(model).items() if tensor.is_floating_point()}


def output_layers(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[nn.Module]:
    """The layers as wide as an output, which its documentation says to ignore."""
    with torch.no_grad():
        shapes = [leaf.shape for leaf in pytree.tree_leaves(model(*inputs)) if isinstance(leaf, Tensor)]
    extents = {extent for shape in shapes for extent in (shape[1:] if len(shape) == 3 else shape[1:2])}
    return [
        module
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
        and (module.out_features if isinstance(module, nn.Linear) else module.out_channels) in extents
    ]
