"""What a network is: its layers, which channels are coupled, how to build it at any width, how it is named.

    net = network.trace(model, (torch.randn(1, 3, 224, 224),))
    thin = network.narrow(model, net, {"layer1.0.conv1": [0, 2, 5]})

Nothing here knows of time, budgets or training. `network.types` and `network.errors` do not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from network.lazy import lazily

if TYPE_CHECKING:
    from network.denormals import flush_denormals
    from network.exporting import export, to_onnx
    from network.images import Images, open_images
    from network.masking import mask
    from network.narrowing import attributes, narrow, resize
    from network.reference import example_inputs, load_model, load_weights, parse_input
    from network.tracing import trace
    from network.types import Frozen, Group, Keep, Layer, LayerSpec, Member, Network, SizeRule, Width

__all__ = [
    "Frozen",
    "Group",
    "Images",
    "Keep",
    "Layer",
    "LayerSpec",
    "Member",
    "Network",
    "SizeRule",
    "Width",
    "attributes",
    "example_inputs",
    "export",
    "flush_denormals",
    "load_model",
    "load_weights",
    "mask",
    "narrow",
    "open_images",
    "parse_input",
    "resize",
    "to_onnx",
    "trace",
]

__getattr__ = lazily(
    __name__,
    {
        "denormals": ("flush_denormals",),
        "exporting": ("export", "to_onnx"),
        "images": ("Images", "open_images"),
        "masking": ("mask",),
        "narrowing": ("attributes", "narrow", "resize"),
        "reference": ("example_inputs", "load_model", "load_weights", "parse_input"),
        "tracing": ("trace",),
        "types": ("Frozen", "Group", "Keep", "Layer", "LayerSpec", "Member", "Network", "SizeRule", "Width"),
    },
)
