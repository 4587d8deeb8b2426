"""A layer's staircase as a picture: milliseconds over its input and over its output channels."""

from __future__ import annotations

import numpy as np

from latency.drawing import AFTER, BEFORE, GRID, INK, axes_of, svg
from latency.table import LatencyTable, spec_text
from network.types import Layer, Network

__all__ = ["plot_stairs"]


def plot_stairs(table: LatencyTable, net: Network, layer: Layer) -> str:
    """SVG of the fitted time over each width, the other one full: the line with a band of one standard deviation.

    Dots are the samples, each moved to the full other width by the model's own ratio.
    """
    model = table.model(layer.spec)
    full = {"input": layer.c_in.at(net.widths), "output": layer.c_out.at(net.widths)}
    rows = table.rows[(table.rows.kind == "layer") & (table.rows.spec == spec_text(layer.spec))]
    samples = {"input": rows.c_in.to_numpy(), "output": rows.c_out.to_numpy()}
    measured = rows.ms.to_numpy() / np.maximum(model.milliseconds(samples["input"], samples["output"]), 1e-12)
    figure, axes = axes_of(9.0, 3.6, columns=2)
    for panel, side in zip(axes, ("output", "input"), strict=True):
        widths = np.arange(1, full[side] + 1)
        other = np.full(len(widths), full["input" if side == "output" else "output"])
        pair = (other, widths) if side == "output" else (widths, other)
        ms, spread = model.milliseconds(*pair), model.relative_error(*pair)
        at = np.minimum(samples[side], full[side]) - 1
        panel.fill_between(widths, ms * (1 - spread), ms * (1 + spread), color=BEFORE, linewidth=0)
        panel.plot(widths, ms, color=AFTER, linewidth=1.2)
        panel.plot(samples[side], measured * ms[at], "o", color=INK, markersize=2.5)
        panel.set_ylim(bottom=0)
        panel.grid(color=GRID, linewidth=0.8)
        panel.set_xlabel(f"{side} channels", fontsize=8.5, color=INK)
    axes[0].set_ylabel("ms", fontsize=8.5, color=INK)
    axes[0].set_title(f"{layer.module or layer.name}: {layer.spec.op}, {table.device.id}", fontsize=9, loc="left")
    return svg(figure)
