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
from search.build import ITEM_BYTES, MACS, PARAMETERS, WEIGHT_BYTES, build_space, crowded, milliseconds_on
from search.plan import Feed, FrozenGroup, ModelReference, Plan, PlanLayer, Promise, Settings
from search.solve import Solution, Solver
from search.space import LATENCY, Factor, SearchSpace

if TYPE_CHECKING:
    from torch import nn

    from latency import LatencyTable

__all__ = ["AGREEMENT", "APART", "Prepared", "Problem", "prepare", "resolve", "rounded_importance", "search"]

APART = 0.05
"""How far apart plans are that are offered side by side: mean share of a group's channels."""

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
    others: Sequence[tuple[LatencyTable, Budget]] = (),
) -> Plan:
    """The plan of most importance within the latency budget.

    budget: "20ms", "0.5x" of the full network's predicted latency, or milliseconds. importance: group → (width,),
    not negative, higher means keep; six significant digits of it are used and stored. reference: how the model is
    named, its weights' hash filled in here. others: tables of further devices, each with the budget that the same
    network must keep there. Raises BudgetError, InfeasibleBudgetError, TableError, InputError.
    """
    from search.weights import weights_sha256

    budget = budget if isinstance(budget, Budget) else parse_budget(budget)
    reference = replace(reference or ModelReference(type(model).__name__), weights_sha256=weights_sha256(model))
    problem = Problem(net, table, importance, reference=reference, feed=feed, settings=settings, others=others)
    return problem.plan(budget)


def resolve(
    plan: Plan, net: Network, table: LatencyTable, budget_ms: float, others: Sequence[LatencyTable] = ()
) -> Plan:
    """The plan anew: same importance and settings, a corrected table or another budget on the first device.

    others: the tables of the plan's other devices. Raises PlanError if the plan is of another network or of other
    devices; else as `search` does.
    """
    return replace(plan, survivors={}, **prepare(plan, net, table, others).at(parse_budget(budget_ms).value))


def prepare(plan: Plan, net: Network, table: LatencyTable, others: Sequence[LatencyTable] = ()) -> Prepared:
    """What the plan was chosen from. Raises PlanError if the plan is of another network or of other devices."""
    plan.check(net)
    if len(others) != len(plan.others):
        raise PlanError(f"the plan is for {len(plan.others)} devices beside the first; open their tables too")
    promised = [
        (other, Budget(promise.budget, promise.budget_ms, False))
        for other, promise in zip(others, plan.others, strict=True)
    ]
    return Prepared(net, table, plan.importance, plan.settings, promised)


class Problem:
    """A network, a table and an importance made ready for any number of budgets; arguments as of `search`.

    No weights are needed here; reference names the model, with their hash.
    """

    def __init__(
        self,
        net: Network,
        table: LatencyTable,
        importance: Mapping[str, Sequence[float] | np.ndarray],
        *,
        reference: ModelReference,
        feed: Feed | None = None,
        settings: Settings | None = None,
        others: Sequence[tuple[LatencyTable, Budget]] = (),
    ):
        self._reference = reference
        self._feed, self._settings = feed or Feed(), settings or Settings()
        self._frozen = tuple(FrozenGroup(part.name, "; ".join(part.reasons)) for part in net.frozen)
        self._importance = rounded_importance(net, importance)
        self._prepared = Prepared(net, table, self._importance, self._settings, others)

    @property
    def baseline_ms(self) -> float:
        """The full network's predicted latency."""
        return self._prepared.baseline_ms

    @property
    def fastest_ms(self) -> float:
        """The predicted latency of the fastest plan within the other limits. Raises BudgetError if there is none."""
        return self._prepared.fastest_ms()

    def plan(self, budget: Budget, unlike: Sequence[Plan] = ()) -> Plan:
        """The plan of most importance within this budget, and APART or more from each of the plans `unlike`."""
        return Plan(
            model=self._reference,
            budget=budget.text,
            frozen=self._frozen,
            importance=self._importance,
            feed=self._feed,
            settings=self._settings,
            **self._prepared.at(budget.at(self.baseline_ms), [plan.widths for plan in unlike]),
        )

    def front(self, count: int) -> list[Plan]:
        """Plans from the fastest to the full network, with a progress bar, on all cores; see `search.front.front`."""
        from latency.device import available_cores
        from search.front import front

        return front(self, count, jobs=available_cores())

    def forget(self) -> None:
        """Let go of what earlier budgets taught, so that the next plan does not depend on them."""
        self._prepared.forget()

    def top(self, budget: Budget, count: int) -> list[Plan]:
        """At most `count` plans, the best first, each the best of those that are APART from all before it.

        Molchanov et al., "LANA: latency aware network acceleration", ECCV 2022, section 3.3, bound the choices that
        two plans share; here the channels that they share are bounded, as neighbouring widths are no variety.
        """
        plans = [self.plan(budget)]
        while len(plans) < count:
            try:
                plans.append(self.plan(budget, plans))
            except BudgetError:  # nothing else within the budget is that different, or could be found in time
                break
        return plans


