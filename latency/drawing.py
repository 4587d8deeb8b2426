"""How charts look, and how they become SVG; without pyplot, so that nothing global is touched."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["AFTER", "BEFORE", "GRID", "INK", "MARK", "axes_of", "bars", "legend", "shared_legend", "svg"]

BEFORE, AFTER, MARK, INK, GRID = "#c9d3de", "#0f6e84", "#c2703d", "#1f2933", "#e4e9ef"


def axes_of(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of this size in inches, and its axes from left to right and down."""
    figure = Figure(figsize=(width, height), layout="constrained")
    found = [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
    for axes in found:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        axes.tick_params(length=0, labelsize=8, colors=INK)
        axes.set_axisbelow(True)
    return figure, found


def bars(
    axes: Axes,
    rows: Sequence[tuple[str, float, float]],
    unit: str,
    wide: tuple[str, str],
    narrow: tuple[str, str],
) -> None:
    """Two bars a row, (name, wide, narrow), the second within the first; `wide` and `narrow` are (label, colour)."""
    places = range(len(rows))
    for column, height, (label, colour) in ((1, 0.74, wide), (2, 0.4, narrow)):
        axes.barh(places, [row[column] for row in rows], height=height, color=colour, label=label)
    axes.set_yticks(places, [row[0] for row in rows], fontfamily="monospace", fontsize=7.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_xlabel(unit, fontsize=8.5, color=INK)
    legend(axes)


def legend(axes: Axes) -> None:
    """The labels of what is drawn, in a row above it."""
    axes.legend(frameon=False, fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)


def shared_legend(figure: Figure) -> None:
    """The labels of what is drawn in any of the figure's axes, once each, in a row below them."""
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    labelled = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
    figure.legend(
        labelled.values(), labelled, loc="outside lower left", frameon=False, fontsize=8.5, ncols=len(labelled)
    )


def svg(figure: Figure, *, embedded: bool = False) -> str:
    """The figure as an <svg> element that scales with the page: on white, or on the page's own colour if embedded."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=embedded, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
