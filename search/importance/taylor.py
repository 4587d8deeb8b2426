"""How much each channel matters: the coefficients of the integer program's objective. One (width,) array a group."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader
from tqdm import tqdm

from network.errors import InputError
from network.types import Group, Member, Network
from search.task import Task

__all__ = ["magnitude", "taylor"]


def taylor(
    model: nn.Module,
    net: Network,
    task: Task,
    batches: int = 16,
    seed: int = 0,
    *,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """First-order Taylor importance in gate form.

        I[c] = mean over minibatches of (∂L/∂z_c)²,   z_c = 1 a gate on channel c wherever it is read
        ∂L/∂z_c = Σ_consumers ⟨W[..c..], ∂L/∂W[..c..]⟩

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, eq. 8 and section 3.3. The sum
    holds since a gate scales exactly the slices that read the channel. A group that no weight reads falls back on
    the slices that make it.

    The loss is the task's, on minibatches of its training data in an order that `seed` decides, in eval mode, on a
    copy: the caller's model keeps its mode and its gradients. Returns float64 arrays (width,), one per group.
    Raises InputError if the training data is empty or the loss is not finite.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    read = {group.name: _gate_members(group, parameters) for group in net.groups}
    names = sorted({member.parameter for members in read.values() for member in members})
    totals = {group.name: np.zeros(group.width) for group in net.groups}
    for name in names:
        parameters[name].requires_grad_()
    devices = [tensor.device for tensor in parameters.values() if tensor.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(seed)
        stream = _minibatches(task, batches, seed)
        for inputs, target in tqdm(stream, "importance", total=batches, disable=None if progress else True):
            gradients = _gradients(model, task, inputs, target, [parameters[name] for name in names])
            products = {name: parameters[name].detach() * g for name, g in zip(names, gradients, strict=True)}
            for group in net.groups:
                totals[group.name] += _gate_gradient(group, read[group.name], products) ** 2
    return {name: total / batches for name, total in totals.items()}


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
                squares += _per_channel(parameters[member.parameter].detach().double().square(), member)
        norms = np.sqrt(squares)
        scores[group.name] = norms / (norms.mean() or 1.0)
    return scores


def _gate_members(group: Group, parameters: Mapping[str, Tensor]) -> list[Member]:
    """The members whose slices a gate on the group scales: consumers, or producers where no weight reads it."""
    weights = [m for m in group.members if m.parameter in parameters and parameters[m.parameter].is_floating_point()]
    return [member for member in weights if member.role == "consumer"] or weights


def _minibatches(task: Task, count: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """`count` minibatches in a seeded order, over and over if the data has fewer."""
    size = len(task.train)  # type: ignore[arg-type]
    if not size:
        raise InputError("the task's training data is empty; give at least one item")
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(task.train, batch_size=min(task.batch_size, size), shuffle=True, generator=generator)
    while count > 0:
        for _, batch in zip(range(count), loader, strict=False):
            yield batch
            count -= 1


def _gradients(model: nn.Module, task: Task, inputs: Any, target: Any, weights: list[Tensor]) -> list[Tensor]:
    """∂loss/∂weight of one minibatch; 0 where the loss does not depend on a weight."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    output = model(*(tensor.to(device) for tensor in inputs))
    loss = task.loss(output, _to(target, device))
    if not torch.isfinite(loss).all():
        raise InputError(f"the task's loss is {float(loss.detach().mean())}; look at its data and at the weights")
    return list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))


def _to(target: Any, device: torch.device) -> Any:
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, target)


def _gate_gradient(group: Group, members: list[Member], products: Mapping[str, Tensor]) -> np.ndarray:
    """∂loss/∂gate of every channel, (width,) float64, from weight · gradient."""
    return sum((_per_channel(products[member.parameter], member) for member in members), np.zeros(group.width))


def _per_channel(values: Tensor, member: Member) -> np.ndarray:
    """The sum of a parameter-shaped tensor over each channel's slices: (width,) float64."""
    others = [dim for dim in range(values.dim()) if dim != member.dim]
    along = values.double().sum(dim=others) if others else values.double()
    return along.cpu().numpy()[member.index].sum(axis=1)
