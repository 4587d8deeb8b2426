"""Groups of which every channel may go: what reads them then gives a constant, and whatever led there falls away.

A residual branch, a gate, one of several parallel branches: the network computes something without it. What is left
of a layer whose inputs are gone is its bias, which a repair sets to what the layer gave on average. Dropping blocks
beside channels: Sun et al., "Multi-dimensional pruning: joint channel, layer and block pruning with latency
constraint", CVPR 2025.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from network.types import BIAS, IDLE, ZERO, Group, Layer, Network

__all__ = ["Constant", "put_remains", "remains_of", "with_removable"]

DENSE: dict[type[nn.Module], int] = {nn.Linear: 0} | {
    getattr(nn, f"Conv{kind}{n}d"): n for kind in ("", "Transpose") for n in (1, 2, 3)
}
"""The classes of which a layer that reads a removed group may be, and how many axes follow its channels."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

NORMS = frozenset(["instance_norm", "group_norm", "layer_norm", "std", "std_mean", "var", "var_mean"])
"""What divides by a spread over places: of a constant that is rounding noise, unless the constant is 0."""


class Constant(nn.Module):
    """What remains of a layer without inputs, or without outputs that anything reads: its bias as wide as its output.

    layer: one of DENSE; of what it computes only the shape is left, so that nothing has to lead to it. Where a forward
    of its own decides the shape it is kept. bias: (C,), a parameter, or a buffer of zeros.
    """

    def __init__(self, layer: nn.Module, bias: nn.Parameter | nn.Buffer):
        super().__init__()
        self.bias, self.made = bias, _made(layer)
        self._sizes = _sizes(layer)
        self.layer = None if _known(layer) else layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ?, …) → (N, C, …), in memory of its own, as what follows may work in place."""
        shape = list(x.shape if self.layer is None else self.layer(x.detach()).shape)
        first = len(shape) - len(self._sizes)
        shape[first - 1] = len(self.bias)
        if self.layer is None:
            for axis, (times, plus, over) in enumerate(self._sizes, first):
                shape[axis] = (shape[axis] * times + plus) // over
        constant = self.bias.reshape(-1, *[1] * len(self._sizes)).expand(shape)
        by_pixels = not x.is_contiguous() and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        return constant.clone(memory_format=torch.channels_last if by_pixels else torch.contiguous_format)


def remains_of(net: Network, widths: Mapping[str, int]) -> dict[str, str]:
    """What becomes of which modules at these group widths: `Group.remains` of all groups that are removed together.

    A layer that makes one of them and reads another is a constant.
    """
    gone = [pair for group in net.groups if widths.get(group.name) == 0 for pair in group.remains]
    return dict(sorted(gone, key=lambda pair: pair[1] != IDLE))


def put_remains(model: nn.Module, remains: Mapping[str, str]) -> None:
    """Replace these modules, in place; the groups that are removed are one channel wide already."""
    modules = dict(model.named_modules(remove_duplicate=False))
    made = {id(modules[path]): _remains(modules[path], word) for path, word in remains.items()}
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if id(child) in made:
                module._modules[name] = made[id(child)]


def with_removable(
    net: Network, model: nn.Module, indispensable: Callable[[Network, Sequence[str]], Collection[str]]
) -> Network:
    """The network with `Group.remains` of every group that may be removed: all of them at once too.

    Such a group's channels are read by whole convolutions and linear layers alone, and every output still depends on
    the input without them. indispensable: those of these without which the user's forward does not run.
    """
    modules, dead = dict(model.named_modules()), set[str]()
    remains: dict[str, dict[str, str]] = {}
    for group in net.groups:
        readers = _readers(group, net)
        gone = dead | {layer.name for layer in readers}
        if readers and all(_plain(modules.get(layer.module)) for layer in readers) and _alive(net, gone):
            dead = gone
            remains[group.name] = dict.fromkeys(_makers(group, net, modules), IDLE)
            remains[group.name] |= {layer.module: ZERO if _normalised(net, layer) else BIAS for layer in readers}
    for name in indispensable(_with(net, remains), list(remains)):
        del remains[name]
    return _with(net, remains)


# ---- details -----------------------------------------------------------------------------------------------------
def _with(net: Network, remains: Mapping[str, Mapping[str, str]]) -> Network:
    groups = (replace(group, remains=tuple(remains.get(group.name, {}).items())) for group in net.groups)
    return replace(net, groups=tuple(groups))


def _remains(layer: Any, word: str) -> nn.Module:
    if word == IDLE and isinstance(layer, BATCH_NORMS):
        return nn.Identity()
    zeros, bias = layer.weight.new_zeros(layer.weight.shape[_made(layer)]), layer.bias
    if word == BIAS:
        return Constant(layer, nn.Parameter(zeros if bias is None else bias.detach().clone()))
    return Constant(layer, nn.Buffer(zeros))


def _made(layer: nn.Module) -> int:
    """The dimension of a dense layer's weight that makes channels; of the first two the other reads them."""
    return 1 if getattr(layer, "transposed", False) else 0


