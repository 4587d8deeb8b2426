"""Which layer an executed operation belongs to, when a runtime fused several of them into one. No torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence

__all__ = ["owner_of"]

WEIGHTED = ("conv", "linear", "mm", "matmul", "einsum", "attention")


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
        if any(word in name for word in WEIGHTED):
            if name not in taken:
                return name
            nearest = nearest or name
        elif name not in seen:
            queue += reads.get(name, [])
        seen.add(name)
    return nearest or origins[0]
