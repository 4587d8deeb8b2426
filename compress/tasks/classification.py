"""Classification: a folder or zip with a folder of pictures for every class."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from compress.tasks.data import split
from network.errors import InputError
from network.images import Images, open_images

__all__ = ["Classification"]

TOP = 5
TOP_CLASSES = 20
"""The best of TOP guesses is reported too from this many classes on."""


class Labelled(Dataset):
    """Items (picture, class index)."""

    def __init__(self, images: Images, labels: Sequence[int], least: float):
        self.images, self.labels, self._least = images, labels, least

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]

    def crop(self, index: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """The item as a random crop, for training."""
        return self.images.crop(index, generator, self._least), self.labels[index]


class Classification:
    """Pictures in folders of their class; cross-entropy, accuracy.

    folder: a folder or zip, in which a picture's class is the name of the folder that it lies in, or what the first
    group of the regular expression `pattern` matches in its path. classes: their names in the network's order, a list
    or a text file of one per line; without it they are sorted, which asks for as many as the network has outputs, and
    names that are all numbers are the indices.
    heldout: the fraction that only judges, where the data has no folder named test or val. least: the least share of a
    picture's area that a training crop shows.
    size, preprocess and bgr: as the network's inputs are; the commands say so.
    """

    def __init__(
        self,
        folder: str,
        size: tuple[int, int, int],
        preprocess: str = "unit",
        bgr: bool = False,
        *,
        classes: str | Sequence[str] = (),
        pattern: str = r"([^/\\]+)[/\\][^/\\]+$",
        heldout: float = 0.1,
        batch_size: int = 32,
        least: float = 0.35,
    ):
        self.images, self.batch_size = open_images(folder, size, preprocess, bgr), batch_size
        words = _words(self.images.names, pattern, folder)
        numbers = not classes and all(word.isdecimal() for word in words.values())
        order = {} if numbers else _order(words.values(), _listed(classes), folder)
        labels = {name: int(word) if numbers else order[word] for name, word in words.items()}
        self._sorted = 0 if numbers or classes else len(order)
        train, held = split(self.images.names, heldout)
        self.train: Dataset = Labelled(self.images.of(train), [labels[name] for name in train], least)
        self.heldout: Dataset = Labelled(self.images.of(held), [labels[name] for name in held], least)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of class scores (B, K), mean over the batch, in nats."""
        self._check(output, target)
        return F.cross_entropy(output, target)

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Whether the best guess, or one of the best TOP, is right: (B,)."""
        self._check(output, target)
        found = {"accuracy": (output.argmax(1) == target).double()}
        if output.shape[1] >= TOP_CLASSES:
            found[f"accuracy_top{TOP}"] = (output.topk(TOP, 1).indices == target[:, None]).any(1).double()
        return found

    def _check(self, output: Tensor, target: Tensor) -> None:
        """Raises InputError where the classes of the pictures are not the network's."""
        if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
            raise InputError("Classification is for one output of scores, two classes or more; bring your own --task")
        count, last = output.shape[1], int(target.max())
        if self._sorted and self._sorted != count:
            raise InputError(f"pictures of {self._sorted} classes, and {count} outputs; give classes, in their order")
        if last >= count:
            raise InputError(f"a picture is of class {last}, and the network's are 0…{count - 1}; give classes")


def _listed(classes: str | Sequence[str]) -> list[str]:
    if not isinstance(classes, str):
        return list(classes)
    try:
        return Path(classes).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the classes in {classes}: {error}; give a text file, one a line") from error


def _words(names: Sequence[str], pattern: str, folder: str) -> dict[str, str]:
    """What each picture's path says of its class. Raises InputError for one that says nothing."""
    found = {name: re.search(pattern, name) for name in names}
    lost = next((name for name, match in found.items() if match is None), None)
    if lost is not None:
        raise InputError(f"{folder}: {lost} says no class; put it into a folder of its class, or give a pattern")
    return {name: match.group(1) for name, match in found.items() if match is not None}


def _order(words: Collection[str], classes: list[str], folder: str) -> dict[str, int]:
    """The index of each class. Raises InputError for a word that is none."""
    order = {word: index for index, word in enumerate(classes or sorted(set(words)))}
    odd = next((word for word in words if word not in order), None)
    if odd is not None:
        raise InputError(f"{folder} has the class {odd!r}, which the given classes lack; add it or remove its pictures")
    return order
