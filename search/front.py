"""Every budget at once: plans from the fastest to the full network, as files and as a plot. No torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from network.errors import StoreError
from network.files import write_atomically
from search.budget import parse_budget
from search.plan import Plan
from search.planner import Problem

__all__ = ["SCHEMA", "front", "knee", "save_front"]

SCHEMA = 1
COLUMNS = ("plan", "budget_ms", "predicted_ms", "speedup", "importance_kept", "status", "gap", "file")


def front(problem: Problem, count: int) -> list[Plan]:
    """At most `count` plans of budgets evenly spaced from the fastest plan's to the full network's, fastest first.

    What was learnt for one budget helps with the next. Budgets that give the same widths give one plan. Each plan's
    budget is a ratio, so that it holds when the machine is faster or slower on the day that the plan is applied.
    """
    fastest, full = problem.fastest_ms / problem.baseline_ms, 1.0
    plans: dict[tuple[int, ...], Plan] = {}
    for ratio in tqdm(np.linspace(fastest, full, count), desc="front", unit="plan", leave=False):
        plan = problem.plan(parse_budget(f"{np.ceil(ratio * 1e6) / 1e6:.6f}x"))
        plans.setdefault(tuple(plan.widths.values()), plan)
    return list(plans.values())


def knee(plans: Sequence[Plan]) -> int:
    """The plan farthest above the straight line from the fastest to the slowest, both axes taken from 0 to 1.

    Satopää et al., "Finding a kneedle in a haystack", ICDCSW 2011.
    """
    ms = np.array([plan.predicted_ms for plan in plans])
    kept = np.array([plan.objective for plan in plans])
    span = (np.ptp(ms) or 1.0), (np.ptp(kept) or 1.0)
    return int(np.argmax((kept - kept.min()) / span[1] - (ms - ms.min()) / span[0]))


def save_front(folder: Path, plans: Sequence[Plan]) -> dict[str, Any]:
    """Write front.json, front.csv, front.svg and a file per plan, which apply-plan takes; returns front.json.

    Plans of an earlier front in the same folder go. Raises StoreError.
    """
    rows = [_row(number, plan) for number, plan in enumerate(plans, 1)]
    try:
        folder.mkdir(exist_ok=True)
        for old in folder.glob("plan-*.json"):
            old.unlink()
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror}; give another -o") from None
    for row, plan in zip(rows, plans, strict=True):
        plan.save(folder / row["file"])
    document = {
        "schema": SCHEMA,
        "device": plans[0].device,
        "runtime": plans[0].runtime,
        "precision": plans[0].precision,
        "baseline_ms": plans[0].baseline_ms,
        "knee": rows[knee(plans)]["plan"],
        "plans": [row | {"widths": dict(plan.widths)} for row, plan in zip(rows, plans, strict=True)],
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "front.csv", table.getvalue().encode())
    write_atomically(folder / "front.svg", _plot(document).encode())
    write_atomically(folder / "front.json", (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    return document


def _row(number: int, plan: Plan) -> dict[str, Any]:
    everything = sum(sum(scores) for scores in plan.importance.values()) or 1.0
    return {
        "plan": number,
        "budget_ms": plan.budget_ms,
        "predicted_ms": plan.predicted_ms,
        "speedup": plan.baseline_ms / plan.predicted_ms,
        "importance_kept": plan.objective / everything,
        "status": plan.status,
        "gap": plan.gap,
        "file": f"plan-{number:03d}.json",
    }


def _plot(document: Mapping[str, Any]) -> str:
    from latency.drawing import AFTER, GRID, INK, axes_of, svg

    figure, (axes,) = axes_of(7.2, 4.2)
    points = {row["plan"]: (row["predicted_ms"], 100 * row["importance_kept"]) for row in document["plans"]}
    ms, kept = points[document["knee"]]
    axes.plot(*zip(*points.values(), strict=True), color=AFTER, marker="o", markersize=3, linewidth=1.2)
    axes.plot(ms, kept, color="#c2703d", marker="o", markersize=8)
    axes.annotate(
        f"plan {document['knee']}: {ms:.3g} ms, {kept:.1f} %",
        (ms, kept),
        xytext=(10, -14),
        textcoords="offset points",
        fontsize=8.5,
        color=INK,
    )
    axes.grid(color=GRID, linewidth=0.8)
    where = f"{document['device']}, {document['runtime']} {document['precision']}"
    axes.set_xlabel(f"predicted ms on {where}", fontsize=8.5, color=INK)
    axes.set_ylabel("importance kept, %", fontsize=8.5, color=INK)
    return svg(figure)
