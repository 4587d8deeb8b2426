"""How far one network's outputs are from another's: the loss that teaches, and a scale that makes it unit-free."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from search.task import Imitation, Task, floating

__all__ = ["apart", "deviation", "distance", "divergence", "is_logits", "label_free", "output_scale", "tensors"]

TEMPERATURE = 4.0
"""Softens the teacher's classes, so that those it thinks unlikely teach too."""


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of a network's output, in order, in single precision or better."""
    return [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in floating(output)]


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
    """Scalar distance between two outputs of equal structure, summed over their tensors: KL for class scores, else L1.

    scale: the unit of each tensor, as `output_scale` gives it. Softened scores teach; these are as they are delivered,
    since a network may come nearer by the one and go away by the other (docs/notes/2026-11-27-quality.md).
    """
    pairs = zip(tensors(student), tensors(teacher), scale, strict=True)
    return torch.stack([apart(mine, theirs, unit, temperature=1.0) for mine, theirs, unit in pairs]).sum()


def apart(student: Tensor, teacher: Tensor, unit: float, temperature: float = TEMPERATURE) -> Tensor:
    """`divergence` of class scores, `deviation` of anything else."""
    if is_logits(teacher):
        return divergence(student, teacher, unit, temperature)
    return deviation(student, teacher, unit)


def deviation(student: Tensor, teacher: Tensor, unit: float) -> Tensor:
    """mean |student - teacher| / unit: without unit."""
    return (student - teacher).abs().mean() / unit


def divergence(student: Tensor, teacher: Tensor, unit: float, temperature: float = TEMPERATURE) -> Tensor:
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)) of class scores (B, K), mean over the batch, in nats.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2. What is no class score: `deviation`.
    """
    if not is_logits(teacher):
        return deviation(student, teacher, unit)
    ours = F.log_softmax(student / temperature, dim=1)
    theirs = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
