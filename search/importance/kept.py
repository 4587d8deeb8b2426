"""Importance that was measured before, on disk: another budget costs seconds, and a killed search goes on."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from network.errors import StoreError
from network.files import write_atomically
from network.seeding import seeded
from network.types import Network
from search.task import Task
from search.weights import weights_sha256

__all__ = ["Kept", "default_folder", "identity"]

VERSION = 1
"""Of how importance is measured: raised when the same measurement would come to something else."""

SEEN = 8
"""Items of the training data, spread evenly over it, that say which data it is; beside their number."""

MOST_FILES = 64
"""Of importance that is kept; the oldest go."""


def default_folder() -> Path:
    """Where importance is kept: $NARROWGAUGE_CACHE, else the platform's user cache folder."""
    return Path(os.environ.get("NARROWGAUGE_CACHE") or platformdirs.user_cache_path("narrowgauge")) / "importance"


class Kept:
    """Arrays (width,) float64 by group, in one JSON file of the folder; `found` are those that were kept before.

    A file that cannot be read counts as empty. Where nothing can be written nothing is kept, and nothing fails.
    """

    def __init__(self, folder: Path, key: str):
        self._path = folder / f"{key[:32]}.json"
        self.found: dict[str, np.ndarray] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            document = json.loads(self._path.read_text())
            self.found = {str(name): np.array(values, dtype=np.float64) for name, values in document.items()}
            os.utime(self._path)

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        """Keep these too."""
        self.found |= values
        with suppress(StoreError):
            document = {name: [float(x) for x in each] for name, each in self.found.items()}
            write_atomically(self._path, json.dumps(document).encode())
        self._forget_the_oldest()

    def _forget_the_oldest(self) -> None:
        with suppress(OSError):
            files = sorted(self._path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in files[MOST_FILES:]:
                path.unlink()


def identity(
    kind: str, model: nn.Module, net: Network, task: Task, batches: int, told: Sequence[str | None] = ()
) -> str:
    """Digest of what importance is measured on: network and weights, the data, and the files that the classes are from.

    Of the data count the number of items and SEEN of them; of modules and the task their plain attributes too, as a
    slope or the weight of a loss. told: what else decides, such as the words of a command.
    """
    count = len(task.train)  # type: ignore[arg-type]
    parts = [*model.modules(), task, task.train]
    about = [VERSION, kind, list(told), torch.__version__, weights_sha256(model), batches, task.batch_size, count]
    about += [str(model), *([asdict(part) for part in parts] for parts in (net.layers, net.groups))]
    about += [*map(_plain, parts), *sorted(_sources(parts))]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    with seeded(0):
        for index in sorted({number * count // SEEN for number in range(SEEN)} if count else ()):
            for leaf in pytree.tree_leaves(task.train[index]):
                digest.update(_bytes(leaf))
    return digest.hexdigest()


def _plain(part: Any) -> dict[str, str]:
    """The attributes of an object that are plain values."""
    return {name: repr(value) for name, value in getattr(part, "__dict__", {}).items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _sources(parts: Iterable[Any]) -> set[str]:
    """The text of the files that define these objects' classes, as far as it can be seen: what forward and loss do."""
    kinds = {kind for part in parts for kind in type(part).__mro__}
    found = set()
    for kind in (kind for kind in kinds if kind.__module__.partition(".")[0] not in ("torch", "builtins", "typing")):
        with suppress(OSError, TypeError):
            found.add(inspect.getsource(sys.modules[kind.__module__]))
    return found


def _bytes(leaf: Any) -> bytes:
    if isinstance(leaf, Tensor):
        return leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return repr(leaf).encode()
