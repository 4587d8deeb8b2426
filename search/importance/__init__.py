"""How much each channel matters: the coefficients of the integer program's objective. One (width,) array a group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from network.errors import InputError
from network.types import Network
from search.importance.kept import Kept, identity
from search.importance.magnitude import magnitude
from search.importance.sensitivity import sensitivity
from search.importance.taylor import taylor
from search.task import Task

__all__ = ["MEASURES", "importance_of", "magnitude", "sensitivity", "taylor"]

MEASURES = ("sensitivity", "taylor", "magnitude")


def importance_of(
    kind: str,
    model: nn.Module,
    net: Network,
    task: Task | None,
    batches: int = 16,
    *,
    progress: bool = False,
    keep_in: Path | None = None,
    told: Sequence[str | None] = (),
) -> dict[str, np.ndarray]:
    """The importance of this kind, one of MEASURES; `batches` as of `taylor`. Raises InputError for want of data.

    keep_in: a folder where what was measured is kept, group by group, and found again when it is asked for; told: as of
    `search.importance.kept.identity`.
    """
    if kind == "magnitude":
        return magnitude(model, net)
    if task is None:
        raise InputError(f"--importance {kind} needs data; give --images DIR or --task FILE:CLASS")

    def kept(name: str) -> Kept | None:
        return None if keep_in is None else Kept(keep_in, identity(name, model, net, task, batches, told))

    ranking = taylor(model, net, task, batches, progress=progress, kept=kept("taylor"))
    if kind == "taylor":
        return ranking
    return sensitivity(model, net, task, ranking, progress=progress, kept=kept(kind))
