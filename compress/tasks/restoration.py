"""Restoration with ground truth: super-resolution, denoising, low light; crops are cut from pictures of full size."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from compress.imitation import distance, output_scale, tensors
from compress.metrics import fidelity
from compress.tasks.data import matched, scale_of, split
from network.album import Album
from network.errors import InputError
from network.images import MODES, Images
from network.preprocess import preprocess_of
from network.windows import Window, pixels, random_patch

__all__ = ["Denoising", "LowLight", "SuperResolution", "luminance"]

Size = tuple[int, int, int]


def luminance(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) RGB bytes 0…255 → (B, 1, H, W), the Y of ITU-R BT.601 as video has it, 16…235."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=pictures.dtype, device=pictures.device) / 255
    return (pictures * weights[:, None, None]).sum(1, keepdim=True) + 16


class Patches(Dataset):
    """Items (input, target) at the pictures' own resolution: the middle, or, to judge, the whole picture."""

    def __init__(self, task: Restoration, names: Sequence[str], *, whole: bool):
        self._task, self.names, self._whole = task, names, whole

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        name = self.names[index]
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return self._task.item(name, generator, "whole" if self._whole else "middle")

    def crop(self, index: int, generator: torch.Generator) -> tuple[Tensor, Any]:
        """A random patch in one of eight orientations."""
        return self._task.item(self.names[index], generator, "random")


