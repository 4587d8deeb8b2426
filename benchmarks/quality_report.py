"""What the rows of `benchmarks.quality` say: a line each, a picture, and how fast ours is at the quality of peers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from matplotlib.ticker import FuncFormatter

from latency.drawing import AFTER, GRID, INK, MARK, axes_of, shared_legend, svg
from network.errors import InputError

__all__ = ["UNCUT", "at_equal_quality", "line", "plot"]

UNCUT = "uncut"
"""The method of rows that are no peer: the original after the same training, as slow as it is."""

COLUMNS = 4
SYMBOLS = "osD^vP"
"""Of the peers, in turn; ours is a line."""

Row = dict[str, Any]
Point = tuple[float, float]
"""(delivered speed-up, quality)."""


def line(row: Row) -> str:
    """One row in words."""
    head = f"{row['case']:<18} {row['runtime']} {row['precision']} {row['speedup']:.2g}x {row['method']:<22}"
    if "failed" in row:
        return f"{head} failed: {row['failed']}"
    value, (low, high) = _quality(row), row["interval"].get(row["metric"], (float("nan"),) * 2)
    others = "  ".join(f"{name} {x:.4g}" for name, x in row["quality"].items() if name != row["metric"])
    return (
        f"{head} {row['original_ms']:8.2f} → {row['delivered_ms']:7.2f} ms ({_speedup(row):.2f}x)  "
        f"{row['metric']} {value:.4g} [{low:.4g}, {high:.4g}]  {others}  {row['wall_s']:.0f} s"
    )


def plot(rows: Iterable[Row]) -> str:
    """SVG, a panel per network, runtime and precision: quality with its interval over the delivered speed-up.

    Raises InputError where there is nothing to draw.
    """
    rows = [row for row in rows if "failed" not in row]
    panels = {what: list(group) for what, group in groupby(sorted(rows, key=_what), key=_what)}
    if not panels:
        raise InputError("no rows of quality to draw; leave out --plot, or make some first")
    peers = sorted({row["method"] for row in rows} - {"ours"})
    looks: dict[str, dict[str, Any]] = {
        peer: {"color": (MARK, INK)[number % 2], "marker": SYMBOLS[number % len(SYMBOLS)], "linestyle": "none"}
        for number, peer in enumerate(peers)
    }
    looks["ours"] = {"color": AFTER, "marker": "o", "linestyle": "-"}
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, found = axes_of(max(2.8 * columns, 5.6), 2.6 * lines + 0.4, columns, lines)
    for axes, (what, part) in zip(found, panels.items(), strict=False):
        for method, look in looks.items():
            points = sorted((row for row in part if row["method"] == method), key=_speedup)
            places = [_speedup(row) for row in points], [_quality(row) for row in points]
            axes.errorbar(*places, _spread(points), label=method, markersize=4, linewidth=1.2, **look)
        axes.grid(color=GRID, linewidth=0.8)
        axes.margins(0.15)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.set_title(f"{what[0]}, {what[1]} {what[2]}", fontsize=8.5, loc="left", color=INK)
        axes.set_ylabel(part[0]["metric"], fontsize=8, color=INK)
    for axes in found[len(panels) :]:
        axes.set_axis_off()
    shared_legend(figure)
    return svg(figure)


def _spread(points: Sequence[Row]) -> list[list[float]]:
    """How far each interval reaches below and above its quality; not at all where the row has none."""
    ends = [row["interval"].get(row["metric"], (_quality(row),) * 2) for row in points]
    below = [_quality(row) - low for row, (low, _) in zip(points, ends, strict=True)]
    return [below, [high - _quality(row) for row, (_, high) in zip(points, ends, strict=True)]]


def at_equal_quality(rows: Iterable[Row]) -> Iterator[str]:
    """A line for every speed-up that peers were asked for: the best of them, and how fast ours is where it is as good.

    Between two rows of ours, quality is taken to fall evenly with the logarithm of the speed-up; beyond them nothing is
    guessed: "at least" where even the fastest is better.
    """
    rows = [row for row in rows if "failed" not in row]
    for what, group in groupby(sorted(rows, key=_what), key=_what):
        part = list(group)
        ours = [(_speedup(row), _quality(row)) for row in part if row["method"] == "ours"]
        for asked in sorted({row["speedup"] for row in part}):
            peers = [row for row in part if row["method"] not in ("ours", UNCUT) and row["speedup"] == asked]
            if peers:
                best = max(peers, key=_quality)
                said = (
                    f"{' '.join(what)}: {best['method']} {best['metric']} {_quality(best):.4g} at {_speedup(best):.2f}x"
                )
                yield f"{said}; ours {_as_good(ours, _quality(best), _speedup(best))}"


def _as_good(ours: Sequence[Point], quality: float, speedup: float) -> str:
    found = _fastest(ours, quality)
    if found is None:
        return "has no row as good"
    fastest, least = found
    if least and fastest <= speedup:
        return f"is better at {fastest:.2f}x, and has no faster row"
    return f"is as good at {fastest:.2f}x{' at least' * least}, {fastest / speedup:.2f} times the speed-up"


def _fastest(ours: Sequence[Point], quality: float) -> tuple[float, bool] | None:
    """The speed-up up to which ours is as good, and whether it may be more; None where no row is as good."""
    good = [point for point in ours if point[1] >= quality]
    if not good:
        return None
    near, here = max(good)
    beyond = [point for point in ours if point[0] > near]
    if not beyond:
        return near, True
    far, there = min(beyond)
    share = (here - quality) / (here - there)
    return near ** (1 - share) * far**share, False


def _what(row: Row) -> tuple[str, str, str]:
    return row["case"], row["runtime"], row["precision"]


def _quality(row: Row) -> float:
    return float(row["quality"][row["metric"]])


def _speedup(row: Row) -> float:
    return float(row["original_ms"] / row["delivered_ms"])
