"""One operation of the graph as its rule sees it: operands by name, output shapes, and how to record what it ties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from network.ids import Ledger, Value, along, collapse, line, spans

__all__ = ["Call", "Note", "Reshape", "Rule", "rules"]

Rule = Callable[["Call"], "Value | list[Value]"]


def rules(*lines: tuple[Rule, str]) -> dict[str, Rule]:
    """A table of operations from lines of (rule, names apart by spaces)."""
    return {name: rule for rule, names in lines for name in names.split()}


@dataclass(frozen=True, slots=True)
class Note:
    """An integer attribute that must follow the extent of `ids` along `dim`; `guessed` if only its value says so."""

    module: str
    attribute: str
    ids: Tensor
    dim: int
    guessed: bool


@dataclass(frozen=True, slots=True)
class Reshape:
    """A view whose extents were written by the user: `sizes` as passed (-1 where torch infers), `ids` after it."""

    node: str
    ids: Tensor
    sizes: tuple[int, ...]
    split: bool


@dataclass(slots=True)
class Call:
    """An ATen operation about to be propagated.

    `arguments` maps the schema's names to operands (Values for tensors); `shapes` are those of its outputs, one per
    tensor; `holders` the module that runs it, by its qualified name, then those inside that run nothing themselves,
    whose methods it may have called.
    """

    ledger: Ledger
    node: str
    op: str
    target: Callable[..., Any]
    args: tuple[object, ...]
    kwargs: dict[str, object]
    arguments: dict[str, object]
    shapes: tuple[tuple[int, ...], ...]
    root: nn.Module
    holders: tuple[tuple[str, nn.Module], ...]
    notes: list[Note] = field(default_factory=list)
    reshapes: list[Reshape] = field(default_factory=list)

    # ---- operands ----------------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self.shapes[0]

    @property
    def operands(self) -> list[Value]:
        """Every tensor operand, in order."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Value)]

    @property
    def x(self) -> Value:
        """The first tensor operand."""
        return self.operands[0]

    @property
    def owners(self) -> list[tuple[str, nn.Module]]:
        """The module that runs this operation, and the one that owns its weight where that is another."""
        found = [self.holders[0]]
        weight = self.tensor("weight")
        if weight is not None and len(weight.sources) == 1:
            path = weight.sources[0].rpartition(".")[0]
            if path != found[0][0]:
                found.append((path, self.root.get_submodule(path)))
        return found

    def tensor(self, name: str) -> Value | None:
        """The tensor operand of this schema name, or None."""
        value = self.arguments.get(name)
        return value if isinstance(value, Value) else None

    def run(self, ids: Tensor, target: Callable[..., Any] | None = None) -> list[Tensor]:
        """Run the very operation on ids in the place of its first operand."""
        rest, kwargs = tree_map(
            lambda leaf: leaf.constant if isinstance(leaf, Value) else leaf, (self.args[1:], self.kwargs)
        )
        result = (target or self.target)(ids, *rest, **kwargs)
        return [result] if isinstance(result, Tensor) else list(result)

    # ---- ids ---------------------------------------------------------------------------------------------------
    def axes(self, value: Value | None, prefer: Sequence[int] = ()) -> dict[int, Tensor]:
        """{dimension: ids (extent,)}; an id tensor over several dimensions is tied down to one, a preferred one."""
        found: dict[int, Tensor] = {}
        for ids in value.ids if value else ():
            varying = spans(ids)
            if not varying:
                continue
            dim = next((d for d in prefer if d in varying), max(varying, key=ids.size))
            kept = line(ids, dim)
            self.ledger.tie(ids, kept)
            vector = kept.reshape(-1)
            if dim in found:
                self.ledger.freeze(vector, f"two kinds of channels in one dimension at {self.op}")
            else:
                found[dim] = vector
        return found

    def value(self, axes: dict[int, Tensor] | dict[int, Tensor | None], shape: tuple[int, ...] | None = None) -> Value:
        """A Value with these ids along these dimensions."""
        shape = self.shape if shape is None else shape
        ids = [along(v, dim, len(shape)) for dim, v in axes.items() if v is not None and shape[dim] > 1]
        return Value(shape, ids)

    def moved(self, results: list[list[Tensor]]) -> list[Value]:
        """Output Values from the id tensors that running the operation on each of the input's gave."""
        outputs = []
        for i, shape in enumerate(self.shapes):
            tensors = [collapse(result[i]) for result in results]
            outputs.append(Value(shape, [ids for ids in tensors if spans(ids)]))
        for ids in (ids for output in outputs for ids in output.ids if len(spans(ids)) > 1):
            self.ledger.undecided.append(ids)
        return outputs

    def meet(self, a: Tensor | None, b: Tensor | None, fixed: Value | None = None) -> Tensor | None:
        """Two views of one dimension become one; if only one has ids, they freeze against the fixed extent."""
        if a is None or b is None:
            ids = b if a is None else a
            if ids is not None:
                self.ledger.freeze(ids, f"{self.op} reads {(fixed and fixed.origin) or 'a fixed extent'}")
            return None
        if a.numel() != b.numel():
            self.ledger.freeze([a, b], f"extents {a.numel()} and {b.numel()} meet at {self.op}")
            return a
        self.ledger.tie(a, b)
        return a

    def freeze(self, why: str, *values: Value | None) -> None:
        """All channels of these operands stay (of every operand, if none is named)."""
        for value in values or self.operands:
            if value is not None:
                self.ledger.freeze(value.ids, why)

    def contract(self, value: Value | None, ids: Tensor | None) -> None:
        """Mark the ids of a weight whose dimension is summed away against an activation: there the group is read."""
        read = any(not operand.weight and operand.constant is None for operand in self.operands)
        if value is not None and value.weight and ids is not None and read:
            self.ledger.contracted.append(ids)

    # ---- attributes --------------------------------------------------------------------------------------------
    def follow(self, attribute: str, ids: Tensor | None, dim: int = 0) -> None:
        """The attribute of the module that runs this or owns its weight, if of that value, must follow the extent."""
        for path, module in self.owners:
            if ids is not None and _extent(vars(module).get(attribute)) == ids.size(dim):
                self.notes.append(Note(path, attribute, ids, dim, guessed=False))

    def guess(self, extent: int) -> tuple[str, ...]:
        """The integer attributes of this value, from which a hard-coded extent may come; those of heads, if any."""
        if extent < 2:
            return ()
        names = self._attributes(lambda value: type(value) is int and value == extent)
        return tuple([name for name in names if "head" in name] or names)

    def guess_list(self, extents: Sequence[int]) -> str | None:
        """The only attribute that is a list of just these extents."""
        names = self._attributes(lambda value: isinstance(value, (list, tuple)) and list(value) == list(extents))
        return names[0] if len(names) == 1 else None

    def follow_guess(self, attributes: Sequence[str], ids: Tensor, dim: int) -> None:
        """Guessed attributes, "name.i" in a list, follow `ids`, if it turns out that channels are cut along there."""
        for attribute in attributes:
            name, _, element = attribute.partition(".")
            for path, module in self.holders:
                value = vars(module).get(name)
                if (value[int(element)] if element and isinstance(value, (list, tuple)) else value) == ids.size(dim):
                    self.notes.append(Note(path, attribute, ids, dim, guessed=True))

    def _attributes(self, fits: Callable[[object], bool]) -> list[str]:
        """The public attributes that fit: the running module's own, else those of the modules that it calls upon."""
        (_, own), *others = self.holders
        for modules in ([own], [module for _, module in others]):
            names = [name for each in modules for name, value in vars(each).items() if fits(value)]
            if found := [name for name in dict.fromkeys(names) if not name.startswith("_")]:
                return found
        return []


def _extent(value: object) -> int | None:
    if isinstance(value, (tuple, list, torch.Size)) and len(value) == 1:
        value = value[0]
    return value if type(value) is int else None
