"""A judge that learns to tell the student's pictures from real ones, while the student learns to deceive it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from network.errors import InputError

__all__ = ["ADVERSARIES", "Adversary", "PatchGan"]

MOST_LEVELS = 3
CHANNELS = 32
SLOPE = 0.2


class PatchGan(nn.Sequential):
    """Says of every patch whether it is real: 70 x 70 pixels, smaller ones where pictures are small.

    Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017, section 3.2.2, half as
    wide. in_channels: of input and output together; side: the shorter of the picture.
    """

    def __init__(self, in_channels: int, side: int):
        levels = max(1, min(MOST_LEVELS, int(math.log2(max(side, 16))) - 3))
        layers: list[nn.Module] = [nn.Conv2d(in_channels, CHANNELS, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for level in range(1, levels + 1):
            width = CHANNELS * 2**level
            stride = 2 if level < levels else 1
            layers += [nn.Conv2d(width // 2, width, 4, stride, 1), nn.InstanceNorm2d(width), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers, nn.Conv2d(CHANNELS * 2**levels, 1, 4, 1, 1))


def hinge(real: Tensor, fake: Tensor, deceiving: Tensor) -> tuple[Tensor, Tensor]:
    """The judge's loss and the student's. Lim & Ye, "Geometric GAN", 2017."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean(), -deceiving.mean()


def least_squares(real: Tensor, fake: Tensor, deceiving: Tensor) -> tuple[Tensor, Tensor]:
    """The judge's loss and the student's. Mao et al., "Least Squares GAN", ICCV 2017, equation 9."""
    return ((real - 1).square().mean() + fake.square().mean()) / 2, (deceiving - 1).square().mean() / 2


ADVERSARIES: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "hinge": hinge,
    "lsgan": least_squares,
}


class Adversary(nn.Module):
    """The judge, and the loss that trains it and the student in one backward pass.

    The judge's part sees the student's picture cut from its history, the student's part sees a judge whose weights
    are constants: each gradient goes where it belongs, and one optimiser serves both.
    judge: of (input, output) side by side in channels where it takes that, else of the output alone, as also where
    `inputs` is None. weight: of the student's part. Raises InputError for outputs that are no pictures, and for a judge
    that takes neither.
    """

    def __init__(self, kind: str, weight: float, inputs: Tensor | None, output: Tensor, judge: nn.Module | None = None):
        super().__init__()
        if output.dim() != 4:
            raise InputError(
                f"--adversarial is for networks that make pictures, not {tuple(output.shape)}; leave it out"
            )
        self._losses, self._weight = ADVERSARIES[kind], weight
        self._beside = inputs is not None and inputs.dim() == 4 and inputs.shape[2:] == output.shape[2:]
        self.judge = judge or PatchGan(self._shown(inputs, output).shape[1], min(output.shape[2:]))
        self.judge.to(output.device).train()
        if not self._takes(inputs, output):
            self._beside = False
            if not self._takes(inputs, output):
                raise InputError("--discriminator takes neither input and output side by side nor the output alone")

    def forward(self, inputs: Tensor, output: Tensor, real: Tensor) -> Tensor:
        """Both losses, for pictures that the student made of these inputs and the ones that it should have made."""
        constants = {name: p.detach() for name, p in self.judge.named_parameters()}
        deceiving = functional_call(self.judge, constants, (self._shown(inputs, output),))
        real = self.judge(self._shown(inputs, real))
        judges, students = self._losses(real, self.judge(self._shown(inputs, output.detach())), deceiving)
        return judges + self._weight * students

    def _shown(self, inputs: Tensor | None, output: Tensor) -> Tensor:
        if inputs is None or not self._beside:
            return output
        return torch.cat([inputs.to(output.dtype), output], 1)

    def _takes(self, inputs: Tensor | None, output: Tensor) -> bool:
        try:
            with torch.no_grad():
                self.judge(self._shown(inputs, output))
        except RuntimeError:
            return False
        return True
