"""Every budget at once: plans from the fastest to the full network, and their plot. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from search.budget import parse_budget
from search.plan import Plan
from search.planner import Problem

__all__ = ["front", "knee", "plot_front"]


PART = 16
"""Budgets that are searched one after the other; parts know nothing of each other, so that the plans do not depend on
how many processes there are."""


def front(
    problem: Problem,
    count: int,
    watch: Callable[[Sequence[list[float]]], Iterable[list[float]]] | None = None,
    jobs: int | None = None,
) -> list[Plan]:
    """At most `count` plans of budgets evenly spaced from the fastest plan's to the full network's, fastest first.

    What was learnt for one budget helps with the next of its part. Budgets that give the same widths give one plan.
    Each plan's budget is a ratio, so that it holds when the machine is faster or slower on the day that the plan is
    applied. watch: goes through the parts and sees how far the work is; a progress bar without it. jobs: processes;
    None: as `joblib.parallel_config` says, whose Dask and Ray backends take many machines.
    """
    fastest, full = problem.fastest_ms / problem.baseline_ms, 1.0
    ratios = np.linspace(fastest, full, count)
    parts = [ratios[start : start + PART].tolist() for start in range(0, count, PART)]
    watch = watch or partial(tqdm, desc="front", unit="part", leave=False)
    found = Parallel(n_jobs=jobs, return_as="generator", batch_size=1)(delayed(_plans)(problem, part) for part in parts)
    plans: dict[tuple[int, ...], Plan] = {}
    for _, made in zip(watch(parts), found, strict=True):
        for plan in made:
            plans.setdefault(tuple(plan.widths.values()), plan)
    return list(plans.values())


def _plans(problem: Problem, ratios: Sequence[float]) -> list[Plan]:
    problem.forget()
    return [problem.plan(parse_budget(f"{np.ceil(ratio * 1e6) / 1e6:.6f}x")) for ratio in ratios]


def knee(plans: Sequence[Plan]) -> int:
    """The plan farthest above the straight line from the fastest to the slowest, both axes taken from 0 to 1.

    Satopää et al., "Finding a kneedle in a haystack", ICDCSW 2011.
    """
    ms = np.array([plan.predicted_ms for plan in plans])
    kept = np.array([plan.objective for plan in plans])
    span = (np.ptp(ms) or 1.0), (np.ptp(kept) or 1.0)
    return int(np.argmax((kept - kept.min()) / span[1] - (ms - ms.min()) / span[0]))


def plot_front(plans: Sequence[Plan], knee: int) -> str:
    """SVG of the importance kept over predicted milliseconds, the knee marked; knee: its index."""
    from latency.drawing import AFTER, GRID, INK, MARK, axes_of, svg

    figure, (axes,) = axes_of(7.2, 4.2)
    points = [(plan.predicted_ms, 100 * plan.importance_kept) for plan in plans]
    ms, kept = points[knee]
    axes.plot(*zip(*points, strict=True), color=AFTER, marker="o", markersize=3, linewidth=1.2)
    axes.plot(ms, kept, color=MARK, marker="o", markersize=8)
    axes.annotate(
        f"plan {knee + 1}: {ms:.3g} ms, {kept:.1f} %",
        (ms, kept),
        xytext=(10, -14),
        textcoords="offset points",
        fontsize=8.5,
        color=INK,
    )
    axes.grid(color=GRID, linewidth=0.8)
    where = f"{plans[0].device}, {plans[0].runtime} {plans[0].precision}"
    axes.set_xlabel(f"predicted ms on {where}", fontsize=8.5, color=INK)
    axes.set_ylabel("importance kept, %", fontsize=8.5, color=INK)
    return svg(figure)
