"""Which layer an executed operation belongs to, when a runtime fused several of them into one. No torch."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from latency.runtimes.base import UNOWNED

if TYPE_CHECKING:
    from torch import fx

__all__ = ["WEIGHTED", "Owners", "by_owner", "owner_of", "root_of"]

WEIGHTED = re.compile(
    r"(?<![a-z0-9])(?:q?conv(?:\d|_|olution)|(?:q?linear|bilinear|_trilinear|einsum|matmul|(?:b|addb?|baddb)?mm)(?![a-z0-9]))|attention"
)
"""torch's operations with weights, in the names of nodes and kernels; `upsample_bilinear2d` is none."""


class Owners:
    """Whom operations belong to, asked in the order in which they run; reads: as of `owner_of`."""

    def __init__(self, reads: Mapping[str, Sequence[str]]):
        self._reads, self._taken = reads, set[str]()

    def of(self, origins: Sequence[str], *, weighted: bool) -> str:
        """See `owner_of`; what a weighted operation was given is taken from then on."""
        owner = owner_of(origins, self._reads, weighted=weighted, taken=self._taken)
        self._taken |= {owner} if weighted else set()
        return owner


def by_owner(times: Iterable[tuple[str, float]], owners: Mapping[str, str]) -> dict[str, float]:
    """Milliseconds of operations added up by the layers that own them; those of none under `UNOWNED`."""
    owned: dict[str, float] = {}
    for operation, ms in times:
        owner = owners.get(operation, UNOWNED)
        owned[owner] = owned.get(owner, 0.0) + ms
    return owned


def root_of(node: fx.Node) -> str:
    """The name of the exported graph's node that a decomposed or rewritten one came from; "" where none is known."""
    name, sources = "", node.meta.get("from_node") if node.op == "call_function" else None
    while sources:
        name, sources = sources[-1].name, sources[-1].from_node
    return name


def owner_of(
    origins: Sequence[str], reads: Mapping[str, Sequence[str]], *, weighted: bool, taken: Collection[str] = ()
) -> str:
    """The layer that an operation with these origins (nodes of the exported graph) belongs to.

    Of a `weighted` one it is the nearest node with weights, from the origins upwards: a convolution that swallowed its
    norm, or a sum, may have lost its own name. Else it is the first origin. reads: node → the nodes that it reads;
    taken: what earlier operations with weights belong to, such as the other side of that sum; passed over if there is
    another.
    """
    if not weighted:
        return origins[0]
    queue, seen = deque(origins), set[str]()
    nearest = ""
    while queue:
        name = queue.popleft()
        if WEIGHTED.search(name):
            if name not in taken:
                return name
            nearest = nearest or name
        elif name not in seen:
            queue += reads.get(name, [])
        seen.add(name)
    return nearest or origins[0]
