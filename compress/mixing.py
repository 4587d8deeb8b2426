"""Mixed pictures for classifiers: the teacher sees what the student sees, so any mixture has a right answer.

Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", CVPR 2022, mix aggressively; mixup is
Zhang et al., ICLR 2018, CutMix is Yun et al., ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Mixture", "mixed"]

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
