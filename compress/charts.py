"""The report's charts as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latency.drawing import AFTER, BEFORE, GRID, INK, axes_of, bars, svg
from search.plan import PlanLayer, module_times

__all__ = ["curves", "layer_times", "widths"]

BARS = 32
"""Layers or groups beyond the costliest of these are summed into one bar."""

FUSED = 1e-3
"""Share of all milliseconds below which a layer is left out: a fused runtime gives most layers none of their own."""


def _bars(rows: Sequence[tuple[str, float, float]], unit: str, before: str, after: str) -> str:
    figure, (axes,) = axes_of(8.6, 0.9 + 0.24 * len(rows))
    bars(axes, rows, unit, (before, BEFORE), (after, AFTER))
    return svg(figure, embedded=True)


def layer_times(layers: Sequence[Mapping[str, Any]]) -> str:
    """Milliseconds of each module that has any, before and after, the costliest first."""
    times = module_times(PlanLayer(**layer) for layer in layers)
    least = FUSED * sum(before for _, before, _ in times)
    rows = sorted((row for row in times if max(row[1:]) > least), key=lambda row: -row[1])
    return _bars(_shorten(rows), "predicted milliseconds", "original", "delivered")


def widths(full: Mapping[str, int], kept: Mapping[str, int]) -> str:
    """Channels of each group before and after, in the network's order."""
    rows = [(name, float(width), float(kept[name])) for name, width in full.items()]
    return _bars(_shorten(rows), "channels", "original", "kept")


def _shorten(rows: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    rest = rows[BARS:]
    if len(rest) < 2:
        return rows
    return [*rows[:BARS], (f"{len(rest)} others", sum(row[1] for row in rest), sum(row[2] for row in rest))]


def curves(stages: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Training loss of every stage that trained, one after the other on one axis of steps; None where none did."""
    trained = {name: detail["curve"] for name, detail in stages.items() if detail.get("curve", {}).get("loss")}
    if not trained:
        return None
    figure, (axes,) = axes_of(8.6, 3.0)
    offset = 0
    for (name, curve), colour in zip(trained.items(), ("#c2703d", AFTER), strict=False):
        points = curve["loss"]
        axes.plot([offset + point[0] for point in points], [point[2] for point in points], color=colour, label=name)
        offset += curve["steps"]
    if all(point[2] > 0 for curve in trained.values() for point in curve["loss"]):
        axes.set_yscale("log")
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_xlabel("steps", fontsize=8.5, color=INK)
    axes.set_ylabel("training loss", fontsize=8.5, color=INK)
    axes.legend(frameon=False, fontsize=8.5)
    return svg(figure, embedded=True)
