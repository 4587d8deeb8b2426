"""LPIPS and FID by torchmetrics and torch-fidelity, where both they and the weights they need are on this machine."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

__all__ = ["LPIPS_SIDE", "frechet", "inception", "lpips"]

LPIPS_SIDE = 64
"""Smaller pictures vanish in LPIPS's network."""

ALEXNET = "alexnet-owt-7be5be79.pth"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""Files that torchvision and torch-fidelity would download; nothing here ever does."""

EXTRA = "pip install 'narrowgauge[perceptual]'"


def lpips() -> tuple[Callable[[Tensor, Tensor], Tensor] | None, str]:
    """LPIPS with AlexNet, from pairs of pictures (B, 3, H, W) of 0…1 to (B,), lower is better; or None and why.

    Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018.
    """
    found, why = _have("LPIPS", ("torchvision", "torchmetrics.image.lpip"), ALEXNET)
    if found is None:
        return None, why
    network = found[-1].LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).net.eval()

    def score(pictures: Tensor, others: Tensor) -> Tensor:
        with torch.no_grad():
            return network.to(pictures.device)(pictures, others, normalize=True).flatten(1).mean(1)

    return score, ""


def inception() -> tuple[Callable[[Tensor], Tensor] | None, str]:
    """The features that FID compares, from pictures (B, 3, H, W) of 0…1 to (B, 2048); or None and why."""
    found, why = _have("FID", ("torch_fidelity.feature_extractor_inceptionv3",), INCEPTION)
    if found is None:
        return None, why
    network: nn.Module = found[-1].FeatureExtractorInceptionV3("inception", ["2048"], str(_weights(INCEPTION)))

    def features(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return network.to(pictures.device)((255 * pictures).round().byte())[0]

    return features, ""


def frechet(found: Tensor, true: Tensor) -> float:
    """The Fréchet distance of two Gaussians fitted to features (N, D) and (M, D): FID, lower is better.

        ‖μ - ν‖² + tr Σ + tr Τ - 2 tr (Σ Τ)^½,      tr (Σ Τ)^½ = ‖A Bᵀ‖_* / √((N-1)(M-1))

    A and B are the centred features, so that few items never need a matrix of D × D: ‖·‖_* sums the singular values of
    one of N × M. With few items FID is biased upwards, for every network alike.
    Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", NeurIPS 2017.
    """
    first, second = (x.double().flatten(1) for x in (found, true))
    a, b = first - first.mean(0), second - second.mean(0)
    n, m = len(a) - 1, len(b) - 1
    spread = a.square().sum() / n + b.square().sum() / m
    shared = torch.linalg.svdvals(a @ b.T).sum() / (n * m) ** 0.5
    return max(0.0, float((first.mean(0) - second.mean(0)).square().sum() + spread - 2 * shared))


def _have(name: str, modules: tuple[str, ...], weights: str) -> tuple[list[ModuleType] | None, str]:
    """The modules, or a line that says what is missing; weights are looked for first, since imports take seconds."""
    if not _weights(weights).is_file():
        return None, f"{name} is not measured: put its weights, {weights}, into {_weights(weights).parent}"
    try:
        return [importlib.import_module(module) for module in modules], ""
    except (ImportError, RuntimeError) as error:  # torchvision beside another torch raises the latter
        return None, f"{name} is not measured: {' '.join(str(error).split())}; {EXTRA}"


def _weights(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / name
