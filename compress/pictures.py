"""Side-by-side pictures for the report: what goes in, and what each stage's network makes of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from compress.batches import forward
from compress.imitation import tensors
from compress.metrics import Examiner, psnr
from network.modes import evaluating

__all__ = ["SHOWN", "Picture", "rows"]

SHOWN = 4
PALETTE = np.array(
    [[31, 41, 51], [15, 110, 132], [226, 160, 73], [194, 112, 61], [120, 160, 190], [150, 80, 120], [90, 140, 80]],
    dtype=np.uint8,
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG as a data URI, with the stage that made it and its distance to the original's picture in dB."""

    stage: str
    uri: str
    psnr_db: float | None


def rows(task: Any, examiner: Examiner, models: Mapping[str, nn.Module]) -> list[list[Picture]]:
    """For each of a few held-out items the input and every network's output; empty where outputs are no pictures."""
    inputs, _ = examiner.samples(SHOWN)
    outputs = {name: _output(model, inputs) for name, model in models.items()}
    reference = outputs["original"]
    if reference.dim() != 4:
        return []
    show = _renderer(task, inputs[0], reference)
    peak = max(float(reference.max() - reference.min()), 1e-12)
    scores = {name: psnr(output, reference, peak) for name, output in outputs.items()}
    found = []
    for item in range(len(reference)):
        row = [Picture("input", _png(_input(task, inputs[0][item])), None)] if inputs[0].dim() == 4 else []
        for name, output in outputs.items():
            score = None if name == "original" else float(scores[name][item])
            row.append(Picture(name, _png(show(output[item])), score))
        found.append(row)
    return found


def _output(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    device = next(iter(model.parameters())).device
    with torch.no_grad(), evaluating(model):
        return tensors(forward(model, tuple(x.to(device) for x in inputs)))[0].cpu()


def _to_rgb(task: Any) -> Callable[[Tensor], np.ndarray] | None:
    """The inverse of the task's preprocessing, where its images know it."""
    return getattr(getattr(task, "images", None), "to_rgb", None)


def _input(task: Any, x: Tensor) -> np.ndarray:
    to_rgb = _to_rgb(task)
    if to_rgb is not None and len(x) == 3:
        return to_rgb(x.cpu())
    return _map(x.cpu()) if len(x) not in (1, 3) else _stretch(x.cpu(), float(x.min()), float(x.max()))


def _renderer(task: Any, inputs: Tensor, reference: Tensor) -> Callable[[Tensor], np.ndarray]:
    """How this network's outputs are shown: as photos when they live in the photos' range, else stretched by the
    original's range; more than three channels as a map of the strongest.
    """
    channels = reference.shape[1]
    if channels not in (1, 3):
        return _map
    low, high = float(reference.min()), float(reference.max())
    bottom, top = float(inputs.min()), float(inputs.max())
    slack = 0.15 * (top - bottom)
    to_rgb = _to_rgb(task)
    alike = bottom - slack <= low and high <= top + slack and high - low >= 0.3 * (top - bottom)
    if to_rgb is not None and channels == 3 and alike:
        return to_rgb
    return lambda x: _stretch(x, low, high)


def _map(x: Tensor) -> np.ndarray:
    """(C, H, W) → the strongest channel's colour, (H, W, 3)."""
    return PALETTE[x.argmax(0).numpy() % len(PALETTE)]


def _stretch(x: Tensor, low: float, high: float) -> np.ndarray:
    values = ((x - low) / max(high - low, 1e-12)).clamp(0, 1).mul(255).round().byte().movedim(0, -1).numpy()
    return values if values.shape[-1] == 3 else values[..., 0]


def _png(values: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
