"""Networks that simulate integers (quantisation-aware training): their quantisers, as one plain operation each.

torch.ao's quantisers observe, quantise or pass on as buffers tell them, and torch.export follows no branch on a value.
What they would do is decided before it looks. A quantiser with a forward of its own keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from network.errors import TraceError

__all__ = ["decide_quantisers", "observations", "quantises"]

FAMILIES = ("torch.ao.quantization.fake_quantize", "torchao.quantization.pt2e.fake_quantize")
"""Where the forwards are written that are known."""


def decide_quantisers(model: nn.Module) -> None:
    """Give torch.ao's quantisers in the model, in place, forwards without branches.

    Raises TraceError if one still observes.
    """
    for path, module in model.named_modules():
        if getattr(type(module).forward, "__module__", "") in FAMILIES:
            if bool(torch.as_tensor(module.observer_enabled).any()):
                raise TraceError(
                    f"{path} still observes what it quantises and changes with every input; call "
                    "model.apply(torch.ao.quantization.disable_observer) first"
                )
            module.forward = _decided(module)


def quantises(operation: str) -> bool:
    """Whether an operation, by its ATen name or its node's in an exported graph, simulates integers."""
    return operation.startswith("fake_quantize_per_")


def observations(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """What quantisers observed of each channel, and the scale that it goes with: (buffer, buffer) of a network's names.

    No operation reads it once it is observed; but when channels go it must, for training to go on.
    """
    for name, tensor in tensors.items():
        path, mark, _ = name.partition(".activation_post_process.")
        scale = f"{path}.scale"
        if mark and scale in tensors and tensor.shape == tensors[scale].shape:
            yield name, scale


def _decided(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        scale, zero = module.scale, module.zero_point
        observer = module.activation_post_process
        low, high = observer.quant_min, observer.quant_max
        if module.is_per_channel:
            return torch.fake_quantize_per_channel_affine(x, scale, zero, module.ch_axis, low, high)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high)

    return forward if bool(torch.as_tensor(module.fake_quant_enabled).any()) else (lambda x: x)
