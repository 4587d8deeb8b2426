"""Closing the loop before any training: is the plan as fast as promised, and if not, which plan is."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

import network
from latency import Device, LatencyTable, Measurement
from latency.device import this_machine
from latency.runtimes import RUNTIMES
from network.errors import BudgetError, InfeasibleBudgetError
from network.types import Network
from search import Plan, parse_budget, resolve
from search.planner import AGREEMENT

__all__ = ["ACCEPT", "AIM", "Delivery", "Measure", "Round", "deliver", "is_here", "promised", "prove"]

ACCEPT = (0.94, 0.98)
"""Delivered/budget that ends the loop. The last measurement is another draw, so the top stays clear of 1: the same
network, measured twice with training in between, differs by two or three per cent here."""

AIM = 0.96
COMPILATIONS = 2
TRIES = 3

QUIET = 0.15
"""Share of the measured time that others took, beyond which a measurement is repeated."""


class Measure(Protocol):
    """What times networks: latency.measure, or a test's clock."""

    def __call__(
        self, modules: Mapping[str, nn.Module], example: tuple[Tensor, ...], device: Device, *, rounds: int = 15
    ) -> Mapping[str, Measurement]: ...


@dataclass(frozen=True, slots=True)
class Round:
    """One plan's promise and its proof, both networks timed in turn; milliseconds."""

    predicted_ms: float
    delivered_ms: float
    budget_ms: float
    baseline_ms: float
    widths: Mapping[str, int]

    @property
    def ratio(self) -> float:
        """Delivered over budget; at most 1 keeps the promise."""
        return self.delivered_ms / self.budget_ms


@dataclass(frozen=True, slots=True)
class Delivery:
    """The plan to build, the round that measured it, and every round on the way."""

    plan: Plan
    chosen: Round
    rounds: tuple[Round, ...]


def is_here(device: Device) -> bool:
    """Whether the device is the machine that this process runs on, however many of its cores it may use now."""
    if device.runtime not in RUNTIMES:
        return False
    here = this_machine(RUNTIMES[device.runtime].accelerator)
    counts = range(1, (os.cpu_count() or 1) + 1)
    return any(dataclasses.replace(here, cores=count).id == device.machine for count in counts)


def promised(plan: Plan, net: Network, table: LatencyTable, others: Sequence[LatencyTable] = ()) -> Delivery:
    """The plan as the table predicts it, in one round: for a device that is another machine than this one.

    It is solved again where the table has changed so that the plan is over its budget. Raises BudgetError.
    """
    baseline_ms = float(table.predict_ms(net, net.widths))
    budget_ms = parse_budget(plan.budget).at(baseline_ms)
    predicted_ms = float(table.predict_ms(net, plan.widths))
    if predicted_ms > budget_ms * (1 + AGREEMENT):
        plan = resolve(plan, net, table, budget_ms, others)
        predicted_ms = plan.predicted_ms
    found = Round(predicted_ms, predicted_ms, budget_ms, baseline_ms, dict(plan.widths))
    return Delivery(plan, found, (found,))


def prove(
    plan: Plan,
    original: nn.Module,
    narrow: nn.Module,
    example: tuple[Tensor, ...],
    device: Device,
    measure: Measure,
    rounds: int,
) -> Round:
    """The plan's promise beside both networks' whole times, each compiled COMPILATIONS times, all timed in turn.

    Compilations of one network may differ (docs/notes/2026-11-27-int8.md), and the promise is to hold of the one that
    will serve: of the original the fastest counts, of the narrow one the slowest. A wrong correction costs a wrong
    plan, so a measurement is repeated, up to TRIES times, until the machine was quiet for it; else the quietest counts.
    """
    pair = {"original": original, "narrow": narrow}
    modules = {f"{name} {number}": module for number in range(COMPILATIONS) for name, module in pair.items()}
    tries: list[Mapping[str, Measurement]] = []
    while not tries or (_contention(tries[-1]) > QUIET and len(tries) < TRIES):
        tries.append(measure(modules, example, device, rounds=rounds))
    times = min(tries, key=_contention)
    baseline_ms = min(found.median_ms for name, found in times.items() if name.startswith("original"))
    delivered_ms = max(found.median_ms for name, found in times.items() if name.startswith("narrow"))
    budget_ms = parse_budget(plan.budget).at(baseline_ms)
    return Round(plan.predicted_ms, delivered_ms, budget_ms, baseline_ms, dict(plan.widths))


