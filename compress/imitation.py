"""How far one network's outputs are from another's: the loss that teaches, and a scale that makes it unit-free."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from search.task import Imitation, Task

__all__ = ["TEMPERATURE", "distance", "is_logits", "label_free", "output_scale", "tensors"]

TEMPERATURE = 4.0
"""Softens the teacher's classes, so that those it thinks unlikely teach too."""


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of a network's output, in order, in single precision or better."""
    leaves = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
    return [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in leaves]


def label_free(task: Task) -> bool:
    """Whether the task has no labels of its own, so that only outputs are imitated."""
    return isinstance(task, Imitation)


def is_logits(x: Tensor) -> bool:
    """Whether an output looks like class scores: (batch, classes) with two classes or more."""
    return x.dim() == 2 and x.shape[1] > 1


def output_scale(output: Any) -> list[float]:
    """Mean absolute deviation of each output tensor, the unit in which `distance` counts."""
    return [max(float((x - x.mean()).abs().mean()), 1e-12) for x in tensors(output)]


def distance(student: Any, teacher: Any, scale: list[float]) -> Tensor:
    """Scalar distance between two outputs of equal structure, summed over their tensors.

        class scores (B, K):   T² · KL(softmax(teacher/T) ‖ softmax(student/T)), mean over the batch    [nats]
        anything else:         mean |student - teacher| / scale                                         [unit-free]

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    parts = [
        _divergence(mine, theirs) if is_logits(theirs) else (mine - theirs).abs().mean() / unit
        for mine, theirs, unit in zip(tensors(student), tensors(teacher), scale, strict=True)
    ]
    return torch.stack(parts).sum()


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    ours = F.log_softmax(student / TEMPERATURE, dim=1)
    theirs = F.log_softmax(teacher / TEMPERATURE, dim=1)
    return TEMPERATURE**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
