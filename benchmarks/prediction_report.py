"""What the rows of `benchmarks.prediction` say: a line each, and a table and a picture over all networks by runtime."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy import stats

from latency.drawing import AFTER, BEFORE, GRID, INK, MARK, axes_of, shared_legend, svg
from network.errors import InputError

__all__ = ["line", "plot", "summary"]

Row = dict[str, Any]

HEADS = (
    "runtime",
    "precision",
    "networks",
    "plans",
    "median error",
    "within 5 %",
    "within 10 %",
    "worst",
    "without drift: median",
    "within 5 %",
    "within 10 %",
    "noise floor",
    "rank: table",
    "isolated",
    "MACs",
    "isolated / whole",
)

SAYING = {
    "macs": ("prediction", "MACs, scaled to fit", BEFORE),
    "isolated_ms": ("isolated", "isolated layers", MARK),
    "predicted_ms": ("prediction", "table", AFTER),
}
"""What is drawn, in this order: the kind of row that has it, its label and colour."""

FARTHEST = 2.5
"""Times too much or too little, at which what is farther off is drawn."""


def summary(rows: Iterable[Row]) -> str:
    """A Markdown table, a line per runtime and precision.

    Errors |predicted / delivered - 1| are of all plans of all networks together; without drift, predictions are first
    multiplied by how much slower the full network, timed in turn with the plan, was than when it was profiled. The
    noise floor is the median of the same plans' differences when timed twice. Ranks (Spearman, over a network's plans,
    drift divided out for all alike) and isolated / whole are medians over networks; isolated ones are of the plans that
    were so timed.
    """
    table = pd.DataFrame([row for row in rows if row["kind"] in ("prediction", "isolated")])
    if table.empty:
        return "no rows of predictions yet"
    lines = [HEADS, ("---",) * len(HEADS)]
    for (runtime, precision), part in table.groupby(["runtime", "precision"], sort=True):
        lines.append((str(runtime), str(precision), *_cells(part.to_dict("records"))))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cells(rows: Sequence[Row]) -> list[str]:
    made = [row for row in rows if row["kind"] == "prediction"]
    alone = [row for row in rows if row["kind"] == "isolated"]
    errors, still = (_all_errors(made, drift) for drift in (False, True))
    floors = [each for row in made for each in row["floors"]]
    cells = [str(len(made)), str(len(errors))]
    if made:
        within = [f"{np.mean(errors <= share):.0%}" for share in (0.05, 0.10)]
        cells += [f"{np.median(errors):.1%}", *within, f"{errors.max():.1%}"]
        cells += [f"{np.median(still):.1%}", *(f"{np.mean(still <= share):.0%}" for share in (0.05, 0.10))]
        cells += [f"{np.median(floors):.1%}" if floors else ""]
    else:
        cells += [""] * 8
    ranks = (_rank(made, "predicted_ms"), _rank(alone, "isolated_ms"), _rank(made, "macs"))
    cells += ["" if rank is None else f"{rank:.3f}" for rank in ranks]
    return [*cells, f"{np.median([_over(row) for row in alone]):.2f}" if alone else ""]


def _column(row: Row, key: str) -> np.ndarray:
    return np.array([plan[key] for plan in row["rows"]], dtype=float)


def _steady(row: Row) -> np.ndarray:
    """Delivered milliseconds as if the machine had not drifted."""
    return _column(row, "delivered_ms") / [plan.get("drift") or 1.0 for plan in row["rows"]]


def _errors(row: Row, drift: bool = False) -> np.ndarray:
    ratios = _ratios(row, "predicted_ms") if drift else _column(row, "predicted_ms") / _column(row, "delivered_ms")
    return np.abs(ratios - 1)


def _all_errors(rows: Sequence[Row], drift: bool) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(_errors(row, drift) for row in rows)])


def _over(row: Row) -> float:
    return float(np.median(_column(row, "isolated_ms") / _column(row, "delivered_ms")))


def _rank(rows: Iterable[Row], key: str) -> float | None:
    """Median over networks of the rank correlation with delivered milliseconds; None of fewer than three plans."""
    found = [stats.spearmanr(_column(row, key), _steady(row)) for row in rows if len(row["rows"]) > 2]
    return float(np.median([each.statistic for each in found])) if found else None


def _scaled(row: Row, key: str) -> float:
    """Median error after the best single scale, without drift; it flatters, being fitted to these very plans."""
    return float(np.median(np.abs(_fitted(_ratios(row, key)) - 1)))


def _ratios(row: Row, key: str) -> np.ndarray:
    """What was said over what was delivered, drift divided out."""
    return _column(row, key) / _steady(row)


def _fitted(ratios: np.ndarray) -> np.ndarray:
    """The same by the best single scale."""
    return ratios / np.median(ratios)


def plot(rows: Iterable[Row]) -> str:
    """SVG, a panel per runtime and precision: said / delivered over delivered milliseconds, drift divided out.

    A dot per plan. MACs are scaled by the median of their network's plans, isolated layers by nothing. The band is
    5 % either way. Raises InputError where nothing was predicted.
    """
    made = [row for row in rows if row["kind"] in ("prediction", "isolated") and row["rows"]]
    panels = sorted({(row["runtime"], row["precision"]) for row in made if row["kind"] == "prediction"})
    if not panels:
        raise InputError("no rows of predictions to draw; leave out --plot, or measure some first")
    figure, found = axes_of(2.4 * max(len(panels), 3), 3.2, columns=len(panels))
    for axes, panel in zip(found, panels, strict=True):
        axes.axhspan(0.95, 1.05, color=GRID, linewidth=0)
        for key, (kind, label, colour) in SAYING.items():
            part = [row for row in made if (row["runtime"], row["precision"], row["kind"]) == (*panel, kind)]
            _dots(axes, part, key, label, colour)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(1 / FARTHEST / 1.05, FARTHEST * 1.05)
        axes.yaxis.set_major_locator(FixedLocator([0.4, 0.5, 0.7, 1, 1.5, 2, 2.5]))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_title(" ".join(panel), fontsize=9, loc="left", color=INK)
        axes.set_xlabel("delivered ms", fontsize=8.5, color=INK)
    found[0].set_ylabel("said / delivered", fontsize=8.5, color=INK)
    shared_legend(figure)
    return svg(figure)


def _dots(axes: Axes, rows: Sequence[Row], key: str, label: str, colour: str) -> None:
    if not rows:
        return
    ratios = [_ratios(row, key) for row in rows]
    said = np.concatenate([_fitted(each) for each in ratios] if key == "macs" else ratios)
    ms = np.concatenate([_steady(row) for row in rows])
    axes.plot(ms, said.clip(1 / FARTHEST, FARTHEST), "o", color=colour, markersize=2.4, markeredgewidth=0, label=label)


def line(row: Row) -> str:
    """One row in words."""
    start = f"{row['network']:<16} {row['runtime']:<12} {row['precision']:<5} "
    said = start + SAID[row["kind"]](row)
    if (row.get("waited_seconds") or 0.0) >= 1.0:
        said += f"  waited {row['waited_seconds']:.0f} s"
    if row.get("apart", 0.0) > 0.0:
        said += f"  cores apart in {row['apart']:.0%} of the rounds"
    return said


def _predicted(row: Row) -> str:
    errors = _errors(row)
    said = (
        f"median {np.median(errors):6.1%}  ≤5 % {np.mean(errors <= 0.05):4.0%}  ≤10 % {np.mean(errors <= 0.10):4.0%}"
        f"  worst {errors.max():6.1%}  without drift {np.median(_errors(row, drift=True)):.1%}"
        f"  rank {_or_none(_rank([row], 'predicted_ms'))}"
        f"  MACs {_scaled(row, 'macs'):.1%} rank {_or_none(_rank([row], 'macs'))}"
    )
    if row["floors"]:
        said += f"  floor {np.median(row['floors']):5.1%}"
    if row["table_seconds"] is not None:
        said += f"  table of {row['configurations']} in {row['table_seconds']:.0f} s, {row['timing_share']:.0%} timing"
    return f"{said}  in all {row['seconds']:.0f} s"


def _removed(row: Row) -> str:
    if not row["rows"]:
        return "no group may go"
    errors, gone = _errors(row, drift=True), _column(row, "gone")
    off = _ratios(row, "predicted_ms") - 1
    few = gone <= np.median(gone)
    bias, worse = np.median(off[few]), np.median(off[~few])
    return (
        f"without up to {gone.max():.0f} groups, drift divided out: median {np.median(errors):.1%}  "
        f"≤5 % {np.mean(errors <= 0.05):4.0%}  ≤10 % {np.mean(errors <= 0.10):4.0%}  "
        f"bias {bias:+.1%} where up to {gone[few].max():.0f} are gone, beyond {worse:+.1%}"
    )


def _isolated(row: Row) -> str:
    return (
        f"isolated: {_over(row):.2f} of the whole, then {_scaled(row, 'isolated_ms'):.1%} off, "
        f"rank {_or_none(_rank([row], 'isolated_ms'))} of {len(row['rows'])} plans  in all {row['seconds']:.0f} s"
    )


def _or_none(rank: float | None) -> str:
    return "none" if rank is None else f"{rank:.3f}"


def _twice(row: Row) -> str:
    parts = [f"{p} % {row[f'difference_p{p}']:.1%}" for p in (50, 75, 90, 95)]
    return (
        f"made twice, {row['rows']} rows differ by: {'  '.join(parts)}  slowest quarter "
        f"{row['difference_of_the_slowest_quarter_p50']:.1%}  predictions {row['prediction_difference_p50']:.1%}"
    )


def _burnt(row: Row) -> str:
    return (
        f"while a core burnt: median {row['median_error']:6.1%}  ≤5 % {row['within_5_percent']:4.0%}  "
        f"≤10 % {row['within_10_percent']:4.0%}  contention {row['contention']:.0%}, "
        f"{'warned' if row['warned'] else 'did not warn'}"
    )


SAID = {"prediction": _predicted, "removal": _removed, "isolated": _isolated, "twice": _twice, "burn": _burnt}
