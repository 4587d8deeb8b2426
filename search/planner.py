"""From a budget to a plan: build the space, solve it, and add the plan up again from the table. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from network.errors import BudgetError, InputError, PlanError
from network.types import Network
from search.budget import Budget, parse_budget
from search.build import ITEM_BYTES, MACS, PARAMETERS, build_space, crowded
from search.plan import Feed, FrozenGroup, ModelReference, Plan, PlanLayer, Settings
from search.solve import Solver
from search.space import LATENCY

if TYPE_CHECKING:
    from torch import nn

    from latency import LatencyTable

__all__ = ["Problem", "resolve", "search"]

AGREEMENT = 1e-6  # relative; two sums of the same table entries in different order, and the solver's tolerance


def search(
    model: nn.Module,
    net: Network,
    table: LatencyTable,
    budget: str | float | Budget,
    importance: Mapping[str, Sequence[float] | np.ndarray],
    *,
    reference: ModelReference | None = None,
    feed: Feed | None = None,
    settings: Settings | None = None,
) -> Plan:
    """The plan of most importance within the latency budget.

    budget: "20ms", "0.5x" of the full network's predicted latency, or milliseconds. importance: group → (width,),
    not negative, higher means keep; six significant digits of it are used and stored. reference: how the model is
    named, its weights' hash filled in here. Raises BudgetError, InfeasibleBudgetError, TableError, InputError.
    """
    budget = budget if isinstance(budget, Budget) else parse_budget(budget)
    problem = Problem(model, net, table, importance, reference=reference, feed=feed, settings=settings)
    return problem.plan(budget)


def resolve(plan: Plan, net: Network, table: LatencyTable, budget_ms: float) -> Plan:
    """The plan anew: same importance and settings, a corrected table or another budget.

    Raises PlanError if the plan is of another network; else as `search` does.
    """
    for group in net.groups:
        if len(plan.importance.get(group.name, ())) != group.width:
            raise PlanError(f"the plan does not know group {group.name!r} of {group.width} channels; search again")
    return replace(plan, **_Search(net, table, plan.importance, plan.settings).at(parse_budget(budget_ms).value))


class Problem:
    """A network, a table and an importance made ready for any number of budgets; arguments as of `search`."""

    def __init__(
        self,
        model: nn.Module,
        net: Network,
        table: LatencyTable,
        importance: Mapping[str, Sequence[float] | np.ndarray],
        *,
        reference: ModelReference | None = None,
        feed: Feed | None = None,
        settings: Settings | None = None,
    ):
        from search.weights import weights_sha256

        self._reference = replace(
            reference or ModelReference(type(model).__name__), weights_sha256=weights_sha256(model)
        )
        self._feed, self._settings = feed or Feed(), settings or Settings()
        self._frozen = tuple(FrozenGroup(part.name, "; ".join(part.reasons)) for part in net.frozen)
        self._importance = {group.name: _rounded(group.name, importance, group.width) for group in net.groups}
        self._search = _Search(net, table, self._importance, self._settings)

    @property
    def baseline_ms(self) -> float:
        """The full network's predicted latency."""
        return self._search.baseline_ms

    @property
    def fastest_ms(self) -> float:
        """The predicted latency of the fastest plan within the other limits. Raises BudgetError if there is none."""
        return self._search.fastest_ms()

    def plan(self, budget: Budget) -> Plan:
        """The plan of most importance within this budget."""
        return Plan(
            model=self._reference,
            budget=budget.text,
            frozen=self._frozen,
            importance=self._importance,
            feed=self._feed,
            settings=self._settings,
            **self._search.at(budget.at(self.baseline_ms)),
        )


def _rounded(group: str, importance: Mapping[str, Sequence[float] | np.ndarray], width: int) -> tuple[float, ...]:
    """Six significant digits: the search must see what the plan stores."""
    scores = [float(f"{float(score):.6g}") for score in importance.get(group, ())]
    if len(scores) != width:
        raise InputError(f"importance of group {group!r} has {len(scores)} values, not {width}; measure it anew")
    if not all(math.isfinite(score) and score >= 0 for score in scores):
        raise InputError(f"importance of group {group!r} is negative or not finite; look for NaN in weights and loss")
    return tuple(scores)


