"""From classes of ids to channel groups with names, members and roles, and to widths that are linear in them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from network.contraction import KERNEL
from network.ids import Classes, Value
from network.propagation import Propagation
from network.types import Frozen, Group, Member, Width

__all__ = ["Grouping"]

Signature = tuple[tuple[str, int, int], ...]


class Grouping:
    """A group is the set of free classes that meet the same (parameter, dimension, multiplicity) triples.

    groups, frozen: what the traced Network shows.
    """

    def __init__(self, state: Propagation):
        self._state = state
        self._classes: Classes = state.ledger.classes()
        self._labels = {
            (name, dim): self._classes.labels[vector.long().numpy()]
            for name in _in_order_of_use(state)
            for dim, vector in state.parameters[name].items()
        }
        self._consumed = np.zeros(state.ledger.count, bool)
        for vector in state.ledger.contracted:
            self._consumed[vector.long().numpy().reshape(-1)] = True
        self._weights = {
            name for op in state.operations if op.op in _READERS for o in op.operands if o.weight for name in o.sources
        }
        self._channel = np.full(len(self._classes.frozen), -1)
        free, bound = self._collect()
        self._soft = self._soft_classes()
        names = _Names()
        self.groups = tuple(self._group(names, signature, labels) for signature, labels in free.items())
        self.frozen = tuple(
            Frozen(self._name(names, signature), len(labels), reasons)
            for (signature, reasons), labels in bound.items()
            if set(reasons) != {KERNEL}
        )
        self._group_of = np.full(len(self._classes.frozen), -1)  # the last for what is frozen, which has the label -1
        for number, labels in enumerate(free.values()):
            self._group_of[labels] = number
        self._widths = {group.name: group.width for group in self.groups}

    # ---- widths ------------------------------------------------------------------------------------------------
    def width(self, ids: Tensor, dim: int) -> Width:
        """The extent of an id tensor along one dimension, in the groups' widths."""
        extent = ids.size(dim)
        if self._classes.axis(ids) != dim:
            return Width(extent)
        across = tuple(slice(None) if k == dim else 0 for k in range(ids.dim()))
        labels = self._classes.of(ids)[across]
        numbers, first, counts = np.unique(self._group_of[labels], return_index=True, return_counts=True)
        met = [(self.groups[numbers[i]], int(counts[i])) for i in np.argsort(first) if numbers[i] >= 0]
        terms = tuple((group.name, count // group.width) for group, count in met if count >= group.width)
        return Width(extent - sum(m * self._widths[name] for name, m in terms), terms)

    def extent(self, value: Value, dim: int) -> Width:
        """The extent of a tensor along one dimension."""
        for ids in value.ids:
            if ids.size(dim) > 1:
                return self.width(ids, dim)
        return Width(value.shape[dim])

    def channel_dim(self, value: Value) -> int | None:
        """The dimension along which a tensor loses channels; else one that has ids; None where nothing has."""
        with_ids = None
        for ids in value.ids:
            dim = self._classes.axis(ids)
            if dim is not None and self.width(ids, dim).terms:
                return dim
            with_ids = dim if with_ids is None else with_ids
        return with_ids

    def full(self, name: str) -> int:
        """The full width of a group."""
        return self._widths[name]

    def depends(self, ids: Tensor) -> set[str]:
        """The groups that an id tensor meets."""
        return {self.groups[number].name for number in np.unique(self._group_of[self._classes.of(ids)]) if number >= 0}

    def axis(self, ids: Tensor) -> int | None:
        """The dimension along which an id tensor loses channels."""
        return self._classes.axis(ids)

    def freeze(self, name: str, why: str) -> None:
        """Freeze a group for good; build the Grouping anew afterwards."""
        member = next(group for group in self.groups if group.name == name).members[0]
        positions = member.index.reshape(-1)
        self._state.ledger.freeze(self._state.parameters[member.parameter][member.dim][positions], why)

    # ---- construction ------------------------------------------------------------------------------------------
    def _collect(self) -> tuple[dict[Signature, np.ndarray], dict[tuple[Signature, tuple[str, ...]], np.ndarray]]:
        """The classes that each signature has, and those of each signature and set of reasons; in order of use.

        Classes of one signature share a number all along, which every parameter's dimension divides further.
        """
        numbers = np.zeros(len(self._classes.frozen), np.int64)
        signatures: list[Signature] = [()]
        met = []
        for (name, dim), labels in self._labels.items():
            unique, first, counts = np.unique(labels, return_index=True, return_counts=True)
            met.append(unique[np.argsort(first)])
            parts, part = np.unique(numbers[unique] * (len(labels) + 1) + counts, return_inverse=True)
            numbers[unique] = len(signatures) + part
            old, counted = np.divmod(parts, len(labels) + 1)
            signatures += [(*signatures[i], (name, dim, int(n))) for i, n in zip(old, counted, strict=True)]
        seen = np.concatenate(met) if met else np.zeros(0, np.int64)
        in_order = seen[np.sort(np.unique(seen, return_index=True)[1])]
        kept = ~self._classes.frozen[in_order]
        free = {signatures[n]: labels for n, labels in _by_number(numbers, in_order[kept]).items()}
        bound: dict[tuple[Signature, tuple[str, ...]], list[int]] = defaultdict(list)
        for n, labels in _by_number(numbers, in_order[~kept]).items():
            for label in labels.tolist():
                bound[signatures[n], tuple(sorted(self._classes.reasons[label]))].append(label)
        return free, {key: np.array(labels) for key, labels in bound.items()}

    def _soft_classes(self) -> dict[str, np.ndarray]:
        """{statistic over channels: whether each class is in it}."""
        soft: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(self._classes.frozen), bool))
        for ids, statistic in self._state.ledger.soft:
            soft[statistic][self._classes.labels[ids.long().numpy()]] = True
        return soft

    def _group(self, names: _Names, signature: Signature, labels: np.ndarray) -> Group:
        members = tuple(self._member(name, dim, m, labels) for name, dim, m in signature)
        made = [member.parameter for member in members if member.role == "producer"]
        read = [member.parameter for member in members if member.role == "consumer"]
        return Group(
            name=self._name(names, signature),
            width=len(labels),
            members=members,
            producers=_modules([name for name in made if name in self._weights] or made),
            consumers=_modules(read),
            soft=tuple(statistic for statistic, inside in sorted(self._soft.items()) if inside[labels].any()),
        )

    def _member(self, name: str, dim: int, multiplicity: int, classes: np.ndarray) -> Member:
        self._channel[classes] = np.arange(len(classes))
        position = self._channel[self._labels[name, dim]]
        self._channel[classes] = -1
        index = np.argsort(position, kind="stable")[(position < 0).sum() :].reshape(len(classes), multiplicity)
        return Member(name, dim, index, self._role(name, dim))

    def _role(self, name: str, dim: int) -> str:
        ids = self._state.parameters[name][dim].long().numpy()
        return "consumer" if self._consumed[ids].any() else "producer"

    def _name(self, names: _Names, signature: Signature) -> str:
        made = [name for name, dim, _ in signature if self._role(name, dim) == "producer"]
        first = next((name for name in made if name in self._weights), (made or [signature[0][0]])[0])
        return names.unique(_modules([first])[0] if made else f"{_modules([first])[0]} (input)")


