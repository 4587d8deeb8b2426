"""What a student is told about its insides: taps at group boundaries, and how its features there compare.

A tap is the input of a layer that reads one whole group: the group's channels as the rest of the network sees them,
after norm and activation. The student has some of them, the teacher all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from network.errors import InputError
from network.types import Layer, Network

__all__ = ["FEATURES", "Features", "Tap", "choose_taps", "watched"]

TAPS = 4
MOST_POSITIONS = 8192
"""Positions of a batch that are compared, drawn anew at every step."""

DEAD = 1e-12
"""Variance that features have at least, where they are divided by it: those of a dead tap are all 0."""

READERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True, slots=True)
class Tap:
    """The module whose input is compared, the group that it reads, and where the channels lie: 1, or -1."""

    module: str
    group: str
    dim: int


def choose_taps(net: Network, model: nn.Module, count: int = TAPS) -> tuple[Tap, ...]:
    """At most `count` taps, of different groups, spread evenly over the network's multiply-accumulates.

    Raises InputError where no layer reads one whole group.
    """
    done, total, candidates = 0.0, net.macs(), []
    calls = Counter(layer.module for layer in net.layers if layer.weight)
    for layer in net.layers:
        if (tap := _tap(layer, model)) and calls[layer.module] == 1:
            candidates.append((done / total, tap))
        done += layer.macs(net.widths)
    chosen: dict[str, Tap] = {}
    for number in range(count):
        aim = (number + 1) / (count + 1)
        free = [(share, tap) for share, tap in candidates if tap.group not in chosen]
        if free:
            tap = min(free, key=lambda pair: abs(pair[0] - aim))[1]
            chosen[tap.group] = tap
    if not chosen:
        raise InputError("--features: no layer of the network reads one whole group of channels; leave --features out")
    return tuple(chosen.values())


def _tap(layer: Layer, model: nn.Module) -> Tap | None:
    if not layer.weight or layer.c_in.fixed or [m for _, m in layer.c_in.terms] != [1]:
        return None
    module = model.get_submodule(layer.module)
    if not isinstance(module, READERS):
        return None
    return Tap(layer.module, layer.c_in.groups[0], -1 if isinstance(module, nn.Linear) else 1)


@contextmanager
def watched(model: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[str, Tensor]]:
    """Fills {module: its input} while the model runs."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, Any], None]:
        def note(module: nn.Module, inputs: Any) -> None:
            seen[name] = inputs[0]

        return note

    handles = [model.get_submodule(tap.module).register_forward_pre_hook(hook(tap.module)) for tap in taps]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# ---- distances ---------------------------------------------------------------------------------------------------
class Adaptor(nn.Module):
    """A 1x1 adaptor to the teacher's channels, trained along, and the squared error in units of their variance.

    Li et al., "GAN Compression", CVPR 2020, equation 2. It starts as the least-squares fit.
    """

    def __init__(self, kept: Tensor, student: Tensor, teacher: Tensor):
        super().__init__()
        x, y = _rows(student), _rows(teacher)
        self.mean_in, self.mean_out = nn.Buffer(x.mean(0)), nn.Buffer(y.mean(0))
        ridge = 1e-4 * max(float(x.var(0).mean()), DEAD) * len(x) * torch.eye(x.shape[1], device=x.device)
        x, y = x - self.mean_in, y - self.mean_out
        self.weight = nn.Parameter(torch.linalg.solve(x.T @ x + ridge, x.T @ y))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        x, y = _rows(student), _rows(teacher)
        guess = (x - self.mean_in) @ self.weight + self.mean_out
        return (guess - y).square().mean() / y.var(0).mean().clamp_min(DEAD)


class Alignment(nn.Module):
    """1 - kernel alignment, |YᵀX|² / (|XᵀX| |YᵀY|): no adaptor, any two widths.

    Jin et al., "Teachers Do More Than Teach", CVPR 2021, equation 5.
    """

    def __init__(self, kept: Tensor, student: Tensor, teacher: Tensor):
        super().__init__()

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        x, y = _rows(student), _rows(teacher)
        return 1 - (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()).clamp_min(1e-12)


class Similarity(nn.Module):
    """Which items of the batch are alike: mean squared difference of the row-normalised similarity matrices.

    Tung & Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, equations 1 to 4.
    """

    def __init__(self, kept: Tensor, student: Tensor, teacher: Tensor):
        super().__init__()

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = (nn.functional.normalize(x.flatten(1) @ x.flatten(1).T, dim=1) for x in (student, teacher))
        return (ours - theirs).square().mean() * len(student)


class Gram(nn.Module):
    """Which channels go together: the squared difference of the Gram matrices over the channels that both have.

    Gatys et al., CVPR 2016, equation 3, in units of the teacher's matrix.
    """

    def __init__(self, kept: Tensor, student: Tensor, teacher: Tensor):
        super().__init__()
        self.kept = nn.Buffer(kept)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        x, y = _rows(student), _rows(teacher)[:, self.kept]
        ours, theirs = x.T @ x, y.T @ y
        return (ours - theirs).square().sum() / theirs.square().sum().clamp_min(1e-12)


FEATURES: dict[str, Callable[[Tensor, Tensor, Tensor], nn.Module]] = {
    "mse": Adaptor,
    "alignment": Alignment,
    "similarity": Similarity,
    "gram": Gram,
}


class Features(nn.Module):
    """The weighted distances at every tap, and what is trained along with the student for them.

    kept: {group: the teacher's channels that the student has}; student, teacher: the features of one batch, as
    `watched` gives them, which fix widths and where adaptors start.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        taps: Sequence[Tap],
        kept: Mapping[str, Sequence[int]],
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
    ):
        super().__init__()
        self._terms = [(weight, tap) for weight in weights.values() for tap in taps]
        pairs = {tap: _paired(student, teacher, tap) for tap in taps}
        own = {tap: torch.as_tensor(list(kept[tap.group]), device=pair[0].device) for tap, pair in pairs.items()}
        self.distances = nn.ModuleList(FEATURES[kind](own[tap], *pairs[tap]) for kind in weights for tap in taps)

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """The sum over kinds and taps."""
        pairs = {tap: _paired(student, teacher, tap) for _, tap in self._terms}
        parts = [
            weight * distance(*pairs[tap]) for (weight, tap), distance in zip(self._terms, self.distances, strict=True)
        ]
        return torch.stack(parts).sum()


def _paired(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], tap: Tap) -> tuple[Tensor, Tensor]:
    """Both features as (B, P, C), at the same positions, float32."""
    ours, theirs = (x[tap.module].float().movedim(tap.dim, -1) for x in (student, teacher))
    ours, theirs = (x.reshape(len(x), -1, x.shape[-1]) for x in (ours, theirs))
    most = max(1, MOST_POSITIONS // len(ours))
    if ours.shape[1] > most:
        chosen = torch.randint(ours.shape[1], (most,)).to(ours.device)
        ours, theirs = ours[:, chosen], theirs[:, chosen]
    return ours, theirs


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
