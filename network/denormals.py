"""Weights so small that they are no normal numbers: zero to any eye, and slow to compute with."""

from __future__ import annotations

import logging
from itertools import chain

import torch
from torch import nn

__all__ = ["flush_denormals"]

TINY = torch.finfo(torch.float32).tiny
"""The smallest normal number of single precision, 1.2e-38."""

REACH_IT = (torch.float32, torch.float64, torch.bfloat16)

_log = logging.getLogger(__name__)


def flush_denormals(model: nn.Module, name: str | None = None) -> nn.Module:
    """Set parameters' and buffers' entries below single precision's smallest normal number to 0, in place.

    So are those of double precision, where they are normal numbers. Returns the model.
    Weight decay leaves them in channels that died. Intel's cores take an exception for every product with one: those of
    Zero-DCE, a quarter, made it 40 to 70 times slower there (docs/notes/2026-11-27-denormals.md). name: whose weights
    they are, for the warning that there were some.
    """
    count = 0
    with torch.no_grad():
        for tensor in chain(model.parameters(), model.buffers()):
            if tensor.dtype in REACH_IT:
                denormal = (tensor != 0) & (tensor.abs() < TINY)
                if found := int(denormal.sum()):
                    tensor.masked_fill_(denormal, 0)
                    count += found
    if count and name:
        _log.warning(
            f"warning: {name}: {count} weights are denormal numbers, which slow many CPUs down; they are 0 from "
            "here on, but not where that file is served as it is"
        )
    return model
