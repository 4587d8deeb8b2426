"""The distances between a student's outputs and its teacher's, by the names that --outputs takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from compress.imitation import apart, deviation, divergence, tensors
from compress.metrics import SSIM_SIDE, ssim

__all__ = ["OUTPUTS", "outputs_apart"]

WAVELET_LEVELS = 3
Kind = Callable[[Tensor, Tensor, float], Tensor]
"""(student's output, teacher's, unit) → a scalar without unit."""


def squares(student: Tensor, teacher: Tensor, unit: float) -> Tensor:
    """mean (student - teacher)² / unit²."""
    return (student - teacher).square().mean() / unit**2


def structure(student: Tensor, teacher: Tensor, unit: float) -> Tensor:
    """1 - SSIM of pictures (B, C, H, W); `deviation` of anything else."""
    if student.dim() != 4 or min(student.shape[2:]) < SSIM_SIDE:
        return deviation(student, teacher, unit)
    low, high = float(teacher.min()), float(teacher.max())
    return 1 - ssim(student - low, teacher - low, max(high - low, unit)).mean()


def wavelet(student: Tensor, teacher: Tensor, unit: float) -> Tensor:
    """`deviation` of the high-frequency Haar bands of three levels of pictures: what small generators lack most.

    Zhang et al., "Wavelet Knowledge Distillation", CVPR 2022.
    """
    if student.dim() != 4:
        return deviation(student, teacher, unit)
    low, total = student - teacher, student.new_zeros(())  # the transform is linear
    for _ in range(WAVELET_LEVELS):
        if min(low.shape[2:]) < 2:
            break
        low, high = _haar(low)
        total = total + high.abs().mean() / unit
    return total


def _haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """The low band, and the three high ones as more channels; an odd last row or column is left out."""
    x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return (a + b + c + d) / 2, torch.cat([a - b + c - d, a + b - c - d, a - b - c + d], 1) / 2


OUTPUTS: dict[str, Kind] = {
    "auto": apart,
    "l1": deviation,
    "mse": squares,
    "ssim": structure,
    "wavelet": wavelet,
    "kl": divergence,
}


def outputs_apart(student: Any, teacher: Any, scale: list[float], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of these distances, over the tensors of two outputs of equal structure.

    scale: the unit of each tensor, as `compress.imitation.output_scale` gives it. Never in bf16, autocast or not: the
    variances in `structure` are differences of nearly equal numbers.
    """
    pairs = list(zip(tensors(student), tensors(teacher), scale, strict=True))
    with torch.autocast(pairs[0][0].device.type, enabled=False):
        parts = [w * OUTPUTS[kind](mine, theirs, unit) for kind, w in weights.items() for mine, theirs, unit in pairs]
        return torch.stack(parts).sum()
