"""What a network is once traced: layers, and groups of channels that must be cut together. Data only, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np

from network.errors import InputError

__all__ = [
    "BIAS",
    "IDLE",
    "ZERO",
    "Frozen",
    "Group",
    "Keep",
    "Layer",
    "LayerSpec",
    "Member",
    "Network",
    "SizeRule",
    "Width",
    "widths_of",
]

BIAS, ZERO, IDLE = "bias", "zero", "idle"
"""What remains of a layer that reads a removed group, of one whose constant is 0, and of one that made the group."""

Keep = Mapping[str, Sequence[int]]
"""Group name → sorted indices of the channels that stay. A group that is not named keeps all of its channels."""


def widths_of(keep: Keep) -> dict[str, int]:
    """How many channels of each group stay; of groups that are not named nothing is said."""
    return {name: len(indices) for name, indices in keep.items()}


@dataclass(frozen=True, slots=True)
class Width:
    """A channel count that is linear in the groups' widths: `fixed + Σ multiplicity · widths[group]`.

    A plain convolution's output is one term of multiplicity 1; a concat has a term per branch;
    flatten → linear has the spatial size as multiplicity; an image input is all `fixed`.
    """

    fixed: int = 0
    terms: tuple[tuple[str, int], ...] = ()

    def at(self, widths: Mapping[str, int]) -> int:
        """The count at these group widths. Raises KeyError if a group is missing."""
        return self.fixed + sum(multiplicity * widths[group] for group, multiplicity in self.terms)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that this count depends on."""
        return tuple(group for group, _ in self.terms)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """All that decides a layer's time except its widths: two layers of equal spec share rows of a latency table.

    `attributes` are the static arguments (kernel, stride, …); `batch` is 1 where the output has its channels in the
    place of the batch, as where heads are merged into it; `spatial_in`/`spatial_out` the extents of the first
    input and the output beside batch and channels; `fused_with` the operations directly before it, and behind it up to
    the activation (`<relu`, `>batch_norm>relu`), since a runtime that fuses them moves their time here.
    """

    op: str
    attributes: tuple[tuple[str, str], ...] = ()
    batch: int = 1
    spatial_in: tuple[int, ...] = ()
    spatial_out: tuple[int, ...] = ()
    fused_with: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation of the traced network, in execution order.

    `name` is its node's name in the exported graph; `module` the qualified name of the module that owns it;
    `weight` the qualified parameter name, for layers that have one; `inputs` the names of the layers it reads.
    `macs_per_pair` is the multiply-accumulates per (input channel, output channel) pair; 0 for layers without weights.
    For depthwise layers `c_in` is the number of input channels and `macs_per_channel` counts per channel.
    """

    name: str
    module: str
    spec: LayerSpec
    c_in: Width
    c_out: Width
    inputs: tuple[str, ...] = ()
    weight: str | None = None
    macs_per_pair: float = 0.0
    macs_per_channel: float = 0.0

    def macs(self, widths: Mapping[str, int]) -> float:
        """Multiply-accumulates of this layer at these group widths, for the whole batch."""
        c_out = self.c_out.at(widths)
        return self.macs_per_pair * self.c_in.at(widths) * c_out + self.macs_per_channel * c_out


@dataclass(frozen=True, slots=True)
class Member:
    """Where a group meets one dimension of one parameter or buffer.

    `index` has shape (width, m): row c lists the m positions along `dim` that belong to channel c.
    `role` is "producer" (the dimension makes the channels: a convolution's output, a norm's scale, a bias) or
    "consumer" (the dimension is contracted away: a convolution's input). Scaling channel c where the consumers
    read it scales every consumer slice `parameter.index_select(dim, index[c])`.
    """

    parameter: str
    dim: int
    index: np.ndarray
    role: str


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that must be cut together: `width` of them, of which at least one stays unless the group is removable.

    `producers` and `consumers` are module names. `soft` lists the statistics (layer norm, softmax, …) that run over
    these channels: narrowing is structurally exact, but those statistics then run over the survivors. `remains`,
    where all channels may go: (module, what it then is), "bias" or "zero" for those that read them, which give that,
    and "idle" for those that make them (`network.removal`).
    """

    name: str
    width: int
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    soft: tuple[str, ...] = ()
    remains: tuple[tuple[str, str], ...] = ()

    @property
    def removable(self) -> bool:
        """Whether the network may do without any of these channels: width 0."""
        return bool(self.remains)


@dataclass(frozen=True, slots=True)
class Frozen:
    """Channels that stay, and why: one reason a line of the report."""

    name: str
    width: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SizeRule:
    """An integer attribute of a module that must follow a width: `module.attribute = width.at(widths)`."""

    module: str
    attribute: str
    width: Width


@dataclass(frozen=True)
class Network:
    """A traced network: `layers` in execution order, prunable `groups`, and what is `frozen` with its reasons.

    `parameters` maps each qualified parameter and buffer name to its shape; `sizes` are the attributes to patch;
    `input_shapes` are those of the example inputs. Plain data: it holds no tensor and no module.
    """

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    sizes: tuple[SizeRule, ...]
    parameters: Mapping[str, tuple[int, ...]]
    input_shapes: tuple[tuple[int, ...], ...]
    trainable: frozenset[str] = field(default_factory=frozenset)

    @property
    def widths(self) -> dict[str, int]:
        """Every group's full width."""
        return {group.name: group.width for group in self.groups}

    def complete(self, widths: Mapping[str, int]) -> dict[str, int]:
        """These widths with every group that is not named at full width."""
        return self.widths | dict(widths)

    def group(self, name: str) -> Group:
        """The group of this name. Raises KeyError."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def readers(self, group: str) -> list[Layer]:
        """The layers that contract the group's channels away, in execution order."""
        return [layer for layer in self.layers if group in layer.c_in.groups and group not in layer.c_out.groups]

    def find_layer(self, name: str) -> Layer:
        """The layer of this name, or the one with most MACs in the module of this name. Raises InputError."""
        found = [layer for layer in self.layers if layer.name == name]
        found = found or [layer for layer in self.layers if layer.module == name]
        if not found:
            raise InputError(f"the network has no layer {name!r}; `python -m network … --json` lists them")
        return max(found, key=lambda layer: layer.macs(self.widths))

    def macs(self, widths: Mapping[str, int] | None = None) -> float:
        """Multiply-accumulates of one forward pass over the example batch."""
        widths = self.complete(widths or {})
        return sum(layer.macs(widths) for layer in self.layers)

    @cached_property
    def live(self) -> tuple[tuple[int, ...], ...]:
        """For each layer the layers whose outputs are held while it runs, its own included: (L,) tuples of indices.

        An output is held until its last reader has run, or to the end where nobody reads it; nothing is overwritten
        in place, so a runtime that does better needs less.
        """
        number = {layer.name: index for index, layer in enumerate(self.layers)}
        last = [len(self.layers)] * len(self.layers)
        for index in reversed(range(len(self.layers))):
            for name in self.layers[index].inputs:
                if last[number[name]] == len(self.layers):
                    last[number[name]] = index
        return tuple(
            tuple(made for made in range(index + 1) if last[made] >= index) for index in range(len(self.layers))
        )

    def output_bytes(self, layer: Layer, channels: int, item_bytes: int = 4) -> int:
        """Size of a layer's output with so many channels."""
        return layer.spec.batch * prod(layer.spec.spatial_out) * channels * item_bytes

    def input_bytes(self, item_bytes: int = 4) -> int:
        """Size of the network's inputs, which its caller holds throughout."""
        return item_bytes * sum(prod(shape) for shape in self.input_shapes)

    def held_bytes(self, widths: Mapping[str, int] | None = None, item_bytes: int = 4) -> list[int]:
        """Bytes of activations that exist while each layer runs: (L,)."""
        widths = self.complete(widths or {})
        sizes = [self.output_bytes(layer, layer.c_out.at(widths), item_bytes) for layer in self.layers]
        return [self.input_bytes(item_bytes) + sum(sizes[made] for made in live) for live in self.live]

    def peak_memory(self, widths: Mapping[str, int] | None = None, item_bytes: int = 4) -> int:
        """The most bytes of activations that exist at once in one forward pass over the example batch."""
        return max(self.held_bytes(widths, item_bytes))

    def parameter_count(self, widths: Mapping[str, int] | None = None) -> int:
        """Trainable and frozen parameters (no buffers) of the network at these group widths."""
        return self._elements(widths, buffers=False)

    def weight_bytes(self, widths: Mapping[str, int] | None = None, item_bytes: int = 4) -> int:
        """Size of every parameter and buffer at these group widths, each element of `item_bytes`."""
        return item_bytes * self._elements(widths, buffers=True)

    def shapes(self, *, buffers: bool) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the parameters, and of the buffers too if these are asked for."""
        return {name: shape for name, shape in self.parameters.items() if buffers or name in self.trainable}

    def gained(self, *, buffers: bool) -> Iterator[tuple[str, Width]]:
        """The biases that the remains of a removed group have and its layers had not: (group, how many).

        They are parameters where a layer's mean is left, else buffers of zeros. Of norms nothing remains.
        """
        made = {layer.weight: layer.c_out for layer in self.layers}
        for group in self.groups:
            for path, word in group.remains:
                weight = f"{path}.weight"
                if word != BIAS and not buffers:
                    continue
                if word != IDLE and f"{path}.bias" not in self.parameters:
                    yield group.name, made[weight]
                elif word == IDLE and len(self.parameters.get(weight, ())) > 1:
                    rows = (m.index.shape[1] for m in group.members if m.parameter == weight and m.role == "producer")
                    yield group.name, Width(sum(rows))

    def _elements(self, widths: Mapping[str, int] | None, *, buffers: bool) -> int:
        widths = self.complete(widths or {})
        shapes = {name: list(shape) for name, shape in self.shapes(buffers=buffers).items()}
        for group in self.groups:
            for member in group.members:
                if member.parameter in shapes:
                    shapes[member.parameter][member.dim] -= (group.width - widths[group.name]) * member.index.shape[1]
        gained = (width.at(widths) for group, width in self.gained(buffers=buffers) if widths[group] == 0)
        return sum(prod(shape) for shape in shapes.values()) + sum(gained)
