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

from torch import Tensor, nn

from network.types import Group, Layer, Network

__all__ = ["BIAS", "IDLE", "ZERO", "Constant", "Idle", "put_remains", "remains_of", "with_removable"]

DENSE = {nn.Linear: 0} | {getattr(nn, f"Conv{kind}{n}d"): n for kind in ("", "Transpose") for n in (1, 2, 3)}
"""The classes of which a layer that reads a removed group may be, and how many axes follow its channels."""

BIAS, ZERO, IDLE = "bias", "zero", "idle"
"""What remains of a layer that reads a removed group, of one whose constant is 0, and of one that made the group."""

NORMS = frozenset(["instance_norm", "group_norm", "layer_norm", "std", "std_mean", "var", "var_mean"])
"""What divides by a spread over places: of a constant that is rounding noise, unless the constant is 0."""


class Constant(nn.Module):
    """What remains of a layer that reads nothing any more: its bias in the shape that its output has.

    layer: the layer itself, with one output; of what it computes only the shape counts, so that compiled runtimes drop
    it and all that leads to it. bias: (C,), a parameter, or a buffer of zeros; axis: where it lies in the output.
    """

    def __init__(self, layer: nn.Module, bias: nn.Parameter | nn.Buffer, axis: int):
        super().__init__()
        self.layer, self.bias, self.axis = layer.requires_grad_(False), bias, axis

    def forward(self, x: Tensor) -> Tensor:
        """(N, step, …) → (N, C, …), without memory of its own."""
        shape = list(self.layer(x.detach()).shape)
        shape[self.axis] = len(self.bias)
        return self.bias.reshape(-1, *[1] * (-1 - self.axis)).expand(shape)


class Idle(nn.Module):
    """What remains of a layer that made the removed channels: something of the right shape, from one of its inputs."""

    def __init__(self, layer: nn.Module, axis: int):
        super().__init__()
        self.layer, self.axis = layer.requires_grad_(False), axis

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) → (N, step, …)."""
        return self.layer(x.detach().narrow(self.axis, 0, 1))


def remains_of(net: Network, widths: Mapping[str, int]) -> dict[str, str]:
    """What becomes of which modules at these group widths: `Group.remains` of all groups that are removed together.

    A layer that makes one of them and reads another is a constant.
    """
    gone = [pair for group in net.groups if widths.get(group.name) == 0 for pair in group.remains]
    return dict(sorted(gone, key=lambda pair: pair[1] != IDLE))


def put_remains(model: nn.Module, remains: Mapping[str, str]) -> None:
    """Replace these modules, in place; the groups that are removed are one step wide already."""
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
        if readers and all(_plain(layer.module, modules) for layer in readers) and _alive(net, gone):
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


def _remains(layer: Any, word: str) -> Constant | Idle:
    axis = -1 - next(n for kind, n in DENSE.items() if isinstance(layer, kind))
    made = _made(layer)
    weight, bias = layer.weight.detach(), layer.bias
    if word == IDLE:
        layer.weight = nn.Parameter(weight.narrow(1 - made, 0, 1).clone())
        return Idle(layer, axis)
    layer.weight, layer.bias = nn.Parameter(weight.narrow(made, 0, 1).clone()), None
    if word == ZERO or bias is None:
        bias = weight.new_zeros(weight.shape[made])
    return Constant(layer, nn.Buffer(bias) if word == ZERO else nn.Parameter(bias.detach()), axis)


def _made(layer: nn.Module) -> int:
    """The dimension of the weight that makes channels; of the first two the other reads them."""
    return 1 if getattr(layer, "transposed", False) else 0


def _makers(group: Group, net: Network, modules: Mapping[str, nn.Module]) -> list[str]:
    """The layers that make the group's channels and no others."""
    weights = {m.parameter.removesuffix(".weight"): m for m in group.members if m.role == "producer"}
    return [
        path
        for path, member in weights.items()
        if path != member.parameter
        and _plain(path, modules)
        and member.dim == _made(modules[path])
        and member.index.size == net.parameters[member.parameter][member.dim]
    ]


def _readers(group: Group, net: Network) -> list[Layer]:
    """The layers that contract the group's channels away; none if one of them is not known as a module's weight."""
    found = [layer for layer in net.layers if group.name in layer.c_in.groups and group.name not in layer.c_out.groups]
    read = {member.parameter for member in group.members if member.role == "consumer"}
    whole = all(layer.c_in.fixed == 0 and layer.c_in.groups == (group.name,) for layer in found)
    named = all(layer.weight == f"{layer.module}.weight" for layer in found)
    return found if whole and named and read == {layer.weight for layer in found} else []


def _plain(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether this is a dense layer with a weight, perhaps a bias, and nothing else to learn."""
    module = modules.get(path)
    return (
        path != ""
        and module is not None
        and isinstance(module, tuple(DENSE))
        and getattr(module, "groups", 1) == 1
        and {name for name, _ in module.named_parameters()} <= {"weight", "bias"}
    )


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