def _sizes(layer: Any) -> list[tuple[int, int, int]]:
    """(times, plus, over) of every axis behind the channels: n positions become (n · times + plus) // over."""
    sizes = []
    for axis in range(next(axes for kind, axes in DENSE.items() if isinstance(layer, kind))):
        reach, stride = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1, layer.stride[axis]
        words = {"same": reach - 1, "valid": 0}
        padding = words[layer.padding] if isinstance(layer.padding, str) else 2 * layer.padding[axis]
        if _made(layer):
            sizes.append((stride, reach + layer.output_padding[axis] - padding - stride, 1))
        else:
            sizes.append((1, padding - reach + stride, stride))
    return sizes


def _makers(group: Group, net: Network, modules: Mapping[str, nn.Module]) -> list[str]:
    """The layers that make the group's channels and no others, and the batch norms of these channels alone."""
    found = []
    for member in group.members:
        path, _, leaf = member.parameter.rpartition(".")
        if member.role == "producer" and member.index.size == net.parameters[member.parameter][member.dim]:
            module: Any = modules.get(path)
            layer = leaf == "weight" and _known(module) and member.dim == _made(module)
            if type(module) in BATCH_NORMS or layer:
                found.append(path)
    return found


def _readers(group: Group, net: Network) -> list[Layer]:
    """`Network.readers`; none if one of them is not known as a module's weight."""
    found = net.readers(group.name)
    read = {member.parameter for member in group.members if member.role == "consumer"}
    whole = all(layer.c_in.fixed == 0 and layer.c_in.groups == (group.name,) for layer in found)
    named = all(layer.weight == f"{layer.module}.weight" for layer in found)
    return found if whole and named and read == {layer.weight for layer in found} else []


def _plain(module: nn.Module | None) -> bool:
    """Whether this is a dense layer with a weight, perhaps a bias, and nothing else to learn."""
    return (
        module is not None
        and isinstance(module, tuple(DENSE))
        and getattr(module, "groups", 1) == 1
        and {name for name, _ in module.named_parameters()} <= {"weight", "bias"}
    )


def _known(module: Any) -> bool:
    """Whether the module does what torch's class of its kind does, so that its output's shape is known."""
    kind = next((kind for kind in DENSE if isinstance(module, kind)), None)
    return kind is not None and type(module).forward is kind.forward and (not _made(module) or module.groups == 1)


def _alive(net: Network, gone: Collection[str]) -> bool:
    """Whether every output depends on the input without what these layers give."""
    alive: set[str] = set()
    for layer in net.layers:
        if layer.name not in gone and (not layer.inputs or not alive.isdisjoint(layer.inputs)):
            alive.add(layer.name)
    read = Counter(name for layer in net.layers for name in layer.inputs)
    return all(layer.name in alive for layer in net.layers if not read[layer.name])


def _normalised(net: Network, constant: Layer) -> bool:
    """Whether a norm over places, perhaps spelt out as x - mean x, sees the constant before it is no longer one."""
    found = {layer.spec.op for layer in _still_constant(net, constant)}
    return not found.isdisjoint(NORMS) or found >= {"mean", "sub"}


def _still_constant(net: Network, constant: Layer) -> Iterator[Layer]:
    names = {constant.name}
    for layer in net.layers:
        if layer.inputs and names.issuperset(layer.inputs):
            names.add(layer.name)
            yield layer
