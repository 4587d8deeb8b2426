"""What others would choose from the same latency table and the same importance: objective at equal predicted time.

    python -m benchmarks.rivals --importance magnitude               # a table by formula (benchmarks.solver): minutes
    python -m benchmarks.rivals --profiles DIR                       # profile-device must have filled the store
    python -m benchmarks.rivals --profiles DIR --only cartoongan-openvino --measure

exact     ours: the integer program over pair tables
greedy    from the full network, again and again the step that loses least importance per millisecond saved (NetAdapt,
          Yang et al., ECCV 2018, with the table in place of measurements and one step at a time)
knapsack  every layer's time as a function of its own outputs, its inputs full (HALP, Shen et al., NeurIPS 2022)
macs      most importance within a limit on multiply-accumulates
uniform   every width × the same constant

knapsack, macs and uniform aim by something else than the time, so each is given the loosest limit whose plan is
predicted within the budget. Importance is measured sensitivity unless another is asked for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import network
from benchmarks.solver import Vectors
from benchmarks.spine import CASES, loaded, task_of
from latency import LatencyTable, here, measure, open_table
from network.errors import InfeasibleBudgetError
from search.build import MACS, build_space
from search.importance import MEASURES, importance_of
from search.plan import Settings
from search.solve import Solver
from search.space import IMPORTANCE, LATENCY, Factor, SearchSpace

__all__ = ["RIVALS", "main"]

SHARES = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
BISECTIONS = 12
TIME_LIMIT_S = 20.0

Choice = Mapping[str, int]
Rival = Callable[[SearchSpace, float], Choice | None]
"""(space, budget in ms) → option per variable; None where it finds nothing within the budget."""


def exact(space: SearchSpace, budget_ms: float) -> Choice | None:
    """The integer program."""
    try:
        return Solver(space).solve(budget_ms, time_limit_s=TIME_LIMIT_S).choice
    except InfeasibleBudgetError:
        return None


def greedy(space: SearchSpace, budget_ms: float) -> Choice | None:
    """One step at a time from the full network."""
    choice = full(space)
    while (now := float(space.total(LATENCY, choice))) > budget_ms:
        best: tuple[float, str, int] | None = None
        for variable in space.variables:
            options = np.arange(choice[variable.name])
            if len(options):
                moves = choice | {variable.name: options}
                saved = now - np.asarray(space.total(LATENCY, moves), float)
                lost = float(space.total(IMPORTANCE, choice)) - np.asarray(space.total(IMPORTANCE, moves), float)
                ratio = np.where(saved > 0, lost / np.maximum(saved, 1e-12), np.inf)
                at = int(ratio.argmin())
                if np.isfinite(ratio[at]) and (best is None or ratio[at] < best[0]):
                    best = float(ratio[at]), variable.name, at
        if best is None:
            return None
        choice[best[1]] = best[2]
    return choice


def knapsack(space: SearchSpace, budget_ms: float) -> Choice | None:
    """Inputs frozen at full width: a separable problem, solved exactly, its nominal budget by bisection."""
    factors = tuple(
        Factor(f.name, LATENCY, (f.scope[1],), f.table[-1]) if f.resource == LATENCY and len(f.scope) == 2 else f
        for f in space.factors
    )
    frozen = replace(space, factors=factors)
    solver = Solver(frozen)
    least = solver.least(LATENCY, {})
    return loosest(space, budget_ms, choosing(solver), least, frozen.total(LATENCY, full(space)))


def macs(space: SearchSpace, budget_ms: float) -> Choice | None:
    """The limit on multiply-accumulates by bisection."""
    counted = tuple(
        replace(f, resource={MACS: LATENCY, LATENCY: "milliseconds"}.get(f.resource, f.resource)) for f in space.factors
    )
    solver = Solver(replace(space, factors=counted))
    least = solver.least(LATENCY, {})
    return loosest(space, budget_ms, choosing(solver), least, space.total(MACS, full(space)))


def uniform(space: SearchSpace, budget_ms: float) -> Choice | None:
    """The option nearest to the same share of every width."""

    def at(share: float) -> Choice:
        return {
            v.name: int(np.abs(np.array(v.labels, float) - share * float(v.labels[-1])).argmin())
            for v in space.variables
        }

    return loosest(space, budget_ms, at, 0.0, 1.0)


def choosing(solver: Solver) -> Callable[[float], Choice]:
    """The solver's best choice for each limit."""
    return lambda limit: solver.solve(limit, time_limit_s=TIME_LIMIT_S).choice


