"""Every budget at once: plans from the fastest to the full network, and their plot. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Protocol

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from search.budget import Budget, parse_budget
from search.plan import Plan

__all__ = ["Planner", "front", "knee", "plot_front"]


PART = 16
"""Budgets after which what was learnt is forgotten, so that the plans do not depend on how many processes there are."""


class Planner(Protocol):
    """What answers one budget after the other; see `search.planner.Problem`."""

    @property
    def baseline_ms(self) -> float: ...

    @property
    def fastest_ms(self) -> float: ...

    def plan(self, budget: Budget) -> Plan: ...

    def forget(self) -> None: ...


def front(
    problem: Planner,
    count: int,
    watch: Callable[[Sequence[float]], Iterable[float]] | None = None,
    jobs: int = 1,
) -> list[Plan]:
    """At most `count` plans of budgets evenly spaced from the fastest plan's to the full network's, fastest first.

    What was learnt for one budget helps with the next of its part. Budgets that give the same widths give one plan.
    Each plan's budget is a ratio, so that it holds when the machine is faster or slower on the day that the plan is
    applied. jobs: processes, -1 for all cores; `joblib.parallel_config` may send them elsewhere, to Dask or Ray.
    watch: goes through the budgets of one process and sees how far the work is; without it there is a progress bar.
    """
    fastest, full = problem.fastest_ms / problem.baseline_ms, 1.0
    ratios = [float(ratio) for ratio in np.linspace(fastest, full, count)]
    if jobs == 1:
        found: Iterable[Plan] = _plans(problem, ratios, watch or partial(tqdm, desc="front", unit="plan", leave=False))
    else:
        parts = [ratios[start : start + PART] for start in range(0, count, PART)]
        tasks = (delayed(_part)(problem, part) for part in parts)
        made = Parallel(n_jobs=jobs, return_as="generator", batch_size=1)(tasks)
        found = chain.from_iterable(tqdm(made, total=len(parts), desc="front", unit="part", leave=False))
    plans: dict[tuple[int, ...], Plan] = {}
    for plan in found:
        plans.setdefault(tuple(plan.widths.values()), plan)
    return list(plans.values())


def _part(problem: Planner, ratios: Sequence[float]) -> list[Plan]:
    return list(_plans(problem, ratios, iter))


def _plans(
    problem: Planner, ratios: Sequence[float], watch: Callable[[Sequence[float]], Iterable[float]]
) -> Iterator[Plan]:
    for number, ratio in enumerate(watch(ratios)):
        if number % PART == 0:
            problem.forget()
        yield problem.plan(parse_budget(f"{np.ceil(ratio * 1e6) / 1e6:.6f}x"))


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
