"""What every measure of importance shares: minibatches in a seeded order, and sums over a channel's slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from network.errors import InputError
from network.seeding import seeded
from network.types import Group, Member
from search.task import Task

__all__ = ["forward", "gate_members", "minibatches", "per_channel", "to"]


def minibatches(task: Task, count: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """`count` minibatches in a seeded order, over and over if the data has fewer; what items draw is seeded too."""
    size = len(task.train)  # type: ignore[arg-type]
    if not size:
        raise InputError("the task's training data is empty; give at least one item")
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(task.train, batch_size=min(task.batch_size, size), shuffle=True, generator=generator)
    batches = iter(loader)
    for number in range(count):
        with seeded(seed, number):
            batch = next(batches, None)
            if batch is None:
                batches = iter(loader)
                batch = next(batches)
        yield batch


def forward(model: nn.Module, inputs: Any, device: torch.device) -> Any:
    """The model's output for a minibatch's inputs, a tensor or several."""
    inputs = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    return model(*(tensor.to(device) for tensor in inputs))


def to(target: Any, device: torch.device) -> Any:
    """Every tensor of a nested target on this device."""
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, target)


def gate_members(group: Group, parameters: Mapping[str, Tensor]) -> list[Member]:
    """The members whose slices a gate on the group scales: consumers, or producers where no weight reads it."""
    weights = [m for m in group.members if m.parameter in parameters and parameters[m.parameter].is_floating_point()]
    return [member for member in weights if member.role == "consumer"] or weights


def per_channel(values: Tensor, member: Member) -> np.ndarray:
    """The sum of a parameter-shaped tensor over each channel's slices: (width,) float64."""
    others = [dim for dim in range(values.dim()) if dim != member.dim]
    along = values.double().sum(dim=others) if others else values.double()
    return along.cpu().numpy()[member.index].sum(axis=1)
