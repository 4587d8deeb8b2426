"""Layers never measured on a machine that is not at hand: samples borrowed from the nearest measured ones. No torch.

Time hardly ever goes with the output positions P alone: a call costs something too, and weights are read once. So each
sample of a lender is multiplied by what a model of all alike layers, fitted to their samples, says of the step from its
positions to the wanted ones at its widths:

    m(P, c_in, c_out) = β · (1, c_in, c_out, c_in·c_out, P, P·c_in, P·c_out, P·c_in·c_out),   β ≥ 0
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import log2, prod
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from latency.stairs import NEGLIGIBLE_MS, fit_staircase

__all__ = ["borrow", "left_out_errors", "with_borrowed"]

ALIKE = ("kernel", "stride", "groups")
"""Attributes in which a lender never differs; the others and the neighbours may."""

LENDERS = 2
POOL = 12
"""The most similar layers whose samples the model of alike layers is fitted to."""


def with_borrowed(rows: pd.DataFrame, missing: Sequence[str]) -> tuple[pd.DataFrame, dict[str, float]]:
    """The rows with those borrowed for the missing specifications, and how far borrowing misses by each of these.

    That is the median relative error for measured layers of its operation, or of all where none can be left out.
    """
    layers = rows[rows.kind == "layer"]
    lent = {spec: part for spec in missing if (part := borrow(layers, spec)) is not None}
    if not lent:
        return rows, {}
    ops = {spec: str(json.loads(spec)["op"]) for spec in lent}
    errors = left_out_errors(layers, sorted(set(ops.values())))
    misses = {spec: float(errors[errors.index == op].median()) for spec, op in ops.items()}
    known = [miss for miss in misses.values() if np.isfinite(miss)]
    usual = float(np.median(known)) if known else 1.0
    return pd.concat([rows, *lent.values()], ignore_index=True), {
        spec: miss if np.isfinite(miss) else usual for spec, miss in misses.items()
    }


def borrow(layers: pd.DataFrame, wanted: str) -> pd.DataFrame | None:
    """Samples for a layer specification (canonical JSON) from the most similar others; None where none is similar.

    layers: a device's rows of kind "layer". The result has the lenders' rows and widths, under `wanted`.
    """
    groups = {str(spec): part for spec, part in layers.groupby("spec", sort=True) if spec != wanted}
    alike = [(spec, groups[spec]) for spec in _nearest(wanted, list(groups))[:POOL]]
    if not alike:
        return None
    model = _of_all(alike)
    lent = []
    for spec, part in alike[:LENDERS]:
        there, here = (model(_positions(json.loads(each)), part) for each in (wanted, spec))
        lent.append(part.assign(spec=wanted, ms=part.ms * there / here))
    return pd.concat(lent, ignore_index=True)


def left_out_errors(layers: pd.DataFrame, ops: Sequence[str] | None = None) -> pd.Series:
    """Relative errors |borrowed / measured - 1| of every sample, each specification left out in turn; by operation.

    Layers that no other resembles, and those that are fused away, are not in it. ops: those only.
    """
    found = []
    for spec, part in layers.groupby("spec", sort=True):
        op = json.loads(str(spec))["op"]
        if part.ms.median() <= NEGLIGIBLE_MS or (ops is not None and op not in ops):
            continue
        lent = borrow(layers, str(spec))
        if lent is not None:
            model = fit_staircase(lent.c_in.to_numpy(), lent.c_out.to_numpy(), lent.ms.to_numpy())
            said = model.milliseconds(part.c_in.to_numpy(), part.c_out.to_numpy())
            found.append(pd.Series(np.abs(said / part.ms.to_numpy() - 1), index=[op] * len(part)))
    return pd.concat(found) if found else pd.Series(dtype=float)


def _nearest(wanted: str, others: Sequence[str]) -> list[str]:
    spec = json.loads(wanted)
    ranked = [(_unlikeness(spec, json.loads(other)), other) for other in others]
    return [other for rank, other in sorted((rank, other) for rank, other in ranked if rank is not None)]


def _unlikeness(a: dict[str, Any], b: dict[str, Any]) -> tuple[bool, bool, float] | None:
    """Other attributes, other neighbours, octaves of output positions between; None where they cannot be compared."""
    mine, theirs = dict(a["attributes"]), dict(b["attributes"])
    if a["op"] != b["op"] or any(mine.get(name) != theirs.get(name) for name in ALIKE):
        return None
    return mine != theirs, a["fused_with"] != b["fused_with"], abs(log2(_positions(a) / _positions(b)))


def _positions(spec: dict[str, Any]) -> float:
    """Output positions, of the whole batch; of what reduces a picture away, the input's."""
    return float(spec["batch"] * prod(spec["spatial_out"] or spec["spatial_in"] or [1]))


def _of_all(alike: Sequence[tuple[str, pd.DataFrame]]) -> Callable[[float, pd.DataFrame], np.ndarray]:
    """m above, fitted to these specifications' rows by relative error: positions, rows → ms."""
    columns = np.concatenate([_columns(_positions(json.loads(spec)), part) for spec, part in alike])
    ms = np.concatenate([part.ms.to_numpy() for _, part in alike])
    ms = np.maximum(ms, max(0.02 * ms.max(), NEGLIGIBLE_MS))
    unit = columns.max(axis=0)
    steps, _ = nnls(columns / unit / ms[:, None], np.ones(len(ms)))
    return lambda positions, part: np.maximum(_columns(positions, part) @ (steps / unit), NEGLIGIBLE_MS)


def _columns(positions: float, part: pd.DataFrame) -> np.ndarray:
    c_in, c_out = part.c_in.to_numpy(float), part.c_out.to_numpy(float)
    widths = np.stack([np.ones_like(c_in), c_in, c_out, c_in * c_out], axis=1)
    return np.concatenate([widths, positions * widths], axis=1)
