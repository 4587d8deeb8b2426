"""Where the real weights and images lie: $NARROWGAUGE_DATA, else ../shared/data beside the project."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import network
from latency import Device, LatencyTable, open_table, profile
from network import Network
from network.errors import InputError
from search.task import Imitation, Task

__all__ = ["PHOTOS", "CifarTask", "data_folder", "loaded", "photos", "profiled"]

PHOTOS = "imagenet_sample_800.zip"
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def data_folder() -> Path:
    """The data folder. Raises InputError, which says how to name another."""
    folder = Path(os.environ.get("NARROWGAUGE_DATA") or Path(__file__).parents[1].parent / "shared" / "data")
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; set NARROWGAUGE_DATA to the folder of weights and images")
    return folder


def photos(
    shape: tuple[int, ...], preprocess: str, *, bgr: bool = False, file: str = PHOTOS, heldout: float = 0.1
) -> Task:
    """Photos of this file without labels, for a network whose input is (1, C, H, W) = shape; a share is held out."""
    images = network.open_images(data_folder() / "images" / file, shape[1:], preprocess, bgr=bgr)
    return Imitation(images, heldout=heldout)


def loaded(
    build: Callable[[], nn.Module], weights: str, shape: tuple[int, ...]
) -> tuple[nn.Module, Network, tuple[Tensor, ...]]:
    """A network with its public weights, traced, and its example inputs."""
    model = build().eval()
    network.load_weights(model, data_folder() / "weights" / weights)
    example = network.example_inputs([shape])
    return model, network.trace(model, example), example


def profiled(
    model: nn.Module, net: Network, example: tuple[Tensor, ...], device: Device, options: argparse.Namespace
) -> LatencyTable:
    """The table in the store `options.profiles`, with `options.configurations` networks measured if it lacks them."""
    profile(model, net, example, device, options.profiles, configurations=options.configurations)
    where = {"runtime": device.runtime, "precision": device.precision, "threads": device.threads}
    return open_table(options.profiles, net, device=device.machine, **where)


class Cifar(Dataset):
    """CIFAR-10 as stored JPEG bytes: (image of shape (3, 32, 32), class index)."""

    def __init__(self, split: str, limit: int | None = None, augment: bool = False):
        path = data_folder() / "images" / f"cifar10_{split}_jpegbytes.npz"
        if not path.exists():
            raise InputError(f"{path} does not exist; set NARROWGAUGE_DATA to a folder that has it")
        with np.load(path) as stored:
            blob, offsets, labels = stored["blob"], stored["offsets"], stored["labels"]
        count = len(labels) if limit is None else limit
        pictures = [Image.open(io.BytesIO(blob[offsets[k] : offsets[k + 1]].tobytes())) for k in range(count)]
        self.pixels = torch.from_numpy(np.stack([np.asarray(each.convert("RGB")) for each in pictures]))
        self.labels = torch.from_numpy(labels[:count].astype(np.int64))
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = (self.pixels[index].permute(2, 0, 1) / 255 - MEAN) / STD
        if self.augment:
            top, left, flip = (int(v) for v in (torch.randint(9, ()), torch.randint(9, ()), torch.randint(2, ())))
            image = F.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
            image = image.flip(-1) if flip else image
        return image, self.labels[index]


class CifarTask:
    """CIFAR-10 classification with labels, the way a user would write it for `--task`."""

    batch_size = 128

    def __init__(self) -> None:
        self.train = Cifar("train", augment=True)
        self.heldout = Cifar("test")

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (output.argmax(1) == target).float()}
