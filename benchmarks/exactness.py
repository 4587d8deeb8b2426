"""Brute force = HiGHS = CBC = relaxation + branch, on thousands of small random factor graphs.

    python -m benchmarks.exactness                   # 2,000 graphs, two minutes
    python -m benchmarks.exactness --count 200 --seed 7

Every graph has variables of one to five options, unary and pair tables in any pattern (cycles among them), often a sum
of two or three variables, and time on two devices, each with a budget drawn from the plans' own times, so that many a
budget lies exactly on a plan. Entries are eighths: their sums are exact. Four answers to the same question:

brute     every plan is added up
sieve     the relaxation, coarse to fine, and branch and bound on it, from runs of at most two options; no program
highs     the integer program of the whole graph, in HiGHS
cbc       the same program in CBC
solve     what `search` calls: reduction, sieve, and the program for what is left
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter

import numpy as np
from tqdm import tqdm

from network.command_line import run
from network.errors import BudgetError
from search.program import optimise
from search.sieve import Sieve
from search.solve import Solver
from search.space import IMPORTANCE, LATENCY, Factor, SearchSpace, Variable, sum_variable

__all__ = ["answers", "draw", "main"]

OTHER = "milliseconds on another"
FINE = 1e-6
AGREE = 2 * FINE
"""Relative: each solver stops at FINE."""


def draw(random: np.random.Generator) -> tuple[SearchSpace, dict[str, float]]:
    """A graph, and a budget for each of two devices."""
    sizes = random.integers(1, 6, size=random.integers(1, 6))
    variables = tuple(Variable(f"v{i}", tuple(range(size))) for i, size in enumerate(sizes))
    names, count, sums = [v.name for v in variables], {v.name: len(v.labels) for v in variables}, ()
    if len(names) > 1 and random.random() < 0.5:
        chosen = random.choice(names, size=random.integers(2, min(3, len(names)) + 1), replace=False)
        terms = tuple((str(name), random.integers(0, 7, size=count[name])) for name in chosen)
        total, _, _ = sum_variable("sum", terms, int(random.choice([4, 128])))
        sums, count = (total,), count | {"sum": len(total.low)}
    factors = [Factor(v.name, IMPORTANCE, (v.name,), eighths(random, len(v.labels))) for v in variables]
    for resource in (LATENCY, OTHER, IMPORTANCE):
        most = min(2, len(count))
        scopes = [random.choice(list(count), random.integers(1, most + 1), replace=False) for _ in range(5)]
        scopes += [np.array(["sum"])] if sums else []
        for number, scope in enumerate(scopes):
            table = eighths(random, *(count[name] for name in scope))
            factors.append(Factor(f"{resource} {number}", resource, tuple(map(str, scope)), table))
    space = SearchSpace(variables, tuple(factors), sums)
    totals = every_plan(space)
    budgets = {
        resource: float(np.quantile(totals[resource], random.random(), method="lower")) or 0.125
        for resource in (LATENCY, OTHER)
    }
    return space, budgets


def eighths(random: np.random.Generator, *shape: int) -> np.ndarray:
    """A table of multiples of 1/8."""
    return random.integers(0, 65, size=shape) / 8


def every_plan(space: SearchSpace) -> dict[str, np.ndarray]:
    """Each resource's total for every plan."""
    grids = np.meshgrid(*(np.arange(len(v.labels)) for v in space.variables), indexing="ij")
    choice = {v.name: grid.ravel() for v, grid in zip(space.variables, grids, strict=True)}
    return {resource: np.broadcast_to(space.total(resource, choice), grids[0].size) for resource in space.resources}


def answers(space: SearchSpace, budgets: dict[str, float]) -> dict[str, float]:
    """What each says that the best plan is worth; -inf where it says that there is none."""
    totals = every_plan(space)
    allowed = np.logical_and.reduce([totals[resource] <= limit for resource, limit in budgets.items()])
    found = {"brute": float(totals[IMPORTANCE][allowed].max(initial=-math.inf))}
    sifted = Sieve(space, sorted(budgets), most_runs=2, most_nodes=1000).solve(budgets, FINE)
    found["sieve"] = -math.inf if sifted.choice is None else sifted.bound
    for solver in ("highs", "cbc"):
        outcome = optimise(space, IMPORTANCE, budgets, gap=FINE, solver=solver)
        found[solver] = -math.inf if outcome.choice is None else float(space.total(IMPORTANCE, outcome.choice))
    others = {OTHER: budgets[OTHER]}
    try:
        found["solve"] = Solver(space, others).solve(budgets[LATENCY], limits=others, gap=FINE).objective
    except BudgetError:
        found["solve"] = -math.inf
    return found


def agree(a: float, b: float) -> bool:
    """Whether two answers are the same, to the gap at which the solvers stop."""
    return a == b or abs(a - b) <= AGREE * max(abs(a), abs(b), 1e-3)


def main(argv: list[str] | None = None) -> int:
    """Print how many graphs each agreed on with brute force. Returns 1 if any did not."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exactness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, metavar="N", help="graphs (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args(argv)
    agreed, kinds, began = Counter[str](), Counter[str](), time.process_time()
    for number in tqdm(range(options.count), "exactness", unit="graph", leave=False, disable=None):
        space, budgets = draw(np.random.default_rng([options.seed, number]))
        found = answers(space, budgets)
        kinds["with a sum"] += bool(space.sums)
        kinds["with no plan"] += found["brute"] == -math.inf
        for solver, worth in found.items():
            agreed[solver] += agree(worth, found["brute"])
            if not agree(worth, found["brute"]):
                print(f"graph {number}: {solver} says {worth:.9g}, brute force {found['brute']:.9g}", flush=True)
    print(f"{options.count} graphs, {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")
    for solver, count in agreed.items():
        print(f"{solver:<8} agrees with brute force on {count} of {options.count}")
    print(f"CPU {time.process_time() - began:.0f} s")
    return 0 if all(count == options.count for count in agreed.values()) else 1


if __name__ == "__main__":
    raise SystemExit(run(main))
