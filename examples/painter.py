"""A photo → painting generator, trained on the spot: the network that `make demo` compresses.

The target is a slow classical filter (median, posterised tones, dark outlines). The network is an ordinary
ResNet generator, several times wider than the task needs, as released generators are.
"""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

__all__ = ["Painter", "paint", "photos", "train"]

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "ihc.png", "retina.jpg")


def _unit(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, padding_mode="reflect", bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class Block(nn.Module):
    """x + conv(unit(x)), normalised."""

    def __init__(self, width: int):
        super().__init__()
        self.enter = _unit(width, width)
        self.leave = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.leave(self.enter(x)))


class Painter(nn.Module):
    """RGB in [0, 1] to RGB, same size; sides must be multiples of 4."""

    def __init__(self, width: int = 32, blocks: int = 4):
        super().__init__()
        self.enter = _unit(3, width, 7)
        self.down = nn.Sequential(_unit(width, 2 * width, 3, 2), _unit(2 * width, 4 * width, 3, 2))
        self.blocks = nn.Sequential(*(Block(4 * width) for _ in range(blocks)))
        self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(2 * width)
        self.up2 = nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.leave = nn.Conv2d(2 * width, 3, 7, padding=3, padding_mode="reflect")
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor) -> Tensor:
        early = self.enter(x)
        y = self.blocks(self.down(early))
        y = F.relu(self.norm1(self.up1(y)))
        y = F.relu(self.norm2(self.up2(y)))
        return x + self.leave(torch.cat([y, early], dim=1))


def paint(photo: np.ndarray) -> np.ndarray:
    """The classical filter: (H, W, 3) in [0, 1] to the same."""
    flat = ndimage.median_filter(photo, size=(7, 7, 1))
    grey = flat.mean(axis=2)
    tones = np.round(grey * 7) / 7
    flat = flat * ((0.4 * grey + 0.6 * tones) / (grey + 1e-3))[..., None]
    edges = ndimage.gaussian_gradient_magnitude(grey, 1.0)
    return np.clip(flat * (1 - 0.8 * np.clip(8 * edges - 0.3, 0, 1))[..., None], 0, 1).astype(np.float32)


def photos() -> list[tuple[str, np.ndarray]]:
    """The colour photos that scikit-image ships: (name, (H, W, 3) in [0, 1], long side at most 512)."""
    import skimage

    found = []
    for name in NAMES:
        with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
            image = image.convert("RGB")
            image.thumbnail((512, 512), Image.Resampling.LANCZOS)
            found.append((name.partition(".")[0], np.asarray(image, np.float32) / 255))
    return found


def train(weights: Path, *, seconds: float, batch: int = 6, size: int = 128, seed: int = 0) -> float:
    """Train a Painter for about `seconds` on crops of the photos and save it; returns the last mean L1 error."""
    torch.manual_seed(seed)
    pairs = [tuple(torch.from_numpy(each).permute(2, 0, 1) for each in (photo, paint(photo))) for _, photo in photos()]
    model = Painter().to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.Adam(model.parameters(), 1.5e-3)
    start, errors = time.perf_counter(), []
    with tqdm(total=round(seconds), desc="training the painter", unit="s") as bar:
        while (spent := time.perf_counter() - start) < seconds:
            for group in optimiser.param_groups:
                group["lr"] = 1.5e-3 * max(0.02, 1 - spent / seconds)
            inputs, targets = zip(*islice(_crops(pairs, size), batch), strict=True)
            loss = F.l1_loss(model(torch.stack(inputs).to(memory_format=torch.channels_last)), torch.stack(targets))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            errors.append(loss.item())
            bar.set_postfix(l1=f"{np.mean(errors[-20:]):.4f}")
            bar.update(min(round(time.perf_counter() - start), bar.total) - bar.n)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    return float(np.mean(errors[-20:]))


def _crops(pairs: list[tuple[Tensor, ...]], size: int):
    while True:
        photo, target = pairs[int(torch.randint(len(pairs), ()))]
        top, left = (int(torch.randint(extent - size + 1, ())) for extent in photo.shape[1:])
        flip = [2] if torch.rand(()) < 0.5 else []
        yield tuple(each[:, top : top + size, left : left + size].flip(flip) for each in (photo, target))
