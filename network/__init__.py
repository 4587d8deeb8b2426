"""What a network is: its layers, which channels are coupled, how to build it at any width, how it is named.

    net = network.trace(model, (torch.randn(1, 3, 224, 224),))
    thin = network.narrow(model, net, {"layer1.0.conv1": [0, 2, 5]})

Nothing here knows of time, budgets or training. `network.types` and `network.errors` do not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from network.exporting import export as export
    from network.images import Images as Images
    from network.images import open_images as open_images
    from network.masking import mask as mask
    from network.narrowing import attributes as attributes
    from network.narrowing import narrow as narrow
    from network.narrowing import resize as resize
    from network.reference import example_inputs as example_inputs
    from network.reference import load_model as load_model
    from network.reference import load_weights as load_weights
    from network.reference import parse_input as parse_input
    from network.tracing import trace as trace
    from network.types import Frozen as Frozen
    from network.types import Group as Group
    from network.types import Keep as Keep
    from network.types import Layer as Layer
    from network.types import LayerSpec as LayerSpec
    from network.types import Member as Member
    from network.types import Network as Network
    from network.types import SizeRule as SizeRule
    from network.types import Width as Width

_HOMES = {
    "exporting": ("export",),
    "images": ("Images", "open_images"),
    "masking": ("mask",),
    "narrowing": ("attributes", "narrow", "resize"),
    "reference": ("example_inputs", "load_model", "load_weights", "parse_input"),
    "tracing": ("trace",),
    "types": ("Frozen", "Group", "Keep", "Layer", "LayerSpec", "Member", "Network", "SizeRule", "Width"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

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
    "load_model",
    "load_weights",
    "mask",
    "narrow",
    "open_images",
    "parse_input",
    "resize",
    "trace",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'network' has no attribute {name!r}")
    return getattr(import_module(f"network.{_HOME[name]}"), name)
