"""Looking at a network without changing what the caller has of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating", "forgetful_eval"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards every module has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    forgetful_eval(model)
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def forgetful_eval(model: nn.Module) -> nn.Module:
    """The model in eval mode by way of train mode, in place.

    Modules that keep something made of their weights from one eval forward to the next (the attention biases of LeViT)
    let go of it when training begins, so what they kept of other weights or widths is gone.
    """
    return model.train().eval()
