"""A traced network with its importance as strict JSON: layers, groups and widths, no weights and no code.

`describe` and `TracedNetwork.to_network` are each other's inverse; a plan searched from either is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from network.types import Frozen, Group, Layer, LayerSpec, Member, Network, SizeRule, Width
from search.plan import Feed, ModelReference
from search.planner import rounded_importance
from search.service.schemas import (
    Count,
    Document,
    FeedFields,
    Name,
    Number,
    Positive,
    ReferenceFields,
    Scores,
    SpecFields,
    Text,
    Versioned,
)

__all__ = ["TracedNetwork", "describe", "spec_of"]

MOST_INDICES = 8_000_000
"""Entries of all index arrays together: an affine one is a few bytes as JSON, whatever its size."""

Names = Annotated[tuple[Name, ...], Field(max_length=20_000)]


class WidthFields(Document):
    """As `network.types.Width`."""

    fixed: Count = 0
    terms: Annotated[tuple[tuple[Name, Positive], ...], Field(max_length=4096)] = ()

    def build(self) -> Width:
        return Width(self.fixed, self.terms)


class LayerFields(Document):
    """As `network.types.Layer`."""

    name: Name
    module: Text
    spec: SpecFields
    c_in: WidthFields
    c_out: WidthFields
    inputs: Names = ()
    weight: Name | None = None
    macs_per_pair: Number = 0.0
    macs_per_channel: Number = 0.0

    def build(self) -> Layer:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return Layer(**fields | {"spec": spec_of(self.spec), "c_in": self.c_in.build(), "c_out": self.c_out.build()})


class AffineIndex(Document):
    """index[c, j] = start + c · by_channel + j · by_position, for j < positions."""

    start: Count
    by_channel: Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31)]
    by_position: Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31)]
    positions: Positive

    def build(self, width: int) -> np.ndarray:
        rows = self.start + np.arange(width, dtype=np.int64)[:, None] * self.by_channel
        return rows + np.arange(self.positions, dtype=np.int64)[None, :] * self.by_position


class ListedIndex(Document):
    """Every entry: a row per channel."""

    rows: Annotated[tuple[Annotated[tuple[Count, ...], Field(min_length=1)], ...], Field(min_length=1)]

    @property
    def positions(self) -> int:
        return len(self.rows[0])

    def build(self, width: int) -> np.ndarray:
        if len(self.rows) != width or {len(row) for row in self.rows} != {self.positions}:
            raise ValueError(f"an index of {len(self.rows)} rows does not fit a group of width {width}")
        return np.array(self.rows, dtype=np.int64)


class MemberFields(Document):
    """As `network.types.Member`."""

    parameter: Name
    dim: Annotated[int, Field(strict=True, ge=0, le=7)]
    index: AffineIndex | ListedIndex
    role: Literal["producer", "consumer"]


class GroupFields(Document):
    """As `network.types.Group`."""

    name: Name
    width: Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
    members: Annotated[tuple[MemberFields, ...], Field(max_length=20_000)]
    producers: Names
    consumers: Names
    soft: Names = ()
    remains: Annotated[tuple[tuple[Name, Literal["bias", "zero", "idle"]], ...], Field(max_length=20_000)] = ()

    def build(self) -> Group:
        members = tuple(Member(m.parameter, m.dim, m.index.build(self.width), m.role) for m in self.members)
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return Group(**fields | {"members": members})


class FrozenFields(Document):
    """As `network.types.Frozen`."""

    name: Name
    width: Count
    reasons: Annotated[tuple[Text, ...], Field(max_length=64)]


class SizeFields(Document):
    """As `network.types.SizeRule`."""

    module: Text
    attribute: Name
    width: WidthFields


Shape = Annotated[tuple[Count, ...], Field(max_length=8)]


class NetworkFields(Document):
    """As `network.types.Network`, whole: every name that is used is there, every index is within its parameter."""

    layers: Annotated[tuple[LayerFields, ...], Field(min_length=1, max_length=20_000)]
    groups: Annotated[tuple[GroupFields, ...], Field(max_length=20_000)]
    frozen: Annotated[tuple[FrozenFields, ...], Field(max_length=20_000)]
    sizes: Annotated[tuple[SizeFields, ...], Field(max_length=100_000)]
    parameters: Annotated[dict[Name, Shape], Field(max_length=100_000)]
    input_shapes: Annotated[tuple[Shape, ...], Field(max_length=64)]
    trainable: Annotated[tuple[Name, ...], Field(max_length=100_000)]

    @model_validator(mode="after")
    def _whole(self) -> NetworkFields:
        groups = [group.name for group in self.groups]
        layers = [layer.name for layer in self.layers]
        for kind, names in (("group", groups), ("layer", layers)):
            if len(set(names)) != len(names):
                raise ValueError(f"two {kind}s have the same name")
        widths = [width for layer in self.layers for width in (layer.c_in, layer.c_out)]
        used = {group for width in (*widths, *(size.width for size in self.sizes)) for group, _ in width.terms}
        read = {name for layer in self.layers for name in layer.inputs}
        constant = {f"{path}.weight" for group in self.groups for path, word in group.remains if word != "idle"}
        for kind, missing in (
            ("group", used - set(groups)),
            ("layer", read - set(layers)),
            ("weight", constant - {layer.weight for layer in self.layers}),
            ("parameter", set(self.trainable) - self.parameters.keys()),
        ):
            if missing:
                raise ValueError(f"{kind} {min(missing)!r} is named and not there")
        self._check_indices()
        return self

    def _check_indices(self) -> None:
        """Before any array is made: an affine index of a few bytes may stand for gigabytes."""
        entries = 0
        for group in self.groups:
            for member in group.members:
                shape = self.parameters.get(member.parameter, ())
                if member.dim >= len(shape):
                    raise ValueError(f"group {group.name!r}: {member.parameter!r} has no dimension {member.dim}")
                entries += group.width * member.index.positions
                if entries > MOST_INDICES:
                    raise ValueError(f"the groups' index arrays have more than {MOST_INDICES} entries")
                index = member.index.build(group.width)
                if index.min() < 0 or index.max() >= shape[member.dim]:
                    raise ValueError(f"group {group.name!r} is outside dimension {member.dim} of {member.parameter!r}")


class TracedNetwork(Versioned):
    """A network as `search MODEL --push` sends it.

    `importance` ranks the channels of every group, at the six digits that a plan stores; `reference` and `feed` are
    what the plan says of where the network came from: text that is handed back, and never followed.
    """

    name: Name
    network: NetworkFields
    importance: Annotated[dict[Name, Scores], Field(max_length=20_000)]
    reference: ReferenceFields
    feed: FeedFields = Field(default_factory=FeedFields)

    @model_validator(mode="after")
    def _importance_fits(self) -> TracedNetwork:
        widths = {group.name: group.width for group in self.network.groups}
        found = {group: len(scores) for group, scores in self.importance.items()}
        if widths != found:
            odd = min(widths.items() ^ found.items())[0]
            raise ValueError(f"importance of group {odd!r} has {found.get(odd)} values for {widths.get(odd)} channels")
        return self

    def to_network(self) -> Network:
        """The network that was described."""
        fields = self.network
        return Network(
            layers=tuple(layer.build() for layer in fields.layers),
            groups=tuple(group.build() for group in fields.groups),
            frozen=tuple(Frozen(part.name, part.width, part.reasons) for part in fields.frozen),
            sizes=tuple(SizeRule(size.module, size.attribute, size.width.build()) for size in fields.sizes),
            parameters=dict(fields.parameters),
            input_shapes=fields.input_shapes,
            trainable=frozenset(fields.trainable),
        )

    def to_reference(self) -> ModelReference:
        """How the plan names the network."""
        return ModelReference(**dict(self.reference))

    def to_feed(self) -> Feed:
        """The data that the plan names."""
        return Feed(**dict(self.feed))


def describe(
    net: Network,
    importance: Mapping[str, Sequence[float] | np.ndarray],
    reference: ModelReference,
    feed: Feed | None = None,
    name: str | None = None,
) -> TracedNetwork:
    """The network as what is pushed. Raises InputError for an importance that is not the network's."""
    scores = rounded_importance(net, importance)
    groups = [
        _plain(group) | {"members": [_plain(member) | {"index": _index(member.index)} for member in group.members]}
        for group in net.groups
    ]
    fields = {
        "layers": [asdict(layer) for layer in net.layers],
        "groups": groups,
        "frozen": [asdict(part) for part in net.frozen],
        "sizes": [asdict(size) for size in net.sizes],
        "parameters": {key: tuple(shape) for key, shape in net.parameters.items()},
        "input_shapes": net.input_shapes,
        "trainable": tuple(sorted(net.trainable)),
    }
    return TracedNetwork.model_validate(
        {
            "name": name or reference.ref,
            "network": fields,
            "importance": scores,
            "reference": asdict(reference),
            "feed": asdict(feed or Feed()),
        }
    )


def spec_of(fields: SpecFields) -> LayerSpec:
    """The layer specification that was described."""
    return LayerSpec(**dict(fields))


def _plain(record: Group | Member) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


def _index(index: np.ndarray) -> dict[str, Any]:
    """The shortest description of an index array (width, positions)."""
    width, positions = index.shape
    start = int(index[0, 0])
    by_channel = int(index[1, 0]) - start if width > 1 else 0
    by_position = int(index[0, 1]) - start if positions > 1 else 0
    affine = {"start": start, "by_channel": by_channel, "by_position": by_position, "positions": positions}
    if (AffineIndex.model_validate(affine).build(width) == index).all():
        return affine
    return {"rows": index.tolist()}
