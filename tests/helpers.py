"""What the tests share: named tolerances, small networks of every kind, and the packages' quirks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.checks import calibrated

EXACT = 1e-10  # relative, float64: only the order of summation differs
FP64 = 1e-8  # relative, float64: after a solve or a factorisation
FP32 = 1e-4  # relative, float32: accumulated rounding of a deep network
DATA = Path(os.environ.get("NARROWGAUGE_DATA") or Path(__file__).parents[2] / "shared" / "data")


def need_data(name: str) -> Path:
    """The path of one file of the test data; skips the test, saying why, where it is absent."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent; set NARROWGAUGE_DATA to the folder of test data")
    return path


def denormals(model: nn.Module) -> int:
    """How many entries of the parameters are not 0 and yet below the smallest normal number of single precision."""
    return sum(int(((p != 0) & (p.abs() < 2.0**-126)).sum()) for p in model.parameters())


class Block(nn.Module):
    """conv, norm, relu, conv, norm, plus the input."""

    def __init__(self, width: int, norm: type[nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x))))))


class Residual(nn.Module):
    """Two residual blocks, a strided shortcut between them, pooling and a linear classifier."""

    def __init__(self, width: int = 8, classes: int = 5):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.block1 = Block(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(width, 2 * width, 1, stride=2)
        self.block2 = Block(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(torch.relu(self.stem(x)))
        x = self.block2(torch.relu(self.down(x) + self.shortcut(x)))
        return self.head(x.mean(dim=(2, 3)))


class UNet(nn.Module):
    """Two scales, skip connections by concatenation, transposed convolutions; an image goes in and comes out."""

    def __init__(self, width: int = 8, channels: int = 3):
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down1 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.down1_norm = nn.BatchNorm2d(2 * width)
        self.down2 = nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1)
        self.up2_norm = nn.BatchNorm2d(2 * width)
        self.up1 = nn.ConvTranspose2d(4 * width, width, 4, stride=2, padding=1)
        self.leave = nn.Conv2d(2 * width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = functional.leaky_relu(self.enter(x), 0.2)
        b = functional.leaky_relu(self.down1_norm(self.down1(a)), 0.2)
        c = functional.leaky_relu(self.down2(b), 0.2)
        b = torch.cat([functional.relu(self.up2_norm(self.up2(c))), b], dim=1)
        a = torch.cat([functional.relu(self.up1(b)), a], dim=1)
        return torch.tanh(self.leave(a))


class Mobile(nn.Module):
    """Inverted bottlenecks: expand, depthwise, project, with a squeeze-and-excite gate."""

    def __init__(self, width: int = 8, classes: int = 5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(width, 3 * width, 1), nn.BatchNorm2d(3 * width), nn.ReLU6())
        self.depthwise = nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width)
        self.squeeze = nn.Conv2d(3 * width, width // 2, 1)
        self.excite = nn.Conv2d(width // 2, 3 * width, 1)
        self.project = nn.Sequential(nn.Conv2d(3 * width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = functional.relu6(self.depthwise(self.expand(x)))
        gate = functional.adaptive_avg_pool2d(y, 1)
        y = y * torch.sigmoid(self.excite(functional.relu(self.squeeze(gate))))
        x = x + self.project(y)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Classifier(nn.Module):
    """Convolutions flattened into linear layers."""

    def __init__(self, width: int = 8, classes: int = 5, size: int = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.hidden = nn.Linear(2 * width * (size // 4) ** 2, 4 * width)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.head(functional.relu(self.hidden(x.flatten(1))))


class PlainInstanceNorm(nn.Module):
    """Instance norm written by hand, as in many released generators: (x - mean) / (std + 1e-9) · scale + shift."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width, 1, 1) + 0.5)
        self.shift = nn.Parameter(torch.randn(width, 1, 1) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True)
        std = x.std(dim=(2, 3), keepdim=True, unbiased=False)
        return (x - mean) / (std + 1e-9) * self.scale + self.shift


class GeneratorBlock(nn.Module):
    """Reflection padding and hand-written norms round a residual sum."""

    def __init__(self, width: int):
        super().__init__()
        self.pad = nn.ReflectionPad2d(1)
        self.conv1 = nn.Conv2d(width, width, 3)
        self.norm1 = PlainInstanceNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3)
        self.norm2 = PlainInstanceNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(self.pad(functional.relu(self.norm1(self.conv1(self.pad(x)))))))


class Generator(nn.Module):
    """A ResNet generator: reflection pads, instance norms, residual blocks, a transposed convolution."""

    def __init__(self, width: int = 8, blocks: int = 2):
        super().__init__()
        self.enter = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width, affine=True))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.down_norm = nn.InstanceNorm2d(2 * width)
        self.blocks = nn.Sequential(*(GeneratorBlock(2 * width) for _ in range(blocks)))
        self.up = nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1)
        self.leave = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.enter(x))
        x = self.blocks(functional.relu(self.down_norm(self.down(x))))
        return self.leave(functional.relu(self.up(x)))


def _seeded(build: Callable[[], nn.Module], shape: tuple[int, ...], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return calibrated(build(), shape, seed=seed)


IMAGE = (1, 3, 16, 16)  # the input of every small network


def residual(width: int = 8, seed: int = 0) -> nn.Module:
    """A small residual classifier: (1, 3, 16, 16) → (1, 5)."""
    return _seeded(lambda: Residual(width), IMAGE, seed)


def unet(width: int = 8, seed: int = 0) -> nn.Module:
    """A small U-Net: (1, 3, 16, 16) → (1, 3, 16, 16)."""
    return _seeded(lambda: UNet(width), IMAGE, seed)


def mobile(width: int = 8, seed: int = 0) -> nn.Module:
    """A small depthwise network with squeeze-and-excite: (1, 3, 16, 16) → (1, 5)."""
    return _seeded(lambda: Mobile(width), IMAGE, seed)


def classifier(width: int = 8, seed: int = 0) -> nn.Module:
    """Convolutions flattened into linear layers: (1, 3, 16, 16) → (1, 5)."""
    return _seeded(lambda: Classifier(width), IMAGE, seed)


def generator(width: int = 8, blocks: int = 2, seed: int = 0) -> nn.Module:
    """A small image-to-image generator: (1, 3, 16, 16) → (1, 3, 16, 16)."""
    return _seeded(lambda: Generator(width, blocks), IMAGE, seed)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "residual": residual,
    "unet": unet,
    "mobile": mobile,
    "classifier": classifier,
    "generator": generator,
}
