"""How well an importance predicts the truth: what removing channels really does to the loss.

Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, section 4.1: the oracle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn
from tqdm import tqdm

import network
from network.modes import evaluating
from network.types import Network
from search.importance.data import forward, minibatches, to
from search.importance.sensitivity import Damage
from search.task import Imitation, Task

__all__ = ["KINDS", "Trial", "agreement", "oracle"]

KINDS = ("channel", "set", "plan")
"""What is removed: one channel, a tenth to a half of one group, a tenth to a half of every group."""

FEWEST = 4
"""Trials of one group that a correlation within it needs."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Channels removed (group → indices), and the damage that it did."""

    kind: str
    removed: Mapping[str, np.ndarray]
    damage: float

    def estimate(self, importance: Mapping[str, np.ndarray]) -> float:
        """What the importance says of it: the sum over the channels removed."""
        return float(sum(importance[group][channels].sum() for group, channels in self.removed.items()))


def oracle(
    model: nn.Module,
    net: Network,
    task: Task,
    *,
    each: int = 6,
    plans: int = 24,
    batches: int = 2,
    seed: int = 0,
    progress: bool = False,
) -> list[Trial]:
    """The truth: `each` single channels and `each` sets of every group, and `plans` sets of all groups at once.

    The damage is the mean over minibatches of (L(narrow) - L(original))² for a task with labels, eq. 3 of the paper,
    and `Damage` of the outputs for a task without.
    """
    random = np.random.default_rng(seed)
    removals = [
        (kind, {group.name: random.choice(group.width, size, replace=False)})
        for group in net.groups
        if group.width > 1
        for kind in KINDS[:2]
        for size in ([1] * each if kind == "channel" else _sizes(group.width, random, each))
    ]
    removals += [
        (
            KINDS[2],
            {g.name: random.choice(g.width, _sizes(g.width, random, 1)[0], replace=False) for g in net.groups},
        )
        for _ in range(plans)
    ]
    stream = list(minibatches(task, batches, seed))
    judge: Damage | _Loss
    judge = Damage(model, [x for x, _ in stream]) if isinstance(task, Imitation) else _Loss(model, task, stream)
    trials = []
    for kind, removed in tqdm(removals, "oracle", unit="network", disable=not progress):
        keep = {name: sorted(set(range(net.widths[name])) - set(map(int, gone))) for name, gone in removed.items()}
        trials.append(Trial(kind, removed, judge.of(network.narrow(model, net, keep))))
    return trials


def agreement(trials: Sequence[Trial], importance: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """For each kind: Pearson's r of the logarithms, Spearman's ρ over the network, and its median within groups."""
    rows = []
    for kind in KINDS:
        chosen = [trial for trial in trials if trial.kind == kind]
        truth = np.array([trial.damage for trial in chosen])
        said = np.array([trial.estimate(importance) for trial in chosen])
        positive = (truth > 0) & (said > 0) & np.isfinite(truth)
        groups: dict[str, list[int]] = {}
        for index, trial in enumerate(chosen):
            if kind != "plan":
                groups.setdefault(next(iter(trial.removed)), []).append(index)
        each = [_spearman(truth[at], said[at]) for at in groups.values() if len(at) >= FEWEST]
        within = [rho for rho in each if rho is not None]
        rows.append(
            {
                "kind": kind,
                "trials": len(chosen),
                "pearson_log": _pearson(np.log(truth[positive]), np.log(said[positive])),
                "spearman": _spearman(truth, said),
                "spearman_within_groups": float(np.median(within)) if within else None,
            }
        )
    return rows


class _Loss:
    """The squared change of a task's loss, averaged over minibatches."""

    def __init__(self, model: nn.Module, task: Task, stream: Sequence[tuple[Any, Any]]):
        self._task, self._stream = task, stream
        self._before = self._losses(model)

    def of(self, model: nn.Module) -> float:
        return float(np.mean((self._losses(model) - self._before) ** 2))

    def _losses(self, model: nn.Module) -> np.ndarray:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with torch.no_grad(), evaluating(model):
            losses = [self._task.loss(forward(model, x, device), to(y, device)) for x, y in self._stream]
        return np.array([float(loss) for loss in losses])


def _sizes(width: int, random: np.random.Generator, count: int) -> list[int]:
    """How many channels to remove: a tenth to a half of them, one at least and one less than all at most."""
    return [min(width - 1, max(1, round(share * width))) for share in random.uniform(0.1, 0.5, count)]


def _pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    return float(stats.pearsonr(a, b).statistic) if len(a) > 2 and np.ptp(a) and np.ptp(b) else None


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    return float(stats.spearmanr(a, b).statistic) if len(a) > 2 and np.ptp(a) and np.ptp(b) else None
