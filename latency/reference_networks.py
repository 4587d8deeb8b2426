"""The built-in networks that `profile-device` measures when it is given none, so that common layers are known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

__all__ = ["REFERENCES"]


def _conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """x + body(x), with a projection where the shape changes, then ReLU."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(x) + self.body(x))


def _without_last_relu(*blocks: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*blocks[:-1], *list(blocks[-1])[:-1])


def _stage(c_in: int, c_out: int, stride: int, bottleneck: bool) -> nn.Module:
    inner = c_out // 4 if bottleneck else c_out
    bodies = [_conv(c_in, inner, 1), _conv(inner, inner, 3, stride), _conv(inner, c_out, 1)] if bottleneck else []
    body = _without_last_relu(*(bodies or [_conv(c_in, c_out, 3, stride), _conv(c_out, c_out)]))
    same = stride == 1 and c_in == c_out
    return Residual(body, None if same else _without_last_relu(_conv(c_in, c_out, 1, stride)))


def resnet(bottleneck: bool, width: int = 64) -> nn.Module:
    """ResNet-18's or ResNet-50's kinds of blocks, two per stage (He et al., CVPR 2016)."""
    layers: list[nn.Module] = [_conv(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
    c_in = width
    for stage in range(4):
        c_out = width * 2**stage * (4 if bottleneck else 1)
        for block in range(2):
            layers.append(_stage(c_in, c_out, 2 if stage and not block else 1, bottleneck))
            c_in = c_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, 1000))


class InvertedBottleneck(nn.Module):
    """Expand, depthwise, project (Sandler et al., CVPR 2018)."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int = 6):
        super().__init__()
        inner = c_in * expansion
        project = nn.Sequential(nn.Conv2d(inner, c_out, 1, bias=False), nn.BatchNorm2d(c_out))
        self.body = nn.Sequential(_conv(c_in, inner, 1), _conv(inner, inner, 3, stride, inner), project)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobile() -> nn.Module:
    """MobileNetV2's kinds of blocks."""
    shape = [(32, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 80, 2), (80, 80, 1), (80, 192, 2), (192, 192, 1)]
    blocks = [InvertedBottleneck(*each) for each in shape]
    return nn.Sequential(_conv(3, 32, 3, 2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 1000))


class UNet(nn.Module):
    """Encoder and decoder with skip concatenation (Ronneberger et al., MICCAI 2015)."""

    def __init__(self, width: int = 32, depth: int = 3):
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.first = _conv(3, width)
        self.down = nn.ModuleList(_conv(a, b, 3, 2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.merge = nn.ModuleList(_conv(2 * a, a) for a in widths[:-1])
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = [self.first(x)]
        for down in self.down:
            skips.append(down(skips[-1]))
        y = skips.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            y = merge(torch.cat([up(y), skips.pop()], dim=1))
        return self.last(y)


def _instance(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, padding_mode="reflect")
    return [conv, nn.InstanceNorm2d(c_out, affine=True), nn.ReLU(inplace=True)]


class Skip(nn.Sequential):
    """x + body(x)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


def generator(width: int = 32, blocks: int = 3) -> nn.Module:
    """The ResNet generator of style transfer and CycleGAN (Johnson et al., ECCV 2016)."""
    layers = [*_instance(3, width, 7), *_instance(width, 2 * width, 3, 2), *_instance(2 * width, 4 * width, 3, 2)]
    layers += [Skip(*_instance(4 * width, 4 * width), *_instance(4 * width, 4 * width)[:-1]) for _ in range(blocks)]
    for c_in in (4 * width, 2 * width):
        up = nn.ConvTranspose2d(c_in, c_in // 2, 3, 2, 1, 1)
        layers += [up, nn.InstanceNorm2d(c_in // 2, affine=True), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(width, 3, 7, padding=3, padding_mode="reflect"), nn.Tanh())


REFERENCES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (lambda: resnet(bottleneck=False), (1, 3, 224, 224)),
    "bottleneck": (lambda: resnet(bottleneck=True), (1, 3, 224, 224)),
    "inverted bottleneck": (mobile, (1, 3, 224, 224)),
    "U-Net": (UNet, (1, 3, 256, 256)),
    "ResNet generator": (generator, (1, 3, 256, 256)),
}
"""Name → a builder of the network, and the shape of its input."""
