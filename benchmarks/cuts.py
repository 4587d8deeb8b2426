"""How others would cut a network to the same delivered milliseconds: uniformly, and by Torch-Pruning."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import network
from benchmarks.peers import output_layers
from latency import Device, measure
from network.types import Network
from search.importance import magnitude
from search.importance.data import forward, minibatches
from search.task import Task

__all__ = ["CUTTERS", "Cutter", "matched"]

Cutter = Callable[[nn.Module, Network, tuple[Tensor, ...], Task, float], nn.Module]
"""(network, its trace, example inputs, task, share of the channels to remove) → a narrow copy."""

GRADIENT_BATCHES = 4
MOST_PER_LAYER = 0.95
TRIES, CLOSE, ROUNDS = 9, 0.97, 9


def uniform(model: nn.Module, net: Network, example: tuple[Tensor, ...], task: Task, removed: float) -> nn.Module:
    """Every group × the same constant, the channels of the largest L2 norm stay."""
    keep = {}
    for name, scores in magnitude(model, net).items():
        group = net.group(name)
        count = max(1, round(group.width * (1 - removed)))
        keep[name] = np.sort(np.argsort(-scores, kind="stable")[:count])
    return network.narrow(model, net, keep)


def torch_pruning(kind: str, *, everywhere: bool) -> Cutter:
    """Torch-Pruning's group importance of this kind, "magnitude" or "taylor", ranked within layers or `everywhere`."""

    def cut(model: nn.Module, net: Network, example: tuple[Tensor, ...], task: Task, removed: float) -> nn.Module:
        import torch_pruning as tp

        narrow = copy.deepcopy(model).eval()
        importance = {
            "magnitude": tp.importance.GroupMagnitudeImportance,
            "taylor": tp.importance.GroupTaylorImportance,
        }
        if kind == "taylor":
            _accumulate(narrow, task)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tp.pruner.BasePruner(
                narrow,
                example,
                importance[kind](),
                pruning_ratio=removed,
                max_pruning_ratio=MOST_PER_LAYER,
                global_pruning=everywhere,
                ignored_layers=output_layers(narrow, example),
            ).step()
        narrow.zero_grad(set_to_none=True)
        return narrow

    return cut


def _accumulate(model: nn.Module, task: Task) -> None:
    """Gradients of the task's loss over a few minibatches, which Taylor importance reads."""
    device = next(model.parameters()).device
    torch.manual_seed(0)
    for inputs, target in minibatches(task, GRADIENT_BATCHES, seed=0):
        task.loss(forward(model, inputs, device), target).backward()


CUTTERS: Mapping[str, Cutter] = {
    "uniform": uniform,
    "tp-magnitude-local": torch_pruning("magnitude", everywhere=False),
    "tp-magnitude-global": torch_pruning("magnitude", everywhere=True),
    "tp-taylor-local": torch_pruning("taylor", everywhere=False),
    "tp-taylor-global": torch_pruning("taylor", everywhere=True),
}


def matched(
    cutter: Cutter,
    model: nn.Module,
    net: Network,
    example: tuple[Tensor, ...],
    task: Task,
    ours: nn.Module,
    device: Device,
) -> tuple[nn.Module, dict[str, Any]]:
    """The least cut that is as fast as `ours`, both timed in turn, found by bisection; and what was measured of it.

    Peers have no budget in milliseconds: whoever uses them looks for the ratio by hand. Raises ValueError where even
    the deepest cut is slower.
    """
    low, high, best = 0.0, MOST_PER_LAYER, None
    for _ in range(TRIES):
        removed = (low + high) / 2
        narrow = cutter(model, net, example, task, removed)
        times = measure({"ours": ours, "peer": narrow}, example, device, rounds=ROUNDS)
        ratio = times["peer"].median_ms / times["ours"].median_ms
        if ratio > 1:
            low = removed
            continue
        high, best = removed, (narrow, {"removed": removed, "of_ours": ratio})
        if ratio >= CLOSE:
            break
    if best is None:
        raise ValueError(f"no cut is as fast: {MOST_PER_LAYER:.0%} of all channels removed is slower than ours")
    return best
