"""How charts look, and how they become SVG; without pyplot, so that nothing global is touched."""

from __future__ import annotations

import io
import re

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["AFTER", "BEFORE", "GRID", "INK", "axes_of", "svg"]

BEFORE, AFTER, INK, GRID = "#c9d3de", "#0f6e84", "#1f2933", "#e4e9ef"


def axes_of(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of this size in inches, and its axes from left to right."""
    figure = Figure(figsize=(width, height), layout="constrained")
    found = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for axes in found:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        axes.tick_params(length=0, labelsize=8, colors=INK)
        axes.set_axisbelow(True)
    return figure, found


def svg(figure: Figure) -> str:
    """The figure as an <svg> element that scales with the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
