"""Mixed pictures for classifiers: the teacher sees what the student sees, so any mixture has a right answer.

Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", CVPR 2022, mix aggressively; mixup is
Zhang et al., ICLR 2018, CutMix is Yun et al., ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from network.errors import InputError

__all__ = ["Mixture", "check_mixable", "mixed"]

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Mixture:
    """The inputs of a batch mixed with those of `partner` (B,), of which `share` is the item's own."""

    inputs: Inputs
    partner: Tensor
    share: float

    def expected(self, loss: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
        """The loss against the item's own target and its partner's, by their shares."""
        return self.share * loss(target) + (1 - self.share) * loss(target[self.partner])


def check_mixable(kind: str, inputs: Inputs, target: Any) -> None:
    """Raises InputError for a batch that cannot be mixed. target: None where no labels are learned."""
    if kind == "none":
        return
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    if kind == "cutmix" and any(x.dim() != 4 or x.shape[2:] != inputs[0].shape[2:] for x in inputs):
        raise InputError(f"--mix cutmix is for pictures of one size, not inputs of {shapes}; leave it out")
    whole = next((x.dtype for x in inputs if not x.is_floating_point()), None)
    if whole is not None:
        raise InputError(f"--mix {kind} is for inputs of real numbers, not of {whole}; leave it out")
    if target is not None and not isinstance(target, Tensor):
        raise InputError(f"--mix {kind} is for targets of one tensor, not a {type(target).__name__}; leave it out")


def mixed(kind: str, inputs: Inputs) -> Mixture:
    """One mixture for the whole batch: a blend (mixup) or a rectangle of the partner (CutMix), its share uniform.

    inputs: (B, C, H, W) each. Draws from torch's default generator.
    """
    partner, share = torch.randperm(len(inputs[0])), float(torch.rand(()))
    if kind == "mixup":
        return Mixture(tuple(share * x + (1 - share) * x[partner] for x in inputs), partner, share)
    height, width = inputs[0].shape[2:]
    rows, columns = (round(side * (1 - share) ** 0.5) for side in (height, width))
    top, left = int(torch.randint(height - rows + 1, ())), int(torch.randint(width - columns + 1, ()))
    cut = tuple(x.clone() for x in inputs)
    for x, own in zip(cut, inputs, strict=True):
        x[:, :, top : top + rows, left : left + columns] = own[partner, :, top : top + rows, left : left + columns]
    return Mixture(cut, partner, 1 - rows * columns / (height * width))
