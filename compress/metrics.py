"""Quality on held-out items: fidelity to the original network, and the task's own metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.batches import Batch, forward, held_out
from compress.imitation import distance, is_logits, label_free, output_scale, tensors
from network.modes import evaluating
from search.task import Task

__all__ = ["PSNR_CAP", "SSIM_SIDE", "Examiner", "Verdict", "psnr", "ssim"]

PSNR_CAP = 100.0
"""dB reported for outputs that are equal; JSON has no infinity."""

SSIM_SIDE = 11
"""Pictures smaller than SSIM's window have none."""


def psnr(image: Tensor, reference: Tensor, peak: float) -> Tensor:
    """Peak signal-to-noise ratio of each image, (B,), in dB, at most PSNR_CAP.

    image, reference: (B, C, H, W); peak: the extent of the reference's values.
    """
    error = (image - reference).square().flatten(1).mean(1)
    return (10 * torch.log10(peak**2 / error.clamp_min(1e-30))).clamp_max(PSNR_CAP)


def ssim(image: Tensor, reference: Tensor, peak: float) -> Tensor:
    """Structural similarity of each image, (B,), mean over its channels and the window's valid positions.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, eq. 13, with their
    11×11 Gaussian window of σ = 1.5 and K = (0.01, 0.03).
    image, reference: (B, C, H, W) with H, W ≥ 11.
    """
    channels = image.shape[1]
    line = torch.exp(-torch.arange(-5, 6, device=image.device, dtype=image.dtype).square() / (2 * 1.5**2))
    line = (line / line.sum()).expand(channels, 1, 1, 11)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, line, groups=channels), line.transpose(2, 3), groups=channels)

    mean_x, mean_y = blur(image), blur(reference)
    var_x = blur(image * image) - mean_x.square()
    var_y = blur(reference * reference) - mean_y.square()
    covariance = blur(image * reference) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    score = score / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))
    return score.flatten(1).mean(1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Held-out quality, higher is better but for kl and relative_error; and `error`, which stages are compared by:
    the mean imitation distance to the original, plus the task's own loss where it has one.
    """

    quality: dict[str, float]
    error: float


class Examiner:
    """Judges networks by the same held-out items against the original, whose outputs are computed once.

    `task` brings its held-out items and its metrics. Fidelity comes from the first output tensor: psnr_db and ssim
    for images (the peak is the extent of the original's outputs), agreement and kl for class scores, else
    relative_error.
    """

    def __init__(self, original: nn.Module, task: Task, *, limit: int, batch_size: int, device: str = "cpu"):
        self._task, self._batches = task, list(held_out(task.heldout, limit, batch_size, device))
        with torch.no_grad(), evaluating(original):
            self._reference = [forward(original, inputs) for inputs, _ in self._batches]
        firsts = [tensors(output)[0] for output in self._reference]
        self._peak = max(float(max(x.max() for x in firsts) - min(x.min() for x in firsts)), 1e-12)
        self._scale = output_scale(self._reference[0])
        self.count = sum(len(inputs[0]) for inputs, _ in self._batches)

    def judge(self, model: nn.Module) -> Verdict:
        """Every metric and the error, averaged over the held-out items."""
        sums: dict[str, float] = defaultdict(float)
        error, labelled = 0.0, not label_free(self._task)
        with torch.no_grad(), evaluating(model):
            for batch, reference in zip(self._batches, self._reference, strict=True):
                output = forward(model, batch[0])
                loss = float(distance(output, reference, self._scale))
                loss += float(self._task.loss(output, batch[1])) if labelled else 0.0
                error += loss * len(batch[0][0]) / self.count
                for name, values in self._measure(output, reference, batch).items():
                    sums[name] += float(values.double().sum()) / self.count
        return Verdict(dict(sums), error)

    def samples(self, count: int) -> tuple[tuple[Tensor, ...], Any]:
        """The inputs of the first batch, at most `count` items, for pictures."""
        inputs, target = self._batches[0]
        return tuple(x[:count] for x in inputs), target

    def _measure(self, output: Any, reference: Any, batch: Batch) -> Mapping[str, Tensor]:
        found = dict(self._task.metrics(output, batch[1]))
        return _fidelity(tensors(output)[0], tensors(reference)[0], self._peak) | found


def _fidelity(output: Tensor, reference: Tensor, peak: float) -> dict[str, Tensor]:
    if output.dim() == 4:
        found = {"psnr_db": psnr(output, reference, peak)}
        if min(output.shape[2:]) >= SSIM_SIDE:
            found["ssim"] = ssim(output, reference, peak)
        return found
    if is_logits(output):
        ours, theirs = F.log_softmax(output, dim=1), F.log_softmax(reference, dim=1)
        return {
            "agreement": (output.argmax(1) == reference.argmax(1)).double(),
            "kl": F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1),
        }
    error = (output - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1).clamp_min(1e-12)
    return {"relative_error": error}