_READERS = {"linear", "matmul", "mm", "bmm", "addmm", "einsum", "embedding"} | {
    f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)
}


class _Names:
    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        self._seen[name] += 1
        return name if self._seen[name] == 1 else f"{name}:{self._seen[name]}"


def _by_number(numbers: np.ndarray, labels: np.ndarray) -> dict[int, np.ndarray]:
    """The labels of each number, both in order of appearance."""
    unique, first, inverse = np.unique(numbers[labels], return_index=True, return_inverse=True)
    return {int(unique[i]): labels[inverse == i] for i in np.argsort(first)}


def _modules(parameters: Iterable[str]) -> tuple[str, ...]:
    """The modules that own these parameters, in order, once each."""
    return tuple(dict.fromkeys(_owner(name) for name in parameters))


def _owner(parameter: str) -> str:
    """conv.weight → conv; conv.parametrizations.weight.original0 → conv; a parameter of the network names itself."""
    module, mark, _ = parameter.partition(".parametrizations.")
    return module if mark else parameter.rpartition(".")[0] or parameter


def _in_order_of_use(state: Propagation) -> list[str]:
    used = (name for op in state.operations for operand in op.operands for name in operand.sources)
    return [name for name in dict.fromkeys([*used, *state.parameters]) if name in state.parameters]