def _contention(times: Mapping[str, Measurement]) -> float:
    return max(found.contention for found in times.values())


def deliver(
    plan: Plan,
    model: nn.Module,
    net: Network,
    table: LatencyTable,
    measure: Measure,
    others: Sequence[LatencyTable] = (),
    *,
    corrections: int = 6,
    rounds: int = 15,
    notify: Callable[[str], Any] = lambda line: None,
) -> Delivery:
    """Measure the plan's network before training it (weights do not change its time), and correct what misses.

    A ratio budget is of the baseline that is measured beside it; milliseconds are milliseconds. When delivered/budget
    lies outside ACCEPT, the plan is solved again for another time, at most `corrections` times: what the last miss
    suggests, if that lies between the plans that were too fast and those that were too slow, else halfway between
    them, as time may jump where data outgrows a cache.
    Returns the slowest plan that is below ACCEPT's top, else the fastest that keeps the budget. Raises BudgetError when
    none does.
    """
    example = network.example_inputs(net.input_shapes)
    tried: list[tuple[Plan, Round]] = []
    following: Plan | None = plan
    while following is not None:
        plan = following
        current = prove(plan, model, network.narrow(model, net, plan.keep), example, table.device, measure, rounds)
        tried.append((plan, current))
        notify(
            f"round {len(tried)}: predicted {plan.predicted_ms:.2f} ms, delivered {current.delivered_ms:.2f} of "
            f"{current.budget_ms:.2f} ms"
        )
        done = ACCEPT[0] <= current.ratio <= ACCEPT[1] or len(tried) > corrections
        following = None if done else _another(tried, net, table, others)
    return _best(tried)


def _another(
    tried: list[tuple[Plan, Round]], net: Network, table: LatencyTable, others: Sequence[LatencyTable]
) -> Plan | None:
    """A plan that was not tried yet and may take AIM of the budget; None if there is none."""
    plan, last = tried[-1]
    aim_ms = AIM * last.budget_ms
    for table_ms in _suggestions([(float(table.predict_ms(net, found.widths)), found.ratio) for _, found in tried]):
        try:  # the table scaled so that these of its milliseconds are the ones aimed at
            found = resolve(plan, net, table.corrected(aim_ms / table_ms), aim_ms, others)
        except InfeasibleBudgetError:
            continue
        if all(found.widths != earlier.widths for earlier, _ in tried):
            return found
    return None


def _suggestions(tried: list[tuple[float, float]]) -> list[float]:
    """Milliseconds of the table's to ask for next, from those of each plan tried and its delivered/budget."""
    slow = min((ms for ms, ratio in tried if ratio > ACCEPT[1]), default=math.inf)
    fast = max((ms for ms, ratio in tried if ratio < ACCEPT[0] and ms < slow), default=0.0)
    ms, ratio = tried[-1]
    scaled = ms * AIM / ratio
    halfway = [(fast + slow) / 2] if fast > 0 and slow < math.inf else []
    return [scaled, *halfway] if fast < scaled < slow else halfway or [scaled]


def _best(tried: list[tuple[Plan, Round]]) -> Delivery:
    rounds = tuple(found for _, found in tried)
    feasible = [pair for pair in tried if pair[1].ratio <= 1]
    if not feasible:
        fastest = min(rounds, key=lambda found: found.ratio)
        raise BudgetError(
            f"no plan of {len(rounds)} kept the budget: the fastest took {fastest.delivered_ms:.4g} of "
            f"{fastest.budget_ms:.4g} ms; raise --latency-budget, or measure the device again with profile-device"
        )
    safe = [pair for pair in feasible if pair[1].ratio <= ACCEPT[1]]
    plan, chosen = max(safe, key=lambda pair: pair[1].ratio) if safe else min(feasible, key=lambda pair: pair[1].ratio)
    return Delivery(plan, chosen, rounds)
