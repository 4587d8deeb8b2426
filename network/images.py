"""Photos as the inputs of an image network: a folder, a zip or one file, resized, cropped and put on its scale."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from network.errors import InputError, ModelReferenceError
from network.reference import import_attribute

__all__ = ["Images", "Preprocess", "open_images"]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
CACHE_BYTES = 1 << 30  # pictures are kept decoded while they fit in this
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, slots=True)
class Preprocess:
    """value = byte / 255 · scale + shift, per channel in RGB order; or a user's own function of a picture.

    unit: 0…1. signed: -1…1. byte: 0…255. imagenet: the mean and standard deviation of ImageNet.
    """

    kind: str
    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)
    custom: Callable[[Image.Image], Tensor] | None = None

    def apply(self, pixels: np.ndarray) -> Tensor:
        """(H, W, C) uint8 → (C, H, W) float32."""
        if self.custom is not None:
            picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
            return self.custom(picture).to(torch.float32)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32) / 255
        return tensor * self._vector(self.scale, tensor) + self._vector(self.shift, tensor)

    def invert(self, tensor: Tensor) -> Tensor:
        """(C, H, W) → 0…1, clipped; a user's own scale is stretched from its least to its greatest value."""
        tensor = tensor.detach().to("cpu", torch.float32)
        if self.custom is not None:
            low, high = tensor.min(), tensor.max()
            return (tensor - low) / (high - low).clamp_min(1e-12)
        return ((tensor - self._vector(self.shift, tensor)) / self._vector(self.scale, tensor)).clamp(0, 1)

    @staticmethod
    def _vector(values: tuple[float, ...], like: Tensor) -> Tensor:
        fits = len(values) == like.shape[0]
        return torch.tensor(values if fits else [sum(values) / len(values)]).reshape(-1, 1, 1)


_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_KINDS = {
    "unit": Preprocess("unit"),
    "signed": Preprocess("signed", (2.0,), (-1.0,)),
    "byte": Preprocess("byte", (255.0,)),
    "imagenet": Preprocess(
        "imagenet",
        tuple(1 / d for d in _DEVIATION),
        tuple(-m / d for m, d in zip(_MEAN, _DEVIATION, strict=True)),
    ),
}


def _preprocess(text: str) -> Preprocess:
    if text in _KINDS:
        return _KINDS[text]
    if ":" not in text:
        raise InputError(f"--preprocess {text!r} is none of {', '.join(_KINDS)}, nor a file.py:callable")
    try:
        custom = import_attribute(text)
    except ModelReferenceError as error:
        raise InputError(f"--preprocess {error}") from error
    if not callable(custom):
        raise InputError(f"--preprocess {text} is not callable; name a function from a PIL image to a tensor")
    return Preprocess(text, custom=custom)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where pictures come from, and those that were decoded already: {name: (H, W, C) uint8}."""

    path: Path
    size: tuple[int, int, int]
    room: int
    decoded: dict[str, np.ndarray]

    def open(self, name: str) -> Image.Image:
        """The picture in the network's mode. Raises InputError, naming the file."""
        try:
            with Image.open(self._stream(name)) as picture:
                return picture.convert(MODES[self.size[0]])
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path}: cannot read the image {name} ({error}); remove or mend it") from error

    def fitted(self, name: str) -> np.ndarray:
        """(H, W, C) uint8: the short side resized to fit, then the centre."""
        if name in self.decoded:
            return self.decoded[name]
        channels, height, width = self.size
        pixels = _pixels(_centre(self.open(name), height, width), channels)
        if len(self.decoded) < self.room:
            self.decoded[name] = pixels
        return pixels

    def _stream(self, name: str) -> Path | io.BytesIO:
        if self.path.is_dir():
            return self.path / name
        if self.path.suffix.lower() == ".zip":
            with zipfile.ZipFile(self.path) as archive:
                return io.BytesIO(archive.read(name))
        return self.path


