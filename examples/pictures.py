"""Pictures in rows, in one file: what the examples show of what went in and what came out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["sheet"]


def sheet(rows: Iterable[Iterable[np.ndarray]], path: Path) -> None:
    """Save rows of pictures, (H, W), (H, W, 3) or (H, W, 4) uint8, all of them at the size of the largest."""
    pictures = [[Image.fromarray(each).convert("RGB") for each in row] for row in rows]
    size = max((each.size for row in pictures for each in row), key=lambda size: size[0] * size[1])
    resized = [np.concatenate([np.asarray(each.resize(size)) for each in row], axis=1) for row in pictures]
    Image.fromarray(np.concatenate(resized)).save(path, quality=92, subsampling=0)
