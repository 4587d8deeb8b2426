"""From one kind of picture to another: with pairs to learn from (mask → photo), or with two unpaired sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import Dataset

from compress.imitation import distance, output_scale
from compress.metrics import fidelity
from compress.tasks.data import matched, scale_of, split
from network.album import Album
from network.errors import InputError
from network.images import MODES, Images, open_images
from network.preprocess import preprocess_of
from network.windows import Window, centre, pixels, random_window
from search.task import Imitation

__all__ = ["PairedTranslation", "UnpairedTranslation"]

LEAST = 0.5
"""Share of a pair's area that a training crop shows, at least: a mask of less says little."""


class Masks:
    """Pictures whose values are class indices, as (K, H, W) one-hot inputs."""

    def __init__(self, album: Album, classes: int):
        self._album, self._classes = album, classes

    def open(self, name: str) -> Image.Image:
        """Raises InputError for what is no mask."""
        picture = self._album.kept(name)
        if picture.mode not in ("L", "P"):
            raise InputError(f"{name} is {picture.mode}, not a mask of class indices; save it as 8-bit gray or palette")
        return picture

    def cut(self, picture: Image.Image, name: str, size: tuple[int, int], window: Window | None) -> Tensor:
        """Raises InputError for a value that is no class."""
        fitted = centre(picture, *size, Image.Resampling.NEAREST)
        values = np.asarray(window.cut(fitted, size, Image.Resampling.NEAREST) if window else fitted)
        if values.max() >= self._classes:
            raise InputError(f"{name} has the class {values.max()}; the network's input has {self._classes} channels")
        return one_hot(torch.from_numpy(values.astype(np.int64)), self._classes).movedim(2, 0).float()


class Photos:
    """Pictures on a network's scale."""

    def __init__(self, album: Album, images: Images):
        self._album, self._images = album, images

    def open(self, name: str) -> Image.Image:
        """In the mode of the network's channels."""
        return self._album.kept(name, MODES[self._images.size[0]])

    def cut(self, picture: Image.Image, name: str, size: tuple[int, int], window: Window | None) -> Tensor:
        """(C, H, W)."""
        fitted = centre(picture, *size)
        return self._images.tensor(pixels(window.cut(fitted, size) if window else fitted))


