"""Quality on held-out items: fidelity to the original network, and the task's own metrics."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import bootstrap
from torch import Tensor, nn

from compress import perceptual
from compress.batches import Batch, forward, held_out
from compress.imitation import distance, is_logits, label_free, output_scale, tensors
from network.errors import InputError
from network.modes import evaluating
from search.task import Task

__all__ = ["PSNR_CAP", "SSIM_SIDE", "Examiner", "Verdict", "fidelity", "interval", "psnr", "ssim"]

PSNR_CAP = 100.0
"""dB reported for outputs that are equal; JSON has no infinity."""

SSIM_SIDE = 11
"""Pictures smaller than SSIM's window have none."""

RESAMPLES = 1000
"""Of the bootstrap; more would not change the digits that are shown."""


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
    image, reference: (B, C, H, W) with H, W ≥ 11, of 0…peak: its first factor compares brightness with black.
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


def fidelity(found: Tensor, true: Tensor, prefix: str = "", peak: float = 1.0) -> dict[str, Tensor]:
    """PSNR in dB and, where the pictures are large enough, SSIM: (B,) each, of (B, C, H, W) pictures of 0…peak."""
    values = {f"{prefix}psnr_db": psnr(found, true, peak)}
    if min(true.shape[2:]) >= SSIM_SIDE:
        values[f"{prefix}ssim"] = ssim(found, true, peak)
    return values


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of the mean of (N,) values, one an item; None for fewer than two, or no numbers.

    The percentiles of RESAMPLES means of N items drawn with replacement: Efron & Tibshirani, "An introduction to the
    bootstrap", 1993, chapter 13. It says how much the choice of held-out items matters, not the luck of a training.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    found = bootstrap((values,), np.mean, n_resamples=RESAMPLES, batch=100, method="percentile", rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Held-out quality, higher is better but for kl, relative_error, lpips and fid; and `error`, which stages are
    compared by: the mean imitation distance to the original, plus the task's own loss where it has one; infinite where
    that is no number, so that it is worse than any.

    interval: for each metric that is a mean over items, its 95 % bootstrap interval.
    """

    quality: dict[str, float]
    error: float
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)


class Examiner:
    """Judges networks by the same held-out items against the original, whose outputs are computed once.

    `task` brings its held-out items and its metrics. Fidelity comes from the first output tensor: psnr_db and ssim
    for images (the peak is the extent of the original's outputs), agreement and kl for class scores, else
    relative_error; in full also lpips and fid, as far as `absent` does not say why not.
    """

    def __init__(self, original: nn.Module, task: Task, *, limit: int, batch_size: int, device: str = "cpu"):
        self._task, self._batches = task, list(held_out(task.heldout, limit, batch_size, device))
        with torch.no_grad(), evaluating(original):
            self._reference = [forward(original, inputs) for inputs, _ in self._batches]
        firsts = [tensors(output)[0] for output in self._reference]
        self._low = min(float(x.min()) for x in firsts)
        self._peak = max(float(x.max()) for x in firsts) - self._low
        if firsts[0].dim() == 4 and not 0 < self._peak < float("inf"):
            what = "the same everywhere" if self._peak == 0 else "not finite"
            raise InputError(f"the original's pictures are {what}; look at its weights and at --preprocess")
        self._scale = output_scale(self._reference[0])
        self.count = sum(len(inputs[0]) for inputs, _ in self._batches)
        self.absent: tuple[str, ...] = ()
        self._lpips: Callable[[Tensor, Tensor], Tensor] | None = None
        self._features: Callable[[Tensor], Tensor] | None = None
        if all(x.dim() == 4 and x.shape[1] == 3 and min(x.shape[2:]) >= perceptual.LPIPS_SIDE for x in firsts):
            (self._lpips, first), (self._features, second) = perceptual.lpips(), perceptual.inception()
            self.absent = tuple(line for line in (first, second) if line)

    def judge(self, model: nn.Module, *, full: bool = False) -> Verdict:
        """Every metric and the error, averaged over the held-out items; with `full` the slow ones, and intervals."""
        found: dict[str, list[Tensor]] = defaultdict(list)
        error, labelled = 0.0, not label_free(self._task)
        features: list[tuple[Tensor, ...]] = []
        with torch.no_grad(), evaluating(model):
            for batch, reference in zip(self._batches, self._reference, strict=True):
                output = forward(model, batch[0])
                loss = float(distance(output, reference, self._scale))
                loss += float(self._task.loss(output, batch[1])) if labelled else 0.0
                error += loss * len(batch[0][0]) / self.count
                for name, values in self._measure(output, reference, batch).items():
                    found[name].append(values.double().cpu())
                if full:
                    self._look(output, reference, found, features)
        items = {name: torch.cat(parts).numpy() for name, parts in found.items()}
        quality = {name: float(values.mean()) for name, values in items.items()}
        if features and self.count > 1:
            quality["fid"] = perceptual.frechet(*(torch.cat(side) for side in zip(*features, strict=True)))
        between = {name: interval(values) for name, values in items.items()} if full else {}
        error = error if math.isfinite(error) else math.inf
        return Verdict(quality, error, {name: ends for name, ends in between.items() if ends is not None})

    def samples(self, count: int) -> tuple[tuple[Tensor, ...], Any]:
        """The inputs of the first batch, at most `count` items, for pictures."""
        inputs, target = self._batches[0]
        return tuple(x[:count] for x in inputs), target

    def _measure(self, output: Any, reference: Any, batch: Batch) -> Mapping[str, Tensor]:
        found, count = dict(self._task.metrics(output, batch[1])), len(batch[0][0])
        for name, values in found.items():
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            if shape != (count,):
                raise InputError(f"the task's metric {name!r} is {shape}; return a value per item, a tensor ({count},)")
        return _imitation(tensors(output)[0], tensors(reference)[0], self._low, self._peak) | found

    def _look(
        self, output: Any, reference: Any, found: dict[str, list[Tensor]], features: list[tuple[Tensor, ...]]
    ) -> None:
        """What LPIPS and FID's network see in a batch."""
        ours, theirs = self._shown(output), self._shown(reference)
        if self._lpips is not None:
            found["lpips"].append(self._lpips(ours, theirs).double().cpu())
        if self._features is not None:
            features.append((self._features(ours).cpu(), self._features(theirs).cpu()))

    def _shown(self, output: Any) -> Tensor:
        """Pictures of 0…1, by the extent of the original's outputs."""
        return ((tensors(output)[0] - self._low) / self._peak).clamp(0, 1)


def _imitation(output: Tensor, reference: Tensor, low: float, peak: float) -> dict[str, Tensor]:
    if output.dim() == 4:
        return fidelity(output - low, reference - low, peak=peak)
    if is_logits(output):
        ours, theirs = F.log_softmax(output, dim=1), F.log_softmax(reference, dim=1)
        return {
            "agreement": (output.argmax(1) == reference.argmax(1)).double(),
            "kl": F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1),
        }
    error = (output - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1).clamp_min(1e-12)
    return {"relative_error": error}
