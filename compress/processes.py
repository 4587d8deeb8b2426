"""Several processes at one compression, as torchrun and `accelerate launch` start them; alone, all of it does nothing.

The first process leads: it alone writes, measures, judges and decides, and what it found is handed to the others. They
join in where time goes, the training steps, each with its share of every batch.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["add_up", "agreed", "count", "decided", "join", "leads", "my_share", "share_state", "summed"]

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""The others wait while the first measures and repairs; of its death the launcher tells them."""


def join() -> None:
    """Join the group of processes that the environment names (WORLD_SIZE, RANK, MASTER_ADDR, …), if it names any.

    Gloo carries CPU tensors, NCCL those on GPUs. A group that is there already is used; this one stays until the
    process ends, since processes cannot meet twice at one place.
    """
    if _expected() > 1 and not dist.is_initialized():
        dist.init_process_group(timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)


def _expected() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if dist.is_available() else 1


def count() -> int:
    """How many processes work together now."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def leads() -> bool:
    """Whether this process is the first of them, or will be."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return _expected() == 1 or os.environ.get("RANK", "0") == "0"


def my_share(size: int) -> range:
    """Which positions of a batch of this size are this process's: neighbours, as many as anybody's or one more."""
    rank = dist.get_rank() if count() > 1 else 0
    return range(size * rank // count(), size * (rank + 1) // count())


def decided(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, in all of them; the others do not call it."""
    if count() == 1:
        return make()
    box: list[Any] = [make() if leads() else None]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def agreed(number: float) -> float:
    """The first process's number, in all of them."""
    if count() == 1:
        return number
    box = torch.tensor(number, dtype=torch.float64)
    dist.broadcast(box, src=0)
    return float(box)


@torch.no_grad()
def share_state(model: nn.Module) -> None:
    """Give every process's `model` the first one's parameters and buffers, in place."""
    if count() == 1:
        return
    for value in model.state_dict().values():
        if isinstance(value, Tensor):
            flat = value.contiguous()
            dist.broadcast(flat, src=0)
            value.copy_(flat)


@torch.no_grad()
def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in place; one message for each kind of number."""
    if count() == 1:
        return
    for kind in dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors):  # in the same order everywhere
        alike = [tensor for tensor in tensors if (tensor.dtype, tensor.device) == kind]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        dist.all_reduce(flat)
        for tensor, total in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(total.view_as(tensor))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def summed(x: Tensor) -> Tensor:
    """The sum of `x` over the processes, through which the losses of all of them are differentiated."""
    return _Sum.apply(x) if count() > 1 else x
