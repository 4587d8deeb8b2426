"""Channel identity: an id for every index of every parameter dimension, and the ledger of which ids go together.

An activation carries *id tensors* of its own rank, float64 (so that every kernel accepts them), of size 1 along the
dimensions in which they do not vary. An element of the activation is absent once any of its ids is removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

__all__ = ["Classes", "Ledger", "Value", "along", "collapse", "line", "spans"]


def spans(ids: Tensor) -> list[int]:
    """The dimensions in which an id tensor varies."""
    return [dim for dim in range(ids.dim()) if ids.size(dim) > 1]


def collapse(ids: Tensor) -> Tensor:
    """Size 1 along every dimension in which the ids do not vary."""
    for dim in range(ids.dim()):
        if ids.size(dim) > 1 and (ids.stride(dim) == 0 or bool((ids == ids.narrow(dim, 0, 1)).all())):
            ids = ids.narrow(dim, 0, 1)
    return ids


def along(vector: Tensor, dim: int, rank: int) -> Tensor:
    """A vector of ids laid along one of `rank` dimensions."""
    return vector.reshape([-1 if k == dim else 1 for k in range(rank)])


def line(ids: Tensor, dim: int) -> Tensor:
    """The ids along one dimension, at index 0 of the others; rank kept."""
    for other in range(ids.dim()):
        if other != dim:
            ids = ids.narrow(other, 0, 1)
    return ids


@dataclass(slots=True)
class Value:
    """What is known of one tensor of the graph.

    shape: its extents. ids: id tensors of that rank. constant: its content where that is known before running.
    weight: computed from parameters alone. sources: the parameters that it is computed from, by name.
    origin: for a tensor without ids, where its fixed extents come from, in words.
    """

    shape: tuple[int, ...]
    ids: list[Tensor] = field(default_factory=list)
    constant: Tensor | None = None
    weight: bool = False
    sources: tuple[str, ...] = ()
    origin: str = ""


class Ledger:
    """Hands out ids and records ties between them; equivalence classes are computed once, at the end.

    A reason has an id too: a tie to it freezes, and every frozen class carries its reasons.
    `contracted` are the ids of weights that are summed away, `soft` the statistics over channels, `undecided` the id
    tensors that vary in several dimensions.
    """

    def __init__(self) -> None:
        self.count = 0
        self.contracted: list[Tensor] = []
        self.soft: list[tuple[Tensor, str]] = []
        self.undecided: list[Tensor] = []
        self._reasons: dict[str, int] = {}
        self._edges: list[np.ndarray] = []

    def fresh(self, n: int) -> Tensor:
        """n new ids, shape (n,)."""
        self.count += n
        return torch.arange(self.count - n, self.count, dtype=torch.float64)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Elementwise, after broadcasting: these ids are removed together or not at all."""
        a, b = (t.reshape(-1) for t in torch.broadcast_tensors(a, b))
        differ = a != b
        if differ.any():
            edges = torch.stack([a[differ], b[differ]]).numpy().astype(np.int64)
            self._edges.append(np.unique(edges, axis=1) if edges.shape[1] > 1 else edges)

    def reason(self, why: str) -> Tensor:
        """The id of a reason, a scalar."""
        if why not in self._reasons:
            self._reasons[why] = int(self.fresh(1))
        return torch.tensor(self._reasons[why], dtype=torch.float64)

    def freeze(self, ids: Tensor | Iterable[Tensor], why: str) -> None:
        """These ids stay, and this is why."""
        for each in [ids] if isinstance(ids, Tensor) else ids:
            self.tie(each, self.reason(why))

    def classes(self) -> Classes:
        """The equivalence classes of all ids.

        A tensor can only lose whole hyperplanes. One that varies in several dimensions (after a view has split its
        channels) must therefore be decided by its readers; where nobody did, its classes are tied down to its
        longest dimension.
        """
        while True:
            classes = self._components()
            loose = [ids for ids in self.undecided if classes.axis(ids) is None]
            if not loose:
                return classes
            for ids in loose:
                self.tie(ids, line(ids, max(spans(ids), key=ids.size)))

    def _components(self) -> Classes:
        edges = np.concatenate(self._edges, axis=1) if self._edges else np.zeros((2, 0), np.int64)
        names = {number: why for why, number in self._reasons.items()}
        is_reason = np.zeros(self.count, bool)
        is_reason[list(names)] = True
        of_reason = is_reason[edges]
        a, b = edges[:, ~of_reason.any(axis=0)]
        graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(self.count, self.count))
        labels = connected_components(graph, directed=False)[1]
        reasons: dict[int, set[str]] = {int(labels[number]): {why} for number, why in names.items()}
        for side, other in ((0, 1), (1, 0)):
            frozen = edges[:, of_reason[side] & ~of_reason[other]]
            for number, label in np.unique(np.stack([frozen[side], labels[frozen[other]]]), axis=1).T:
                reasons.setdefault(int(label), set()).add(names[int(number)])
        frozen = np.zeros(self.count + 1, bool)
        frozen[list(reasons)] = True
        return Classes(labels, reasons, frozen)


@dataclass(frozen=True, slots=True)
class Classes:
    """labels: the class of every id, (count,). reasons: why a class is frozen. frozen: whether a class is."""

    labels: np.ndarray
    reasons: dict[int, set[str]]
    frozen: np.ndarray

    def of(self, ids: Tensor) -> np.ndarray:
        """The class of each id, of the same shape; -1 where it is frozen."""
        labels = self.labels[ids.long().numpy()]
        return np.where(self.frozen[labels], -1, labels)

    def axis(self, ids: Tensor) -> int | None:
        """The one dimension along which classes vary (any, if none does); None if they vary along several."""
        classes = self.of(ids)
        for dim in sorted(spans(ids), key=ids.size, reverse=True):
            others = tuple(slice(None) if k == dim else slice(0, 1) for k in range(ids.dim()))
            if (classes == classes[others]).all():
                return dim
        return None
