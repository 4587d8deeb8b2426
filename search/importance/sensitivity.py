"""Measured sensitivity: what narrowing one group alone does to the network's output, at several widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor, nn
from tqdm import tqdm

import network
from network.errors import InputError
from network.modes import evaluating
from network.types import Group, Network
from search.importance.data import forward, minibatches
from search.importance.kept import Kept
from search.importance.refit import Readers, group_portions
from search.task import Task, floating

__all__ = ["Damage", "sensitivity"]

SHARES = (0.1, 0.25, 0.5, 0.75)
"""Widths at which each group is measured, besides the full one, and none where it can be removed."""

REFIT_BATCHES = 2
RUIN = 1.0

TILT = 1e-3
"""Relative: how much less the last channel of a group counts than the first, where the measurement ties them."""


class Damage:
    """How far a network's outputs are from the original's on fixed minibatches.

        D = Σ ‖f(x) - f₀(x)‖² / Σ ‖f₀(x) - mean f₀‖²,   averaged over the output tensors

    0 for the original, 1 for a constant. Raises InputError if the original's output is not finite.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Any]):
        self._inputs = list(inputs)
        self._reference = [self._outputs(model, each) for each in self._inputs]
        columns = list(zip(*self._reference, strict=True))
        self._scales = [_spread(torch.cat([x.flatten() for x in column])) for column in columns]
        if not all(np.isfinite(self._scales)):
            raise InputError("the network's output is not finite; look at its weights and at the data")

    def of(self, model: nn.Module) -> float:
        """The damage to this network, which has outputs of the original's shapes."""
        sums = np.zeros(len(self._scales))
        for inputs, reference in zip(self._inputs, self._reference, strict=True):
            outputs = self._outputs(model, inputs)
            sums += [float((a - b).double().square().sum()) for a, b in zip(outputs, reference, strict=True)]
        return float(np.mean(sums / np.array(self._scales)))

    def _outputs(self, model: nn.Module, inputs: Any) -> list[Tensor]:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with torch.no_grad(), evaluating(model):
            return floating(forward(model, inputs, device))


def sensitivity(
    model: nn.Module,
    net: Network,
    task: Task,
    ranking: Mapping[str, np.ndarray],
    batches: int = 1,
    seed: int = 0,
    *,
    progress: bool = False,
    kept: Kept | None = None,
) -> dict[str, np.ndarray]:
    """Importance whose sums are measured: keeping n channels of a group is worth the damage that it prevents.

        V_g(n) = D_g(0) - D_g(n),   D_g(n) = `Damage` with the n best channels of group g, all else whole

    after what reads them was refitted by least squares (`search.importance.refit`), as nobody delivers a cut that was
    not repaired. Measured at SHARES of the width, between them shared out in proportion to the ranking, and made
    concave by isotonic regression of the increments. D_g(0) is measured where the group can be removed, and bounds the
    others, else extrapolated. `ranking`, such as `taylor`'s, orders the channels within a group: the order stays. The
    sums of several groups are as good as damages add up.

    Returns float64 arrays (width,), one per group; groups that were kept are not measured again, and each is kept as
    soon as it is. The caller's model is left as it is.
    """
    found = dict(kept.found) if kept is not None else {}
    left = [each for each in group_portions(net, model) if not found.keys() >= {group.name for group in each}]
    if not left:
        return found
    inputs = [inputs for inputs, _ in minibatches(task, batches + REFIT_BATCHES, seed)]
    damage = Damage(model, inputs[:batches])
    begun = {"total": len(net.groups), "initial": len(found)}
    with tqdm(**begun, desc="sensitivity", unit="group", disable=not progress) as bar:
        for groups in left:
            readers = Readers(model, net, groups, inputs[batches:])
            for group in (group for group in groups if group.name not in found):
                found[group.name] = _scores(model, net, group, ranking[group.name], damage, readers)
                if kept is not None:
                    kept.add({group.name: found[group.name]})
                bar.update()
    return found


def _scores(
    model: nn.Module, net: Network, group: Group, ranking: np.ndarray, damage: Damage, readers: Readers
) -> np.ndarray:
    """One group's importance: (width,)."""
    order = np.argsort(-ranking, kind="stable")
    counts = {max(1, round(share * group.width)) for share in SHARES}
    damages = {group.width: 0.0}
    for count in (counts | ({0} if group.removable else set())) - {group.width}:
        keep = {group.name: sorted(map(int, order[:count]))}
        narrow = network.narrow(model, net, keep)
        readers.refit(narrow, keep)
        damages[count] = damage.of(narrow)
    widths = sorted(damages)
    found = np.fmin([damages[width] for width in widths], damages.get(0, np.inf))  # removal does no more, and is faster
    scores = np.zeros(group.width)
    scores[order] = _increments(np.array(widths), found, ranking[order])
    return scores


def _increments(counts: np.ndarray, damages: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What each next channel prevents: (width,), descending.

    counts, damages: (M,), ascending, the last one the full width and 0; a damage that is not finite counts as the
    worst.
    weights: (width,), how the channels between two counts share what lies between them.
    """
    worst = max(RUIN, damages[np.isfinite(damages)].max())
    damages = isotonic_regression(np.where(np.isfinite(damages), damages, worst), increasing=False).x
    prevented = -np.diff(damages)
    starts, ends = counts[:-1], counts[1:]
    slopes = prevented / (ends - starts)
    # The first channels, below the least count measured, prevent at least as much each as the steepest stretch.
    first = counts[0]
    increments = np.full(counts[-1], slopes.max(initial=0.0))
    for start, end, gain in zip(starts, ends, prevented, strict=True):
        part = weights[start:end]
        increments[start:end] = gain * part / part.sum() if part.sum() > 0 else gain / (end - start)
    increments[:first] = max(increments[:first].max(initial=0.0), increments[first:].max(initial=0.0))
    increments = isotonic_regression(increments, increasing=False).x
    return increments * (1 - TILT * np.arange(len(increments)) / len(increments))


def _spread(values: Tensor) -> float:
    values = values.double()
    return float((values - values.mean()).square().sum()) or 1.0
