"""Tasks that many networks have, for `--task compress.tasks:NAME --task-args JSON`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from network.lazy import lazily

if TYPE_CHECKING:
    from compress.tasks.classification import Classification
    from compress.tasks.restoration import Denoising, LowLight, SuperResolution
    from compress.tasks.translation import PairedTranslation, UnpairedTranslation

__all__ = [
    "Classification",
    "Denoising",
    "LowLight",
    "PairedTranslation",
    "SuperResolution",
    "UnpairedTranslation",
]

__getattr__ = lazily(
    __name__,
    {
        "classification": ("Classification",),
        "restoration": ("Denoising", "LowLight", "SuperResolution"),
        "translation": ("PairedTranslation", "UnpairedTranslation"),
    },
)