class Pairs(Dataset):
    """Items (input, target) of which a training crop shows the same part of both.

    Asking for a pair of different shapes raises InputError.
    """

    def __init__(self, sides: tuple[Masks | Photos, Photos], names: Sequence[tuple[str, str]], size: tuple[int, int]):
        self._sides, self._names, self._size = sides, names, size

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._item(index, None)

    def crop(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The item in a random window, mirrored every other time."""
        return self._item(index, random_window(generator, LEAST))

    def _item(self, index: int, window: Window | None) -> tuple[Tensor, Tensor]:
        names = self._names[index]
        pictures = [side.open(name) for side, name in zip(self._sides, names, strict=True)]
        _check_shapes(names, pictures)
        pair = zip(self._sides, pictures, names, strict=True)
        source, target = (side.cut(picture, name, self._size, window) for side, picture, name in pair)
        return source, target


class PairedTranslation:
    """Pairs of pictures, such as mask → photo: L1 to the target, as pix2pix has beside its discriminator.

    folder: a folder or zip with both, inputs told by `suffix` ("_mask": 1_mask.png → 1.jpg); or inputs and targets: two
    folders or zips with equal names. masks: the inputs are class indices and become one-hot; so it is by default where
    the network's input has neither 1 nor 3 channels. output: the scale of the network's output, as --preprocess says
    it. heldout: the fraction that only judges, where the data has no folder named test or val.
    size, preprocess and bgr: as the network's inputs are; the commands say so.
    Isola et al., "Image-to-image translation with conditional adversarial networks", CVPR 2017.
    """

    conditional = True
    """A discriminator is to see the input beside the output."""

    def __init__(
        self,
        size: tuple[int, int, int],
        preprocess: str = "unit",
        bgr: bool = False,
        *,
        folder: str | None = None,
        suffix: str = "",
        inputs: str | None = None,
        targets: str | None = None,
        masks: bool | None = None,
        output: str = "signed",
        channels: int = 3,
        heldout: float = 0.1,
        batch_size: int = 4,
    ):
        sources, goals = _albums(folder, suffix, inputs, targets)
        pairs = matched(sources.names, goals.names, suffix)
        masks = size[0] not in (1, 3) if masks is None else masks
        self.images = Images(goals, [pair[1] for pair in pairs], (channels, *size[1:]), scale_of(output, bgr))
        inside = None if masks else Images(sources, sources.names, size, preprocess_of(preprocess, bgr))
        source = Masks(sources, size[0]) if inside is None else Photos(sources, inside)
        sides = source, Photos(goals, self.images)
        partner = dict(pairs)
        self.train, self.heldout = (
            Pairs(sides, [(name, partner[name]) for name in part], size[1:]) for part in split(list(partner), heldout)
        )
        self.batch_size = batch_size

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """L1 in units of the target's mean absolute deviation, as imitation counts."""
        return distance(output, target, output_scale(target))

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """PSNR in dB and SSIM to the true picture, (B,)."""
        shown = self.images.preprocess.invert
        return fidelity(shown(output), shown(target), "true_")

    def real(self, target: Tensor) -> Tensor:
        """What a discriminator is to take for real."""
        return target


class Unpaired(Dataset):
    """Items (photo, some picture of the other kind)."""

    def __init__(self, photos: Images, others: Images):
        self._photos, self._others = photos, others

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._photos[index], self._others[index % len(self._others)]

    def crop(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random crop of the photo, and one of any picture of the other kind."""
        other = int(torch.randint(len(self._others), (), generator=generator))
        return self._photos.crop(index, generator), self._others.crop(other, generator)


class UnpairedTranslation(Imitation):
    """Two folders of pictures without pairs, as CycleGAN has: the generator imitates itself, without labels.

    inputs: pictures of the kind that this generator reads; others: of the kind that it makes, which a discriminator may
    take for real. Of a pair of generators each has its own run, with the two folders changed round.
    size, preprocess and bgr: as the network's inputs are; the commands say so. output: the scale of its output.
    Zhu et al., "Unpaired image-to-image translation using cycle-consistent adversarial networks", ICCV 2017.
    """

    conditional = False
    """A discriminator is to see the output alone."""

    def __init__(
        self,
        size: tuple[int, int, int],
        preprocess: str = "unit",
        bgr: bool = False,
        *,
        inputs: str,
        others: str,
        output: str = "signed",
        heldout: float = 0.1,
        batch_size: int = 4,
    ):
        photos, made = open_images(inputs, size, preprocess, bgr), open_images(others, size, output, bgr)
        train, held = (photos.of(names) for names in split(photos.names, heldout))
        real, seen = (made.of(names) for names in split(made.names, heldout))
        self.images, self.batch_size = photos, batch_size
        self.train, self.heldout = Unpaired(train, real), Unpaired(held, seen)

    def real(self, target: Tensor) -> Tensor:
        """What a discriminator is to take for real: (B, C, H, W) of the other kind, on the output's scale."""
        return target


def _check_shapes(names: Sequence[str], pictures: Sequence[Image.Image]) -> None:
    """Raises InputError unless both have the shape of one picture, each side rounded to a pixel."""
    (width, height), (wide, high) = (picture.size for picture in pictures)
    if abs(width * high - height * wide) > max(width + height, wide + high):
        raise InputError(
            f"{names[0]} is {width}x{height} and {names[1]} {wide}x{high}: not of one shape; "
            "both must show the same part of a scene"
        )


def _albums(folder: str | None, suffix: str, inputs: str | None, targets: str | None) -> tuple[Album, Album]:
    if (folder is None) == (inputs is None) or (inputs is None) != (targets is None):
        raise InputError("pairs lie in one folder (folder, suffix) or in two (inputs, targets); give one or the other")
    if folder is not None:
        if not suffix:
            raise InputError(f"which pictures of {folder} are inputs? give the suffix of their names, such as _mask")
        album = Album(folder)
        return album, album
    return Album(str(inputs)), Album(str(targets))
