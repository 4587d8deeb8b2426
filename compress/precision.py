"""Whether this machine trains faster in bf16: asked of the clock, since the instruction set alone does not tell."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from compress.batches import forward
from compress.imitation import tensors

__all__ = ["WORTH", "faster_in_bf16"]

WORTH = 1.2
"""A smaller gain than this is not worth the digits."""


def faster_in_bf16(
    model: nn.Module, inputs: tuple[Tensor, ...], clock: Callable[[], float] = time.perf_counter
) -> bool:
    """Time a forward and backward pass of `model`, whose gradients are lost, in both precisions; the least of three."""
    kind = inputs[0].device.type
    if kind == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    seconds = {}
    for bf16 in (False, True):
        laps = []
        for _ in range(4):
            start = clock()
            with torch.autocast(kind, torch.bfloat16, enabled=bf16):
                loss = sum(x.float().square().mean() for x in tensors(forward(model, inputs)))
            if isinstance(loss, Tensor) and loss.requires_grad:
                loss.backward()
            model.zero_grad(set_to_none=True)
            laps.append(clock() - start)
        seconds[bf16] = min(laps[1:])
    return seconds[True] * WORTH < seconds[False]