def loosest(
    space: SearchSpace, budget_ms: float, choose: Callable[[float], Choice], least: float | None, most: Any
) -> Choice | None:
    """The choice of the loosest limit in [least, most] that is predicted within the budget."""
    low, high, best = float(least or 0.0), float(most), None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        choice = choose(middle * (1 + 1e-9))
        if space.total(LATENCY, choice) <= budget_ms:
            best, low = choice, middle
        else:
            high = middle
    return best


def full(space: SearchSpace) -> dict[str, int]:
    """Every variable at its last option, the full width."""
    return {variable.name: len(variable.labels) - 1 for variable in space.variables}


RIVALS: dict[str, Rival] = {
    "exact": exact,
    "greedy": greedy,
    "knapsack": knapsack,
    "macs": macs,
    "uniform": uniform,
}


def rows_of(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every rival at every budget: importance lost, predicted milliseconds, and delivered ones if asked for."""
    case = CASES[name]
    model, net, example = loaded(case)
    table: LatencyTable = Vectors()
    if options.profiles:
        table = open_table(options.profiles, net, runtime=case.runtime, precision=case.precision)
    importance = importance_of(options.importance, model, net, task_of(case), progress=True)
    space = build_space(net, table, importance, Settings(max_macs=1.0))
    baseline_ms = float(space.total(LATENCY, full(space)))
    everything = sum(float(scores.sum()) for scores in importance.values())
    rows = []
    for share in SHARES:
        choices = {rival: choose(space, share * baseline_ms) for rival, choose in RIVALS.items()}
        found = {rival: choice for rival, choice in choices.items() if choice is not None}
        delivered: dict[str, float] = {}
        if options.measure:
            modules = {"original": model}
            for rival, choice in found.items():
                modules[rival] = network.narrow(model, net, keep_of(space, choice, importance))
            times = measure(modules, example, here(case.runtime, case.precision), rounds=9)
            delivered = {rival: times[rival].median_ms / times["original"].median_ms for rival in found}
        for rival, choice in found.items():
            lost = 1 - float(space.total(IMPORTANCE, choice)) / everything
            row = {"case": name, "budget": share, "rival": rival, "lost": lost}
            row |= {"predicted": float(space.total(LATENCY, choice)) / baseline_ms, "delivered": delivered.get(rival)}
            rows.append(row)
            print(
                f"{name:<20} {share:.1f}x {rival:<9} predicted {row['predicted']:.3f}x  importance lost {lost:9.4%}"
                + (f"  delivered {delivered[rival]:.3f}x" if delivered else ""),
                flush=True,
            )
    return rows


def keep_of(space: SearchSpace, choice: Choice, importance: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The most important channels of every group."""
    widths = space.labels(choice)
    return {
        name: np.sort(np.argsort(-scores, kind="stable")[: int(widths[name])]) for name, scores in importance.items()
    }


def main(argv: list[str] | None = None) -> int:
    """Print a line per case, budget and rival."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rivals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profiles", type=Path, help="the store, filled by profile-device or the spine")
    parser.add_argument("--importance", choices=MEASURES, default="sensitivity", help="default: %(default)s")
    parser.add_argument("--only", action="append", choices=CASES, help="a case; may be repeated (default: all)")
    parser.add_argument("--measure", action="store_true", help="time every plan, interleaved with the original")
    parser.add_argument("--out", type=Path, help="a file for the rows, as JSON")
    options = parser.parse_args(argv)
    rows = [row for name in options.only or CASES for row in rows_of(name, options)]
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
