"""The networks of the benchmarks: those with public weights are written from their descriptions (data/README.md)."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "cartoongan",
    "declare_torchvision_operators",
    "efficientnet_lite0",
    "pix2pix",
    "resnet56",
    "torchvision_network",
]

_declared: list[torch.library.Library] = []


@cache
def declare_torchvision_operators() -> None:
    """Let torchvision import beside a torch that its compiled operators were not built for; else they serve."""
    found = find_spec("torchvision")
    for compiled in Path(found.origin).parent.glob("_C*.so") if found and found.origin else ():
        with suppress(OSError):
            torch.ops.load_library(compiled)
            return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


class SpatialNorm(nn.Module):
    """(x - mean) / (std + 1e-9) · scale + shift, per image and channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        deviation = (x - mean).pow(2).mean((2, 3), keepdim=True).sqrt()
        return (x - mean) / (deviation + 1e-9) * self.scale[:, None, None] + self.shift[:, None, None]


class CartoonGan(nn.Module):
    """Photo → cartoon (Chen et al., CVPR 2018): BGR in [-1, 1] to BGR in [-1, 1]."""

    blocks = tuple(f"{i:02d}" for i in range(4, 12))

    def __init__(self) -> None:
        super().__init__()

        def conv(name: str, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
            padding = kernel // 2
            self.add_module(name, nn.Conv2d(c_in, c_out, kernel, stride, padding, padding_mode="reflect"))

        def norm(name: str, channels: int) -> None:
            self.add_module(name, SpatialNorm(channels))

        conv("conv01_1", 3, 64, 7), norm("in01_1", 64)
        conv("conv02_1", 64, 128, 3, 2), conv("conv02_2", 128, 128), norm("in02_1", 128)
        conv("conv03_1", 128, 256, 3, 2), conv("conv03_2", 256, 256), norm("in03_1", 256)
        for block in self.blocks:
            for half in ("1", "2"):
                conv(f"conv{block}_{half}", 256, 256), norm(f"in{block}_{half}", 256)
        self.deconv01_1 = nn.ConvTranspose2d(256, 128, 3, 2, 1, 1)
        conv("deconv01_2", 128, 128), norm("in12_1", 128)
        self.deconv02_1 = nn.ConvTranspose2d(128, 64, 3, 2, 1, 1)
        conv("deconv02_2", 64, 64), norm("in13_1", 64)
        conv("deconv03_1", 64, 3, 7)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.get_submodule
        x = F.relu(layer("in01_1")(layer("conv01_1")(x)))
        for stage in ("02", "03"):
            x = F.relu(layer(f"in{stage}_1")(layer(f"conv{stage}_2")(layer(f"conv{stage}_1")(x))))
        for block in self.blocks:
            y = F.relu(layer(f"in{block}_1")(layer(f"conv{block}_1")(x)))
            x = layer(f"in{block}_2")(layer(f"conv{block}_2")(y)) + x
        for stage, norm in (("01", "in12_1"), ("02", "in13_1")):
            x = F.relu(layer(norm)(layer(f"deconv{stage}_2")(layer(f"deconv{stage}_1")(x))))
        return torch.tanh(layer("deconv03_1")(x))


class Basic(nn.Module):
    """Two 3×3 convolutions; the shortcut between stages subsamples and pads with zero channels (option A)."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.pad = (c_out - c_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x
        return F.relu(y + shortcut)


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for 32×32 images (He et al., CVPR 2016, section 4.2)."""

    def __init__(self, n: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        c_in = 16
        for stage, c_out in enumerate((16, 32, 64), 1):
            blocks = []
            for block in range(n):
                blocks.append(Basic(c_in, c_out, 2 if stage > 1 and block == 0 else 1))
                c_in = c_out
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in ("layer1", "layer2", "layer3"):
            x = self.get_submodule(stage)(x)
        return self.linear(x.mean((2, 3)))


class Pix2Pix(nn.Module):
    """The U-Net generator of Isola et al., CVPR 2017: eight halvings, eight doublings, each reads its mirror too."""

    def __init__(self, c_in: int = 3, width: int = 64) -> None:
        super().__init__()
        self.widths = tuple(width * min(8, 2**level) for level in range(8))
        ins = (c_in, *self.widths)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c_in, c_out, 4, 2, 1), nn.BatchNorm2d(c_out) if 0 < level < 7 else nn.Identity())
            for level, (c_in, c_out) in enumerate(zip(ins, self.widths, strict=False))
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(self.widths[level] * (1 if level == 7 else 2), ins[level] if level else 3, 4, 2, 1),
                nn.BatchNorm2d(ins[level]) if level else nn.Tanh(),
            )
            for level in reversed(range(8))
        )

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, down in enumerate(self.down):
            x = down(F.leaky_relu(x, 0.2) if level else x)
            skips.append(x)
        x = skips.pop()
        for up in self.up:
            x = up(F.relu(x))
            x = torch.cat([x, skips.pop()], 1) if skips else x
        return x


def cartoongan() -> nn.Module:
    """CartoonGAN; weights `cartoongan_hayao_fp16.pth`, input (N, 3, H, W)."""
    return CartoonGan()


def resnet56() -> nn.Module:
    """ResNet-56; weights `resnet56.pth`, input (N, 3, 32, 32)."""
    return CifarResNet(9)


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 (extra `bench`); weights `efficientnet_lite0_fp16.pth`, input (N, 3, 224, 224)."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


def pix2pix() -> nn.Module:
    """The pix2pix U-Net without weights, input (N, 3, 256, 256)."""
    return Pix2Pix()


def torchvision_network(name: str) -> nn.Module:
    """One of torchvision's networks, without weights."""
    declare_torchvision_operators()
    import torchvision

    return torchvision.models.get_model(name, weights=None)