def rounded_importance(
    net: Network, importance: Mapping[str, Sequence[float] | np.ndarray]
) -> dict[str, tuple[float, ...]]:
    """Every group's importance as plans store it. Raises InputError where it does not fit, or is no worth."""
    return {group.name: _rounded(group.name, importance, group.width) for group in net.groups}


def _rounded(group: str, importance: Mapping[str, Sequence[float] | np.ndarray], width: int) -> tuple[float, ...]:
    """Six significant digits: the search must see what the plan stores."""
    scores = [float(f"{float(score):.6g}") for score in importance.get(group, ())]
    if len(scores) != width:
        raise InputError(f"importance of group {group!r} has {len(scores)} values, not {width}; measure it anew")
    if not all(math.isfinite(score) and score >= 0 for score in scores):
        raise InputError(f"importance of group {group!r} is negative or not finite; look for NaN in weights and loss")
    return tuple(scores)


class Prepared:
    """What a plan's numbers come from: the space, its solver, and the table that both are checked against."""

    def __init__(
        self,
        net: Network,
        table: LatencyTable,
        importance: Mapping[str, Sequence[float]],
        settings: Settings,
        others: Sequence[tuple[LatencyTable, Budget]] = (),
    ):
        self._net, self._table, self._settings, self._others = net, table, settings, others
        self.baseline_ms = float(table.predict_ms(net, net.widths))
        scores = {group: np.asarray(values) for group, values in importance.items()}
        self._item_bytes = ITEM_BYTES.get(table.device.precision, 4)
        built = (net, table, scores, settings, self._item_bytes, [other for other, _ in others])
        self.space = build_space(*built)
        asked: dict[str, float | None] = {
            PARAMETERS: settings.max_params,
            WEIGHT_BYTES: settings.max_bytes,
            MACS: settings.max_macs,
        }
        if settings.max_memory is not None:
            asked |= dict.fromkeys(crowded(net, settings.max_memory, self._item_bytes), settings.max_memory)
        for other, budget in others:
            if milliseconds_on(other) in asked or other.device.id == table.device.id:
                raise InputError(f"device {other.device.id} is there twice; give each once, with its budget")
            asked[milliseconds_on(other)] = budget.at(float(other.predict_ms(net, net.widths)))
        self._limits = {resource: float(limit) for resource, limit in asked.items() if limit is not None}
        self._solver = Solver(self.space, self._limits)
        self._exact = all(total.exact for total in self.space.sums)
        # Where ranges of totals go by their worst, what is proved there is no proof for the table: their best is.
        self._loosest = None if self._exact else Solver(build_space(*built, of_range=np.minimum), self._limits)

    def forget(self) -> None:
        """See `Problem.forget`."""
        self._solver.forget()
        if self._loosest is not None:
            self._loosest.forget()

    def fastest_ms(self) -> float:
        """The least latency of a plan within the other limits. Raises BudgetError if none is within them."""
        least_ms = self._solver.least(LATENCY, self._limits)
        if least_ms is None:
            raise BudgetError(f"no plan meets the limits on {' and '.join(self._limits)}; raise one of them")
        return least_ms

    def solve(self, budget_ms: float, unlike: Sequence[Mapping[str, int]] = ()) -> Solution:
        """The best choice within the budget and the settings' limits, proved for the table; see `Problem.plan`."""
        limit_s = self._settings.time_limit_s
        found = self._solved(self._solver, budget_ms, unlike, limit_s)
        if self._loosest is None:
            return found
        left_s = None if limit_s is None else max(0.1 * limit_s, limit_s - found.solve_seconds)
        try:
            best = self._solved(self._loosest, budget_ms, unlike, left_s)
        except BudgetError:  # in so little time
            return found.bounded(self._loosest.most)
        return replace(found.bounded(best.bound), solve_seconds=found.solve_seconds + best.solve_seconds)

    def _solved(
        self, solver: Solver, budget_ms: float, unlike: Sequence[Mapping[str, int]], limit_s: float | None
    ) -> Solution:
        limits, space = self._limits, solver.space
        if unlike:
            alike = _alike(space, unlike)
            free = sum(len(variable.labels) > 1 for variable in space.variables)
            limits = limits | {factor.resource: (1 - APART) * free for factor in alike}
            solver = Solver(replace(space, factors=(*space.factors, *alike)), limits)
        return solver.solve(budget_ms, limits=limits, time_limit_s=limit_s)

    def at(self, budget_ms: float, unlike: Sequence[Mapping[str, int]] = ()) -> dict[str, Any]:
        """The fields of a plan that solving decides."""
        net, table = self._net, self._table
        solution = self.solve(budget_ms, unlike)
        widths = {group: int(width) for group, width in self.space.labels(solution.choice).items()}
        predicted_ms = float(table.predict_ms(net, widths))
        found = {LATENCY: predicted_ms, PARAMETERS: net.parameter_count(widths), MACS: net.macs(widths)}
        found[WEIGHT_BYTES] = net.weight_bytes(widths, self._item_bytes)
        found |= {milliseconds_on(other): float(other.predict_ms(net, widths)) for other, _ in self._others}
        found |= dict.fromkeys(self._limits.keys() - found.keys(), net.peak_memory(widths, self._item_bytes))
        _verify(found, self._limits | {LATENCY: budget_ms}, solution.totals[LATENCY], self._exact)
        return {
            **_device(table),
            "budget_ms": budget_ms,
            "baseline_ms": self.baseline_ms,
            "predicted_ms": predicted_ms,
            "status": solution.status,
            "objective": solution.objective,
            "bound": solution.bound,
            "gap": solution.gap,
            "solve_seconds": solution.solve_seconds,
            "choices_log10": self.space.choices_log10,
            "widths": widths,
            "layers": _layers(net, table, widths),
            "others": tuple(
                Promise(
                    **_device(other),
                    budget=budget.text,
                    budget_ms=self._limits[milliseconds_on(other)],
                    baseline_ms=float(other.predict_ms(net, net.widths)),
                    predicted_ms=found[milliseconds_on(other)],
                )
                for other, budget in self._others
            ),
        }


def _device(table: LatencyTable) -> dict[str, Any]:
    """The fields of a promise that say whose it is."""
    device = table.device
    return {
        "device": device.machine,
        "runtime": device.runtime,
        "precision": device.precision,
        "threads": device.threads,
        "table_fingerprint": table.fingerprint,
    }


def _alike(space: SearchSpace, others: Sequence[Mapping[str, int]]) -> list[Factor]:
    """How alike a choice is to each of these widths: 1 - |width - other| / full width for every group with a choice."""
    return [
        Factor(
            variable.name,
            f"likeness to plan {number}",
            (variable.name,),
            1 - np.abs(np.array(variable.labels, float) - widths[variable.name]) / max(map(int, variable.labels)),
        )
        for number, widths in enumerate(others, 1)
        for variable in space.variables
        if len(variable.labels) > 1
    ]


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
