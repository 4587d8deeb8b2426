"""Photos as the inputs of an image network: a folder, a zip or one file, resized, cropped and put on its scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from network.album import CACHE_BYTES, Album
from network.errors import InputError
from network.preprocess import Preprocess, preprocess_of
from network.windows import as_picture, centre, extrapolate, pixels, random_window

__all__ = ["MODES", "Crops", "Images", "open_images"]

MODES = {1: "L", 3: "RGB", 4: "RGBA"}

CROPS, HELD_CROPS = 1024, 48
"""How many crops of a single picture count as its training items, and how many others judge."""


class Images(Dataset[Tensor]):
    """Pictures of one size. images[i] is (C, H, W) float32, on the scale that the network expects."""

    def __init__(self, album: Album, names: Sequence[str], size: tuple[int, int, int], preprocess: Preprocess):
        self.names, self.size = tuple(names), size
        self._album, self.preprocess = album, preprocess
        self._fitted: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Tensor:
        return self.tensor(pixels(self.fitted(self.names[i])))

    def crop(self, i: int, generator: torch.Generator, least: float = 0.35) -> Tensor:
        """(C, H, W): a random crop of `least`…1 of the picture's area, resized, mirrored every other time."""
        return self.tensor(pixels(random_window(generator, least).cut(self.fitted(self.names[i]), self.size[1:])))

    def split(self, fraction: float = 0.1, seed: int = 0) -> tuple[Images, Images] | tuple[Crops, Crops]:
        """(train, held out): a random `fraction`, at least one picture, is held out. One picture becomes `Crops`."""
        if len(self) == 1:
            return Crops(self, CROPS, seed), Crops(self, HELD_CROPS, seed + 1, strong=False)
        held = min(len(self) - 1, max(1, round(len(self) * fraction)))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        parts = sorted(order[held:]), sorted(order[:held])
        train, heldout = ([self.names[i] for i in part] for part in parts)
        return self.of(train), self.of(heldout)

    def to_rgb(self, tensor: Tensor) -> np.ndarray:
        """(C, H, W) on the network's scale → (H, W, 3) uint8, for reports."""
        shown = self.preprocess.invert(tensor)
        shown = shown[:3] if shown.shape[0] >= 3 else shown[:1].expand(3, -1, -1)
        return (shown * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()

    def of(self, names: Sequence[str]) -> Images:
        """Some of the pictures."""
        return Images(self._album, names, self.size, self.preprocess)

    def picture(self, i: int) -> Image.Image:
        """The whole picture, in the network's mode."""
        return self._album.kept(self.names[i], MODES[self.size[0]])

    def fitted(self, name: str) -> Image.Image:
        """The picture at the network's size: the short side resized to fit, then the centre."""
        if name not in self._fitted:
            found = pixels(centre(self._album.open(name, MODES[self.size[0]]), *self.size[1:]))
            if (len(self._fitted) + 1) * found.nbytes > CACHE_BYTES:
                return as_picture(found)
            self._fitted[name] = found
        return as_picture(self._fitted[name])

    def tensor(self, values: np.ndarray) -> Tensor:
        """(H, W, C) uint8 → (C, H, W) float32, on the network's scale."""
        tensor = self.preprocess.apply(values)
        if tuple(tensor.shape) != self.size:
            raise InputError(
                f"--preprocess {self.preprocess.kind} gave shape {tuple(tensor.shape)}, the network needs {self.size}"
            )
        return tensor


class Crops(Dataset[Tensor]):
    """One picture as a data set: `count` fixed crops of it, and any number of random ones.

    `strong` ones are also turned and have their colours changed (`network.windows.extrapolate`); the others, which
    judge, are crops and mirrors alone. A student that sees enough of them learns its teacher's function well beyond the
    picture: Asano & Saeed, "Extrapolating from a single image to a thousand classes using distillation", ICLR 2023.
    """

    def __init__(self, images: Images, count: int, seed: int, *, strong: bool = True):
        self.images, self.size = images, images.size
        self._count, self._seed, self._strong = count, seed, strong
        self.to_rgb = images.to_rgb

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Tensor:
        key = int(np.random.SeedSequence((self._seed, i)).generate_state(1)[0])
        return self.crop(i, torch.Generator().manual_seed(key))

    def crop(self, i: int, generator: torch.Generator) -> Tensor:
        """(C, H, W): a crop that the generator alone decides."""
        part = extrapolate(self.images.picture(0), self.size[1:], generator, strong=self._strong)
        return self.images.tensor(pixels(part))


def open_images(path: str | Path, size: tuple[int, int, int], preprocess: str = "unit", bgr: bool = False) -> Images:
    """Pictures of a folder (searched through), a zip or one file, as inputs of shape (C, H, W).

    preprocess: unit, signed, byte, imagenet or file.py:callable. Pictures stay decoded while they fit in memory.
    Raises InputError for a path that is not there, that holds no picture, or a size that no picture can have.
    """
    if len(size) != 3 or size[0] not in MODES:
        raise InputError(f"--images needs an input of 1, 3 or 4 channels, not {'x'.join(map(str, size))}")
    album = Album(path)
    return Images(album, album.names, size, preprocess_of(preprocess, bgr))
