"""First-order Taylor importance: what the loss would say to a gate on each channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from network.errors import InputError
from network.exporting import stand_in
from network.types import Group, Member, Network
from search.importance.data import forward, gate_members, minibatches, per_channel, to
from search.importance.kept import Kept
from search.task import Task

__all__ = ["taylor"]


def taylor(
    model: nn.Module,
    net: Network,
    task: Task,
    batches: int = 16,
    seed: int = 0,
    *,
    progress: bool = False,
    kept: Kept | None = None,
) -> dict[str, np.ndarray]:
    """First-order Taylor importance in gate form.

        I[c] = mean over minibatches of (∂L/∂z_c)²,   z_c = 1 a gate on channel c wherever it is read
        ∂L/∂z_c = Σ_consumers ⟨W[..c..], ∂L/∂W[..c..]⟩

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, eq. 8 and section 3.3. The sum
    holds since a gate scales exactly the slices that read the channel. A group that no weight reads falls back on
    the slices that make it.

    The loss is the task's, on minibatches of its training data in an order that `seed` decides, in eval mode, on a
    copy: the caller's model keeps its mode and its gradients. Returns float64 arrays (width,), one per group; what was
    kept of such a measurement is returned as it is.
    Raises InputError if the training data is empty or the loss is not finite.
    """
    if kept is not None and kept.found.keys() == net.widths.keys():
        return dict(kept.found)
    model = stand_in(model, share=False).eval().requires_grad_(False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    read = {group.name: gate_members(group, parameters) for group in net.groups}
    names = sorted({member.parameter for members in read.values() for member in members})
    totals = {group.name: np.zeros(group.width) for group in net.groups}
    for name in names:
        parameters[name].requires_grad_()
    devices = [tensor.device for tensor in parameters.values() if tensor.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(seed)
        stream = minibatches(task, batches, seed)
        for inputs, target in tqdm(stream, "importance", total=batches, disable=not progress):
            gradients = _gradients(model, task, inputs, target, [parameters[name] for name in names])
            products = {name: parameters[name].detach() * g for name, g in zip(names, gradients, strict=True)}
            for group in net.groups:
                totals[group.name] += _gate_gradient(group, read[group.name], products) ** 2
    found = {name: total / batches for name, total in totals.items()}
    if kept is not None:
        kept.add(found)
    return found


def _gradients(model: nn.Module, task: Task, inputs: Any, target: Any, weights: list[Tensor]) -> list[Tensor]:
    """∂loss/∂weight of one minibatch; 0 where the loss does not depend on a weight."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    output = forward(model, inputs, device)
    loss = task.loss(output, to(target, device))
    if not torch.isfinite(loss).all():
        raise InputError(f"the task's loss is {float(loss.detach().mean())}; look at its data and at the weights")
    return list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))


def _gate_gradient(group: Group, members: list[Member], products: Mapping[str, Tensor]) -> np.ndarray:
    """∂loss/∂gate of every channel, (width,) float64, from weight · gradient."""
    return sum((per_channel(products[member.parameter], member) for member in members), np.zeros(group.width))
