"""trace: from an nn.Module and example inputs to a Network, each step in its own module.

export → propagate ids → classes → groups and layers → trial forward → Network
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from network.errors import TraceError
from network.exporting import export
from network.propagation import propagate
from network.settling import settle
from network.trial import Trial
from network.types import Network

__all__ = ["trace"]


def trace(
    model: nn.Module, example_inputs: tuple[Tensor, ...], example_kwargs: Mapping[str, object] | None = None
) -> Network:
    """Find the layers of a network and the channels that must be cut together.

    example_inputs: positional tensors, on the model's device. The caller's model is not touched: not its mode, its
    hooks nor its gradients. Channels of the inputs and outputs stay, and whatever cannot be followed is frozen with
    its reason. The Network holds no tensor.
    Raises TraceError if torch.export cannot follow the model, or if nothing in it can be narrowed.
    """
    args, kwargs = tuple(example_inputs), dict(example_kwargs or {})
    state = propagate(export(model, args, kwargs), model)
    shapes = tuple(tuple(leaf.shape) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    net = settle(model, state, Trial(model, args, kwargs), shapes)
    if not net.groups:
        raise TraceError(_nothing(model, net))
    return net


def _nothing(model: nn.Module, net: Network) -> str:
    reasons = dict.fromkeys(reason for frozen in net.frozen for reason in frozen.reasons)
    return (
        f"no channel of {type(model).__name__} can be narrowed: {'; '.join(list(reasons)[:5]) or 'it has no weights'}; "
        "give a network with inner channels, or replace these operations"
    )