class Images(Dataset[Tensor]):
    """Pictures of one size. images[i] is (C, H, W) float32, on the scale that the network expects."""

    def __init__(self, source: _Source, names: Sequence[str], preprocess: Preprocess, bgr: bool):
        self.names = tuple(names)
        self.size = source.size
        self._source, self._preprocess, self._bgr = source, preprocess, bgr

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Tensor:
        return self._tensor(self._source.fitted(self.names[i]))

    def crop(self, i: int, generator: torch.Generator) -> Tensor:
        """(C, H, W): a random crop of 35…100 % of the picture's area, resized, mirrored every other time."""
        pixels = self._source.fitted(self.names[i])
        channels, height, width = self.size
        share, left, top, mirror = torch.rand(4, generator=generator).tolist()
        side = (0.35 + 0.65 * share) ** 0.5
        box_width, box_height = max(1, round(width * side)), max(1, round(height * side))
        x, y = round((width - box_width) * left), round((height - box_height) * top)
        picture = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
        part = picture.resize((width, height), Image.Resampling.BILINEAR, (x, y, x + box_width, y + box_height))
        if mirror < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self._tensor(_pixels(part, channels))

    def split(self, fraction: float = 0.1, seed: int = 0) -> tuple[Images, Images]:
        """(train, held out): a random `fraction`, at least one picture, is held out. One picture serves as both."""
        if len(self) == 1:
            return self, self
        held = min(len(self) - 1, max(1, round(len(self) * fraction)))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        return self._of(sorted(order[held:])), self._of(sorted(order[:held]))

    def to_rgb(self, tensor: Tensor) -> np.ndarray:
        """(C, H, W) on the network's scale → (H, W, 3) uint8, for reports."""
        tensor = tensor.flip(0) if self._bgr and tensor.shape[0] == 3 else tensor
        pixels = self._preprocess.invert(tensor)
        pixels = pixels[:3] if pixels.shape[0] >= 3 else pixels[:1].expand(3, -1, -1)
        return (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()

    def _of(self, indices: Sequence[int]) -> Images:
        return Images(self._source, [self.names[i] for i in indices], self._preprocess, self._bgr)

    def _tensor(self, pixels: np.ndarray) -> Tensor:
        tensor = self._preprocess.apply(pixels)
        if tuple(tensor.shape) != self.size:
            raise InputError(
                f"--preprocess {self._preprocess.kind} gave shape {tuple(tensor.shape)}, the network needs {self.size}"
            )
        return tensor.flip(0) if self._bgr else tensor


def open_images(path: str | Path, size: tuple[int, int, int], preprocess: str = "unit", bgr: bool = False) -> Images:
    """Pictures of a folder (searched through), a zip or one file, as inputs of shape (C, H, W).

    preprocess: unit, signed, byte, imagenet or file.py:callable. Pictures stay decoded while they fit in memory.
    Raises InputError for a path that is not there, that holds no picture, or a size that no picture can have.
    """
    path = Path(path)
    if len(size) != 3 or size[0] not in MODES:
        raise InputError(f"--images needs an input of 1, 3 or 4 channels, not {'x'.join(map(str, size))}")
    names = _names(path)
    if not names:
        raise InputError(f"{path} holds no images; give a folder or zip of {', '.join(sorted(SUFFIXES))}")
    channels, height, width = size
    source = _Source(path, (channels, height, width), CACHE_BYTES // (channels * height * width), {})
    return Images(source, names, _preprocess(preprocess), bgr)


def _names(path: Path) -> list[str]:
    if path.is_dir():
        found = [str(each.relative_to(path)) for each in path.rglob("*") if each.suffix.lower() in SUFFIXES]
        return sorted(found)
    if not path.is_file():
        raise InputError(f"there is no folder or file {path}")
    if path.suffix.lower() != ".zip":
        return [path.name]
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [Path(name) for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path} is not a zip that can be read ({error})") from error
    return sorted(str(n) for n in inside if n.suffix.lower() in SUFFIXES and not n.name.startswith("."))


def _centre(picture: Image.Image, height: int, width: int) -> Image.Image:
    scale = max(height / picture.height, width / picture.width)
    fitted = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    if fitted != picture.size:
        picture = picture.resize(fitted, Image.Resampling.BICUBIC)
    left, top = (fitted[0] - width) // 2, (fitted[1] - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _pixels(picture: Image.Image, channels: int) -> np.ndarray:
    return np.array(picture, dtype=np.uint8).reshape(picture.height, picture.width, channels)