class Restoration:
    """Pictures as they should be, and a way to spoil them.

    Of both sides an item shows the same part: (C, h, w) of the input, `scale` times as much of the target. whole: judge
    on whole pictures, cropped to multiples of `multiple` pixels of the input, as papers do; the network must take any
    size. output: the scale of the network's output, as --preprocess says it (default: the input's).
    """

    scale = 1

    def __init__(
        self,
        album: Album,
        names: Sequence[str],
        size: Size,
        preprocess: str,
        bgr: bool,
        *,
        output: str | None = None,
        whole: bool = False,
        multiple: int = 1,
        heldout: float = 0.1,
        batch_size: int = 16,
    ):
        if size[0] not in MODES:
            raise InputError(f"the network's input has {size[0]} channels; pictures have 1, 3 or 4")
        self._album, self._mode, self._size = album, MODES[size[0]], size[1:]
        self._unit, self.batch_size = multiple * self.scale, batch_size
        self.images = Images(album, names, size, preprocess_of(preprocess, bgr))
        self._true = scale_of(output or preprocess, bgr)
        train, held = split(names, heldout)
        self.train, self.heldout = Patches(self, train, whole=False), Patches(self, held, whole=whole)

    def item(self, name: str, generator: torch.Generator, part: str) -> tuple[Tensor, Any]:
        """The "middle" or a "random" patch of a pair, or the "whole"; `generator` draws the place and the noise."""
        source, target = self.pair(name)
        if part != "whole":
            height, width = self._size
            window = self._window(target, generator if part == "random" else None)
            source = window.cut(source, self._size)
            target = window.cut(target, (self.scale * height, self.scale * width))
        return self.encode(source, generator), self._true.apply(pixels(target))

    def pair(self, name: str) -> tuple[Image.Image, Image.Image]:
        """(input, target), the target `scale` times as large."""
        target = self.prepared(self._album.kept(name, self._mode))
        return target, target

    def prepared(self, picture: Image.Image) -> Image.Image:
        """Enlarged where a patch is larger, and cropped to multiples of the unit."""
        height, width = (self.scale * extent for extent in self._size)
        factor = max(height / picture.height, width / picture.width)
        if factor > 1:
            larger = max(width, round(factor * picture.width)), max(height, round(factor * picture.height))
            picture = picture.resize(larger, Image.Resampling.BICUBIC)
        width, height = (extent // self._unit * self._unit for extent in picture.size)
        return picture.crop((0, 0, width, height))

    def encode(self, source: Image.Image, generator: torch.Generator) -> Tensor:
        """The input as the network sees it."""
        return self.images.preprocess.apply(pixels(source))

    def loss(self, output: Any, target: Any) -> Tensor:
        """L1 in units of the target's mean absolute deviation, as imitation counts."""
        self._check(output, target)
        return distance(output, target, output_scale(target))

    def metrics(self, output: Tensor, target: Any) -> dict[str, Tensor]:
        """PSNR in dB and SSIM to the true picture, both in bytes: (B,)."""
        self._check(output, target)
        return fidelity(self.in_bytes(output), self.in_bytes(target), "true_", peak=255.0)

    def _check(self, output: Any, target: Tensor) -> None:
        """Raises InputError where the network's pictures are not of the target's size."""
        made, true = (tuple(tensors(x)[0].shape[1:]) for x in (output, target))
        if made != true:
            raise InputError(
                f"the network makes {'x'.join(map(str, made))} where the task, of scale {self.scale}, has "
                f"{'x'.join(map(str, true))}; give the network's own scale in --task-args"
            )

    def in_bytes(self, x: Tensor) -> Tensor:
        """(B, C, H, W) on the output's scale → whole numbers 0…255, as RGB."""
        return (255 * self._true.invert(x)).round()

    def _window(self, target: Image.Image, generator: torch.Generator | None) -> Window:
        height, width = (self.scale * extent for extent in self._size)
        if generator is not None:
            return random_patch(generator, target, (height, width), self.scale)
        left = (target.width - width) // (2 * self.scale) * self.scale
        top = (target.height - height) // (2 * self.scale) * self.scale
        return Window(left / target.width, top / target.height, width / target.width, height / target.height)


class SuperResolution(Restoration):
    """Sharp pictures of a folder or zip; the network's input is `scale` times smaller, by Pillow's bicubic filter.

    Reports PSNR and SSIM of the luminance without a border of `scale` pixels, as papers do, beside those of all
    channels. options: those of `Restoration`.
    """

    def __init__(
        self, folder: str, size: Size, preprocess: str = "unit", bgr: bool = False, *, scale: int = 2, **options: Any
    ):
        album, self.scale = Album(folder), scale
        super().__init__(album, album.names, size, preprocess, bgr, **options)

    def pair(self, name: str) -> tuple[Image.Image, Image.Image]:
        """The picture made smaller as a whole, so that patches know what lies beside them; and the picture."""
        _, target = super().pair(name)
        smaller = target.width // self.scale, target.height // self.scale
        return self._album.remembered((name, "small"), lambda: target.resize(smaller, Image.Resampling.BICUBIC)), target

    def metrics(self, output: Tensor, target: Any) -> dict[str, Tensor]:
        """PSNR and SSIM to the true picture: of all channels, and of Y without the border."""
        found = super().metrics(output, target)
        ours, true = (self._luminance(x) for x in (output, target))
        return found | fidelity(ours, true, "y_", peak=255.0)

    def _luminance(self, x: Tensor) -> Tensor:
        picture, border = self.in_bytes(x), slice(self.scale, -self.scale)
        return (picture if picture.shape[1] == 1 else luminance(picture[:, :3]))[..., border, border]


class Denoising(Restoration):
    """Clean pictures of a folder or zip; the network's input has Gaussian noise of `sigma` bytes, and is not clipped.

    predicts: "clean" or "noise", what the network's output is. Held-out noise is the same every time.
    options: those of `Restoration`.
    """

    def __init__(
        self,
        folder: str,
        size: Size,
        preprocess: str = "unit",
        bgr: bool = False,
        *,
        sigma: float = 25.0,
        predicts: str = "clean",
        **options: Any,
    ):
        if predicts not in ("clean", "noise"):
            raise InputError(f"predicts {predicts!r} is neither 'clean' nor 'noise'; say what the network's output is")
        album, self._sigma, self._noise = Album(folder), sigma, predicts == "noise"
        super().__init__(album, album.names, size, preprocess, bgr, **options)
        if self.images.preprocess.custom is not None:
            raise InputError(f"--preprocess {preprocess} takes no noise; name unit, signed, byte or imagenet")

    def item(self, name: str, generator: torch.Generator, part: str) -> tuple[Tensor, Any]:
        """The noisy and the clean patch; where the network predicts noise the target is (clean, noisy)."""
        noisy, clean = super().item(name, generator, part)
        return (noisy, (clean, noisy)) if self._noise else (noisy, clean)

    def encode(self, source: Image.Image, generator: torch.Generator) -> Tensor:
        """With noise, on the network's scale."""
        clean = torch.from_numpy(pixels(source)).movedim(2, 0).float() / 255
        noise = torch.randn(clean.shape, generator=generator)
        return self.images.preprocess.scaled(clean + self._sigma / 255 * noise)

    def loss(self, output: Any, target: Any) -> Tensor:
        """L1 to the clean picture, or to the noise."""
        if self._noise:
            clean, noisy = target
            return super().loss(output, noisy - clean)
        return super().loss(output, target)

    def metrics(self, output: Tensor, target: Any) -> dict[str, Tensor]:
        """PSNR in dB and SSIM to the clean picture, (B,)."""
        if self._noise:
            clean, noisy = target
            return super().metrics(noisy - output, clean)
        return super().metrics(output, target)


class LowLight(Restoration):
    """Pairs of a dark and a well lit picture of the same size, of equal names in two folders or zips.

    options: those of `Restoration`.
    """

    def __init__(
        self, inputs: str, targets: str, size: Size, preprocess: str = "unit", bgr: bool = False, **options: Any
    ):
        self._dark, lit = Album(inputs), Album(targets)
        self._partner = {target: source for source, target in matched(self._dark.names, lit.names)}
        super().__init__(lit, list(self._partner), size, preprocess, bgr, **options)

    def pair(self, name: str) -> tuple[Image.Image, Image.Image]:
        """Raises InputError for a pair of different sizes."""
        lit, dark = self._album.kept(name, self._mode), self._dark.kept(self._partner[name], self._mode)
        if lit.size != dark.size:
            raise InputError(f"{name} is {lit.size} and its dark partner {dark.size}; both must have one size")
        return self.prepared(dark), self.prepared(lit)
