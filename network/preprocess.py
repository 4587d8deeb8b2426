"""From bytes to the numbers that a network expects, and back: `--preprocess`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from network.errors import InputError, ModelReferenceError
from network.reference import import_attribute
from network.windows import as_picture

__all__ = ["Preprocess", "preprocess_of"]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """value = byte / 255 · scale + shift, per channel in RGB order; or a user's own function of a picture.

    unit: 0…1. signed: -1…1. byte: 0…255. imagenet: the mean and standard deviation of ImageNet.
    """

    kind: str
    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)
    custom: Callable[[Image.Image], Tensor] | None = None
    bgr: bool = False

    def apply(self, values: np.ndarray) -> Tensor:
        """(H, W, C) uint8 → (C, H, W) float32."""
        if self.custom is not None:
            return self._ordered(self.custom(as_picture(values)).to(torch.float32))
        return self.scaled(torch.from_numpy(values).permute(2, 0, 1).to(torch.float32) / 255)

    def scaled(self, tensor: Tensor) -> Tensor:
        """(…, C, H, W) of 0…1, colours as RGB → the network's scale and order, which a function of pictures has not."""
        return self._ordered(tensor * self._vector(self.scale, tensor) + self._vector(self.shift, tensor))

    def invert(self, tensor: Tensor) -> Tensor:
        """(…, C, H, W) → 0…1, clipped, as RGB; a user's own scale is stretched from its least to its greatest value."""
        tensor = self._ordered(tensor.detach().to("cpu", torch.float32))
        if self.custom is not None:
            low, high = tensor.min(), tensor.max()
            return (tensor - low) / (high - low).clamp_min(1e-12)
        return ((tensor - self._vector(self.shift, tensor)) / self._vector(self.scale, tensor)).clamp(0, 1)

    def _ordered(self, tensor: Tensor) -> Tensor:
        """RGB ↔ BGR where that is asked; a fourth channel stays."""
        channels = tensor.shape[-3]
        return tensor[..., [2, 1, 0, *range(3, channels)], :, :] if self.bgr and channels >= 3 else tensor

    @staticmethod
    def _vector(values: tuple[float, ...], like: Tensor) -> Tensor:
        fits = len(values) == like.shape[-3]
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


def preprocess_of(text: str, bgr: bool = False) -> Preprocess:
    """What --preprocess says: unit, signed, byte, imagenet or file.py:callable. Raises InputError."""
    if text in _KINDS:
        return replace(_KINDS[text], bgr=bgr)
    if ":" not in text:
        raise InputError(f"--preprocess {text!r} is none of {', '.join(_KINDS)}, nor a file.py:callable")
    try:
        custom = import_attribute(text)
    except ModelReferenceError as error:
        raise InputError(f"--preprocess {error}") from error
    if not callable(custom):
        raise InputError(f"--preprocess {text} is not callable; name a function from a PIL image to a tensor")
    return Preprocess(text, custom=custom, bgr=bgr)
