"""Why a plan is what it is: where its milliseconds went, and where the next one would come from. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from network.errors import PlanError
from network.types import Network
from search.plan import Plan, module_times
from search.planner import prepare
from search.space import IMPORTANCE, LATENCY

if TYPE_CHECKING:
    from latency import LatencyTable

__all__ = ["Explanation", "Move", "explain", "plot_explanation"]

SHOWN = 8
BARS = 20
FREE = 1e-9
"""Milliseconds; a change below this is rounding."""


@dataclass(frozen=True, slots=True)
class Move:
    """Another width for one group, everything else as planned: signed changes of milliseconds and of importance.

    `importance` is a share of the full network's; `per_ms` its size for each millisecond.
    """

    group: str
    width: int
    to: int
    ms: float
    importance: float

    @property
    def per_ms(self) -> float:
        return abs(self.importance / self.ms)


@dataclass(frozen=True, slots=True)
class Explanation:
    """A plan with the best single changes to it.

    `price`: the share of all importance that a millisecond is worth at this budget, the slope there of the front's
    concave hull (the budget's dual price in the Lagrangian relaxation); a single step may be cheaper or dearer. None
    where the network's graph is too wide for it. `narrower` and `wider`: the best move of every group that has one,
    best first. `full` and `least`: groups at their full and at their smallest width; `modules`: (name, original ms,
    planned ms), the most saved first.
    """

    plan: Plan
    price: float | None
    narrower: tuple[Move, ...]
    wider: tuple[Move, ...]
    full: tuple[str, ...]
    least: tuple[str, ...]
    modules: tuple[tuple[str, float, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        plan = self.plan
        return {
            "device": plan.device,
            "runtime": plan.runtime,
            "precision": plan.precision,
            "budget_ms": plan.budget_ms,
            "baseline_ms": plan.baseline_ms,
            "predicted_ms": plan.predicted_ms,
            "status": plan.status,
            "gap": plan.gap,
            "importance_kept": plan.importance_kept,
            "price_per_ms": self.price,
            "narrower": [asdict(move) | {"per_ms": move.per_ms} for move in self.narrower],
            "wider": [asdict(move) | {"per_ms": move.per_ms} for move in self.wider],
            "full": list(self.full),
            "least": list(self.least),
            "modules": [{"module": name, "baseline_ms": before, "ms": after} for name, before, after in self.modules],
        }

    def __str__(self) -> str:
        plan, saved = self.plan, self.plan.baseline_ms - self.plan.predicted_ms
        lines = [
            f"{plan.baseline_ms:.4g} → {plan.predicted_ms:.4g} ms of {plan.budget_ms:.4g} ms, "
            f"{plan.importance_kept:.1%} of all importance kept; {plan.status}, gap {plan.gap:.1e}",
            "",
            f"where {saved:.4g} ms were saved                     ms → ms          saved",
        ]
        for name, before, after in self.modules[:SHOWN]:
            lines.append(f"  {name:36.36} {before:9.3f} → {after:<9.3f} {before - after:9.3f}")
        lines += ["", "where the next millisecond would come from     channels            ms       importance"]
        lines += _moves(self.narrower, "nothing can be narrowed further")
        if self.price is not None:
            lines.append(f"  the budget's price, where several groups change together: {self.price:.2%} per ms")
        lines += ["", "what would be widened first                    channels            ms       importance"]
        lines += _moves(self.wider, "nothing can be wider")
        lines.append("")
        for names, state in ((self.full, "at full width"), (self.least, "at the least width allowed")):
            lines.append(f"{state}: {len(names)} of {len(plan.widths)} groups{_few(names)}")
        return "\n".join(lines)


def explain(plan: Plan, net: Network, table: LatencyTable, others: Sequence[LatencyTable] = ()) -> Explanation:
    """The plan's milliseconds, and what a change to any one group would do to it.

    Raises PlanError if the plan is of another network or has a width that its own settings forbid; TableError if
    the table lacks a layer.
    """
    prepared = prepare(plan, net, table, others)
    space, everything = prepared.space, plan.total_importance
    choice = {}
    for variable in space.variables:
        if plan.widths[variable.name] not in variable.labels:
            raise PlanError(
                f"{variable.name!r} has {plan.widths[variable.name]} channels, no width it may have; search again"
            )
        choice[variable.name] = variable.labels.index(plan.widths[variable.name])
    narrower, wider = [], []
    for variable in space.variables:
        moves = choice | {variable.name: np.arange(len(variable.labels))}
        now = choice[variable.name]
        ms, worth = (np.asarray(space.total(resource, moves), float) for resource in (LATENCY, IMPORTANCE))
        ms, worth = ms - ms[now], (worth - worth[now]) / everything
        found = [
            Move(variable.name, plan.widths[variable.name], int(variable.labels[at]), float(ms[at]), float(worth[at]))
            for at in range(len(variable.labels))
            if abs(ms[at]) > FREE
        ]
        narrower += sorted((m for m in found if m.ms < 0), key=lambda m: m.per_ms)[:1]
        wider += sorted((m for m in found if m.ms > 0 and m.importance > 0), key=lambda m: -m.per_ms)[:1]
    price = prepared.solve(plan.budget_ms).prices.get(LATENCY)
    return Explanation(
        plan=plan,
        price=None if price is None else price / everything,
        narrower=tuple(sorted(narrower, key=lambda move: move.per_ms)),
        wider=tuple(sorted(wider, key=lambda move: -move.per_ms)),
        full=tuple(group.name for group in net.groups if plan.widths[group.name] == group.width),
        least=tuple(v.name for v in space.variables if len(v.labels) > 1 and choice[v.name] == 0),
        modules=tuple(sorted(module_times(plan.layers), key=lambda row: row[2] - row[1])),
    )


def plot_explanation(found: Explanation) -> str:
    """SVG: each module's milliseconds before and after, and what each group's next millisecond costs and buys."""
    from latency.drawing import AFTER, BEFORE, INK, MARK, axes_of, bars, legend, svg

    moves = {move.group: move for move in found.wider}
    groups = [
        (move.group, move.per_ms, moves[move.group].per_ms if move.group in moves else 0.0) for move in found.narrower
    ]
    figure, (left, right) = axes_of(13.0, 0.9 + 0.24 * min(BARS, max(len(found.modules), len(groups))), columns=2)
    by_time = sorted(found.modules, key=lambda row: -row[1])
    bars(left, by_time[:BARS], "predicted milliseconds", ("original", BEFORE), ("planned", AFTER))
    shares = [(name, 100 * cost, 100 * gain) for name, cost, gain in groups[:BARS]]
    bars(right, shares, "importance, % of all, per millisecond", ("narrower costs", BEFORE), ("wider buys", MARK))
    if found.price is not None:
        right.axvline(100 * found.price, color=INK, linewidth=1.0, linestyle="--", label="the budget's price")
        legend(right)
    return svg(figure)


def _moves(moves: Sequence[Move], none: str) -> list[str]:
    return [
        f"  {move.group:36.36} {move.width:8} → {move.to:<8} {move.ms:+9.3f}  {move.importance:+10.2%}, "
        f"{move.per_ms:.2%} per ms"
        for move in moves[:SHOWN]
    ] or [f"  {none}"]


def _few(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})" if names else ""
