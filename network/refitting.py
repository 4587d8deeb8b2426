"""What every least-squares refit shares: the ridge that judges best, the update of a weight, and work in portions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from network.narrowing import positions, standing
from network.removal import Constant, remains_of
from network.types import BIAS, Keep, Network, widths_of

__all__ = ["add_update", "best_ridge", "fill_constants", "portions"]

Item = TypeVar("Item")


def best_ridge(
    ridges: Sequence[float], gram: Tensor, cross: Tensor, held_gram: Tensor, held_cross: Tensor
) -> tuple[float, Tensor | None, float]:
    """The ridge, its update (d, c_out), and what that adds to the held-out squared error: the least there is.

        Δ = (G + α D)⁻¹ C,   change = ⟨Δ, H Δ - 2 C_held⟩

    gram G, held_gram H: XᵀX (…, d, d); cross: XᵀR (…, d, c_out); all float64; D is G's diagonal. Leading axes are
    problems of their own that share the ridge. No update and infinity where none can be solved.
    """
    best: tuple[float, Tensor | None, float] = (0.0, None, float("inf"))
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal = diagonal + 1e-12 * diagonal.mean() + 1e-300
    for ridge in ridges:
        factor, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(ridge * diagonal))
        if failed.any():
            continue
        update = torch.cholesky_solve(cross, factor)
        change = float((update * (held_gram @ update)).sum()) - 2 * float((update * held_cross).sum())
        if change < best[2]:
            best = ridge, update, change
    return best


def add_update(weight: Tensor, bias: Tensor | None, update: Tensor, *, kernel: int, transposed: bool) -> None:
    """Add an update (groups, inputs · kernel [+ 1 for the bias], outputs), kernel position fastest, in place.

    inputs, outputs: channels per group of a convolution; a linear layer is one group.
    """
    groups, _, outputs = update.shape
    if bias is not None:
        bias.data += update[:, -1].flatten().to(bias)
        update = update[:, :-1]
    update = update.reshape(groups, -1, kernel, outputs)
    weight.data += update.permute((0, 1, 3, 2) if transposed else (0, 3, 1, 2)).reshape(weight.shape).to(weight)


def fill_constants(narrow: nn.Module, net: Network, keep: Keep, means: Mapping[str, Tensor]) -> None:
    """Give the constants of a network without some groups, in place, what their layers gave on average.

    keep: as `narrow` was given it; means: {weight: (C_out,) of the dense network's layer}. The least-squares fit of
    what reads nothing.
    """
    alive = positions(net, standing(keep))
    for path, word in remains_of(net, widths_of(keep)).items():
        constant, weight = narrow.get_submodule(path), f"{path}.weight"
        if word == BIAS and weight in means and isinstance(constant, Constant):
            stay = alive.get(weight, {}).get(constant.made)
            mean = means[weight] if stay is None else means[weight][torch.from_numpy(stay)]
            constant.bias.data.copy_(mean)


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
