"""Training and held-out batches: what is drawn at a step depends on the seed, the step and the place in it alone."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, default_collate

from compress.processes import count, my_share
from network.errors import InputError
from network.seeding import seed_all, seeded

__all__ = ["Batch", "Batches", "formatted", "forward", "held_out", "image_format"]

Batch = tuple[tuple[Tensor, ...], Any]
"""Inputs, each with its batch axis, and the collated target."""


def forward(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The model's output for a batch's inputs."""
    return model(*inputs)


class Batches:
    """Batches of a dataset, shuffled anew each epoch, cropped at random where the dataset has a method `crop`.

    window: the side of a square that is cut out of every training batch's pictures, the same place in each, so that a
    step costs less; `plain` batches stay whole.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        window: int | None = None,
    ):
        self.size = len(dataset)  # type: ignore[arg-type]
        if not self.size:
            raise InputError("the training set is empty; give at least one item")
        self._dataset, self.seed, self._device, self._window = dataset, seed, device, window
        if batch_size < count():
            raise InputError(f"a batch of {batch_size} cannot feed {count()} processes; give a larger --batch-size")
        self.batch_size = batch_size
        crop = getattr(dataset, "crop", None)
        self._crop = crop if inspect.isroutine(crop) else None  # else it is a size, or a transform

    def batch(self, step: int) -> Batch:
        """The training batch of this step, augmented."""
        return self._part(step, range(self.batch_size))

    def share(self, step: int) -> Batch:
        """This process's part of it: together the processes see what one alone would."""
        return self._part(step, my_share(self.batch_size))

    def _part(self, step: int, places: range) -> Batch:
        indices = self._indices(step)
        with seeded(self.seed, step):
            inputs, target = self._collate([self._drawn(indices[place], step, place) for place in places])
        return tuple(self._opened(x, step) for x in inputs), target

    def _opened(self, x: Tensor, step: int) -> Tensor:
        """This step's window of a batch of pictures, (B, C, H, W), no larger than they are."""
        if self._window is None or x.dim() != 4:
            return x
        places = np.random.default_rng((self.seed, step, self._window))
        high, wide = (min(self._window, extent) for extent in x.shape[2:])
        top, left = (int(places.integers(spare + 1)) for spare in (x.shape[2] - high, x.shape[3] - wide))
        return formatted(x[:, :, top : top + high, left : left + wide])

    def _drawn(self, index: int, step: int, place: int) -> Any:
        seed_all(self.seed, step, place)
        return self._item(index, torch.Generator().manual_seed(int(torch.randint(2**62, ()))))

    def plain(self, count: int, batch_size: int | None = None) -> Iterator[Batch]:
        """Up to `count` items in a fixed shuffled order, for statistics: each as it is, then, while there are too few
        and the dataset can crop, in random crops. A last batch of one is left out: batch norms take statistics of more.
        """
        order = self._order(0).tolist()
        size = batch_size or self.batch_size
        count = count if self._crop is not None else min(count, self.size)
        count -= count % size == 1 and count > size
        for start in range(0, count, size):
            with seeded(self.seed, start):
                generator = torch.Generator().manual_seed(self.seed + start)
                places = range(start, min(start + size, count))
                items = [self._item(order[p % self.size], generator if p >= self.size else None) for p in places]
            yield self._collate(items)

    def _item(self, index: int, generator: torch.Generator | None) -> Any:
        if generator is not None and self._crop is not None:
            return self._crop(index, generator)
        return self._dataset[index]

    def _order(self, epoch: int) -> Tensor:
        key = int(np.random.SeedSequence((self.seed, epoch, 1)).generate_state(1)[0])
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(key))

    def _indices(self, step: int) -> list[int]:
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {epoch: self._order(epoch) for epoch in {p // self.size for p in positions}}
        return [int(orders[p // self.size][p % self.size]) for p in positions]

    def _collate(self, items: list[Any]) -> Batch:
        return _batch(items, self._device)


def held_out(dataset: Dataset, limit: int, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """Held-out items in batches: all of them, or `limit` drawn once and for all, so that every stage sees the same.

    A batch ends early where the next item's tensors have other shapes, as whole pictures may.
    """
    size = len(dataset)  # type: ignore[arg-type]
    if not size:
        raise InputError("the held-out set is empty; give more pictures, or a task with held-out items")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:limit].sort().values.tolist()
    for start in range(0, len(order), batch_size):
        with seeded(0, start):
            items = [dataset[i] for i in order[start : start + batch_size]]
        for _, alike in itertools.groupby(items, _shapes):
            yield _batch(list(alike), device)


def _shapes(item: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(item) if isinstance(leaf, Tensor)]


def _batch(items: list[Any], device: torch.device | str) -> Batch:
    inputs, target = default_collate(items)
    inputs = tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
    return pytree.tree_map_only(Tensor, lambda x: x.to(device), (tuple(map(formatted, inputs)), target))


def image_format() -> torch.memory_format:
    """How images lie in memory: channels last, which convolutions on a CPU prefer; but not where it has AVX2 alone.

    There the backward pass of strided 1x1 convolutions over channels-last images writes past its memory in torch 2.13
    (oneDNN's brgconv_strided:avx2), which ends the process.
    """
    return torch.contiguous_format if torch.backends.cpu.get_cpu_capability() == "AVX2" else torch.channels_last


def formatted(x: Tensor) -> Tensor:
    """Images as `image_format` says; the values stay as they are."""
    return x.contiguous(memory_format=image_format()) if x.dim() == 4 else x
