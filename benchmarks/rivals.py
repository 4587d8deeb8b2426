"""What others would choose from the same latency table and the same importance: objective at equal predicted time.

    python -m benchmarks.rivals --importance magnitude               # a table by formula (benchmarks.solver): minutes
    python -m benchmarks.rivals --profiles DIR --out rivals.jsonl    # tables of this machine; measures what DIR lacks
    python -m benchmarks.rivals --profiles DIR --only cartoongan --runtime openvino --measure --out rivals.jsonl

exact     ours: the integer program over pair tables
greedy    from the full network, again and again the step that loses least importance per millisecond saved (NetAdapt,
          Yang et al., ECCV 2018, with the table in place of measurements and one step at a time)
knapsack  every layer's time as a function of its own outputs, its inputs full (HALP, Shen et al., NeurIPS 2022)
macs      most importance within a limit on multiply-accumulates
uniform   every width × the same constant

knapsack, macs and uniform aim by something else than the time, so each is given the loosest limit whose plan is
predicted within the budget. Importance is measured sensitivity unless another is asked for. With --measure the plans of
one budget and the original are timed in turn: their ratios are known better than any of them. Rows are written as they
come, and a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

import network
from benchmarks.data import profiled
from benchmarks.quality import CASES
from benchmarks.rows import add_rows, read_rows
from benchmarks.solver import Vectors
from latency import Device, LatencyTable, here, measure
from network.command_line import run
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


class Bench:
    """A network and its importance, which is measured when it is first asked for."""

    def __init__(self, name: str, options: argparse.Namespace):
        self.name, self.options, self.case = name, options, CASES[name]
        self.model, self.net, self.example = self.case.load()

    @cached_property
    def importance(self) -> dict[str, np.ndarray]:
        kind = self.options.importance
        return importance_of(
            kind, self.model, self.net, None if kind == "magnitude" else self.case.task(), progress=True
        )

    def rows(self, device: Device | None, done: Collection[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
        """A row per rival at every budget that is not done: on this device, or by the formula's table."""
        table: LatencyTable = Vectors()
        if device is not None:
            table = profiled(self.model, self.net, self.example, device, self.options)
        common = {"case": self.name, "runtime": table.device.runtime, "precision": table.device.precision}
        common |= {"importance": self.options.importance, "measured": self.options.measure}
        left = [share for share in self.options.budget or SHARES if key_of(common | {"budget": share}) not in done]
        if not left:
            return
        space = build_space(self.net, table, self.importance, Settings(max_macs=1.0))
        for share in left:
            found = {
                name: choose(space, share * float(space.total(LATENCY, full(space)))) for name, choose in RIVALS.items()
            }
            delivered = self._delivered(space, found, device) if device is not None and self.options.measure else {}
            for row in rows_of(space, found, delivered):
                yield common | {"budget": share} | row

    def _delivered(self, space: SearchSpace, found: Mapping[str, Choice | None], device: Device) -> dict[str, float]:
        """Milliseconds of every plan and of the original, timed in turn in one run."""
        modules = {"original": self.model}
        for rival, choice in found.items():
            if choice is not None:
                modules[rival] = network.narrow(self.model, self.net, keep_of(space, choice, self.importance))
        times = measure(modules, self.example, device, rounds=self.options.rounds)
        return {name: taken.median_ms for name, taken in times.items()}


def rows_of(
    space: SearchSpace, found: Mapping[str, Choice | None], delivered: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """What each rival's plan loses, predicted and delivered milliseconds; a rival without a plan has none of them."""
    everything, baseline_ms = (float(space.total(resource, full(space))) for resource in (IMPORTANCE, LATENCY))
    for rival, choice in found.items():
        row: dict[str, Any] = {"rival": rival, "baseline_ms": baseline_ms, "original_ms": delivered.get("original")}
        row |= {"lost": None, "predicted_ms": None, "delivered_ms": delivered.get(rival)}
        if choice is not None:
            row["lost"] = 1 - float(space.total(IMPORTANCE, choice)) / everything
            row["predicted_ms"] = float(space.total(LATENCY, choice))
        yield row


def show(row: Mapping[str, Any]) -> str:
    """One row as a line."""
    head = f"{row['case']:<18} {row['runtime']} {row['precision']} {row['budget']:.2g}x {row['rival']:<9}"
    if row["predicted_ms"] is None:
        return f"{head} no plan within {row['budget'] * row['baseline_ms']:.4g} ms"
    predicted = f"predicted {row['predicted_ms']:8.4g} ms ({row['predicted_ms'] / row['baseline_ms']:.3f}x)"
    line = f"{head} importance lost {row['lost']:9.4%}  {predicted}"
    if row["delivered_ms"] is not None:
        line += f"  delivered {row['delivered_ms']:8.4g} ms ({row['delivered_ms'] / row['original_ms']:.3f}x)"
    return line


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row of --out is of; the rivals of one budget are written together."""
    return tuple(row[part] for part in ("case", "runtime", "precision", "importance", "measured", "budget"))


def keep_of(space: SearchSpace, choice: Choice, importance: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The most important channels of every group."""
    widths = space.labels(choice)
    return {
        name: np.sort(np.argsort(-scores, kind="stable")[: int(widths[name])]) for name, scores in importance.items()
    }


def main(argv: list[str] | None = None) -> int:
    """Print a line per case, runtime, budget and rival; rows that --out has are not made again."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rivals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profiles", type=Path, help="the store; what it lacks is measured (default: by formula)")
    parser.add_argument("--configurations", type=int, default=24, help="networks to profile (default: 24)")
    parser.add_argument("--runtime", action="append", help="RUNTIME[:PRECISION] (default: openvino and torch)")
    parser.add_argument("--importance", choices=MEASURES, default="sensitivity", help="default: %(default)s")
    parser.add_argument("--only", action="append", choices=CASES, help="a network; may be repeated (default: all)")
    parser.add_argument("--budget", action="append", type=float, help="a share such as 0.5 (default: 0.8 to 0.3)")
    parser.add_argument("--measure", action="store_true", help="time every plan, interleaved with the original")
    parser.add_argument("--rounds", type=int, default=15, help="times each plan is timed in turn (default: 15)")
    parser.add_argument("--out", type=Path, help="a file for the rows, one JSON object a line; resumes")
    options = parser.parse_args(argv)
    if options.profiles is None and (options.measure or options.runtime):
        parser.error("--measure and --runtime need --profiles DIR, the table of a machine")
    rows = read_rows(options.out)
    for row in rows:
        print(show(row))
    for name in options.only or CASES:
        bench = Bench(name, options)
        for runtime in (options.runtime or ("openvino", "torch")) if options.profiles else (None,):
            device = here(*runtime.split(":")) if runtime else None
            for _, budget in groupby(bench.rows(device, {key_of(row) for row in rows}), key_of):
                save(list(budget), options.out)
    return 0


def save(rows: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """Print the rows of one budget, and add them to the file together."""
    add_rows(path, rows)
    for row in rows:
        print(show(row), flush=True)


if __name__ == "__main__":
    raise SystemExit(run(main))