class _Search:
    """What a plan's numbers come from: the space, its solver, and the table that both are checked against."""

    def __init__(
        self, net: Network, table: LatencyTable, importance: Mapping[str, Sequence[float]], settings: Settings
    ):
        self._net, self._table, self._settings = net, table, settings
        self.baseline_ms = float(table.predict_ms(net, net.widths))
        scores = {group: np.asarray(values) for group, values in importance.items()}
        self._item_bytes = ITEM_BYTES.get(table.device.precision, 4)
        self._space = build_space(net, table, scores, settings, self._item_bytes)
        asked: dict[str, float | None] = {PARAMETERS: settings.max_params, MACS: settings.max_macs}
        if settings.max_memory is not None:
            asked |= dict.fromkeys(crowded(net, settings.max_memory, self._item_bytes), settings.max_memory)
        self._limits = {resource: float(limit) for resource, limit in asked.items() if limit is not None}
        self._solver = Solver(self._space, self._limits)

    def fastest_ms(self) -> float:
        """The least latency of a plan within the other limits. Raises BudgetError if none is within them."""
        least_ms = self._solver.least(LATENCY, self._limits)
        if least_ms is None:
            raise BudgetError(f"no plan meets the limits on {' and '.join(self._limits)}; raise one of them")
        return least_ms

    def at(self, budget_ms: float) -> dict[str, Any]:
        """The fields of a plan that solving decides."""
        net, table = self._net, self._table
        solution = self._solver.solve(budget_ms, limits=self._limits, time_limit_s=self._settings.time_limit_s)
        widths = {group: int(width) for group, width in self._space.labels(solution.choice).items()}
        predicted_ms = float(table.predict_ms(net, widths))
        found = {LATENCY: predicted_ms, PARAMETERS: net.parameter_count(widths), MACS: net.macs(widths)}
        found |= dict.fromkeys(self._limits.keys() - found.keys(), net.peak_memory(widths, self._item_bytes))
        exact = all(total.exact for total in self._space.sums)
        _verify(found, self._limits | {LATENCY: budget_ms}, solution.totals[LATENCY], exact)
        device = table.device
        return {
            "device": device.machine,
            "runtime": device.runtime,
            "precision": device.precision,
            "threads": device.threads,
            "table_fingerprint": table.fingerprint,
            "budget_ms": budget_ms,
            "baseline_ms": self.baseline_ms,
            "predicted_ms": predicted_ms,
            "status": solution.status,
            "objective": solution.objective,
            "bound": solution.bound,
            "gap": solution.gap,
            "solve_seconds": solution.solve_seconds,
            "choices_log10": self._space.choices_log10,
            "widths": widths,
            "layers": _layers(net, table, widths),
        }


def _verify(found: Mapping[str, float], limits: Mapping[str, float], summed_ms: float, exact: bool) -> None:
    """The table's own sum must be the solver's (below it where sums were binned) and keep the limits."""
    predicted_ms = found[LATENCY]
    slack = AGREEMENT * max(abs(summed_ms), abs(predicted_ms))
    if predicted_ms > summed_ms + slack or (exact and predicted_ms < summed_ms - slack):
        raise RuntimeError(f"the plan adds up to {predicted_ms:.9g} ms, and the search space to {summed_ms:.9g} ms")
    for resource, limit in limits.items():
        if found[resource] > limit * (1 + AGREEMENT):
            raise RuntimeError(f"the plan has {resource} {found[resource]:.9g}, over its limit {limit:.9g}")


def _layers(net: Network, table: LatencyTable, widths: Mapping[str, int]) -> tuple[PlanLayer, ...]:
    """Every layer at these widths and at full width."""
    thin, full = table.layer_ms(net, widths), table.layer_ms(net, net.widths)
    return tuple(
        PlanLayer(
            name=layer.name,
            module=layer.module,
            c_in=layer.c_in.at(widths),
            c_out=layer.c_out.at(widths),
            ms=float(thin[layer.name]),
            baseline_ms=float(full[layer.name]),
        )
        for layer in net.layers
    )
