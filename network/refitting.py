"""What every least-squares refit shares: the ridge that judges best, the update of a weight, and work in portions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["add_update", "best_ridge", "portions"]

Item = TypeVar("Item")


def best_ridge(
    ridges: Sequence[float], gram: Tensor, cross: Tensor, held_gram: Tensor, held_cross: Tensor
) -> tuple[float, Tensor | None, float]:
    """The ridge, its update (d, c_out), and what that adds to the held-out squared error: the least there is.

        Δ = (G + α D)⁻¹ C,   change = ⟨Δ, H Δ - 2 C_held⟩

    gram G, held_gram H: XᵀX (d, d); cross: XᵀR (d, c_out); all float64; D is G's diagonal. No update and infinity where
    none can be solved.
    """
    best: tuple[float, Tensor | None, float] = (0.0, None, float("inf"))
    diagonal = gram.diagonal()
    diagonal = diagonal + 1e-12 * diagonal.mean() + 1e-300
    for ridge in ridges:
        factor, failed = torch.linalg.cholesky_ex(gram + torch.diag(ridge * diagonal))
        if failed:
            continue
        update = torch.cholesky_solve(cross, factor)
        change = float((update * (held_gram @ update)).sum()) - 2 * float((update * held_cross).sum())
        if change < best[2]:
            best = ridge, update, change
    return best


def add_update(weight: Tensor, bias: Tensor | None, update: Tensor, *, kernel: int, transposed: bool) -> None:
    """Add an update (C_in · kernel [+ 1 for the bias], C_out), kernel position fastest, to a weight in place."""
    if bias is not None:
        bias.data += update[-1].to(bias)
        update = update[:-1]
    rows, columns = (0, 1) if transposed else (1, 0)
    update = update.reshape(weight.shape[rows], kernel, weight.shape[columns])
    weight.data += update.permute((0, 2, 1) if transposed else (2, 0, 1)).reshape(weight.shape).to(weight)


def portions(items: Iterable[Item], size: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """Consecutive items whose sizes together are at most `most`; an item beyond it is alone."""
    portion: list[Item] = []
    used = 0
    for item in items:
        needs = size(item)
        if portion and used + needs > most:
            yield portion
            portion, used = [], 0
        portion.append(item)
        used += needs
    if portion:
        yield portion
