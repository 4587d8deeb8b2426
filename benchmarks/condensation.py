"""Whether condensation pays: the same plan and steps with it, without it, and with survivors chosen beforehand.

    python -m benchmarks.condensation --out bench/condensation                    # every row; resumes
    python -m benchmarks.condensation --only resnet56 --steps 400 1600 --share 0.5

Nothing is timed, so a busy machine does not matter: the table is the formula of benchmarks.solver, and what counts is
the quality after each stage. `against` is how near the cut network is to the condensed one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import loaded
from benchmarks.quality import CASES, say
from benchmarks.solver import Vectors
from compress import apply_plan
from latency.measurement import Measurement
from search import Plan, load_plan, search
from search.importance import importance_of

__all__ = ["WAYS", "main"]

WAYS: dict[str, dict[str, Any]] = {
    "none": {"condense": "none"},
    "group-l2": {"condense": "group-l2"},
    "group-l2, survivors fixed": {"condense": "group-l2"},
    "l1": {"condense": "l1"},
    "hard-concrete": {"condense": "hard-concrete"},
    "group-l2, original teaches": {"condense": "group-l2", "teacher": "original"},
}
BUDGETS = {"resnet56": "0.5x", "dncnn": "0.4x", "johnson": "0.5x"}


@dataclasses.dataclass(frozen=True, slots=True)
class Formula:
    """What latency.measure would return if a network took what the plan's table says."""

    plan: Plan

    def __call__(self, modules: Mapping[str, Any], example: Any, device: Any, *, rounds: int = 1) -> Any:
        said = {"original": self.plan.baseline_ms, "narrow": self.plan.predicted_ms}
        return {name: Measurement(said[name], 0.0, rounds, 0.0) for name in modules}


class Bench:
    """One network, its plan, and what each way of condensing makes of it."""

    def __init__(self, name: str, out: Path):
        self.name, self.case, self.out = name, CASES[name], out
        self.model, self.net, _ = loaded(self.case.build, self.case.weights, self.case.shape)
        self.task, self.table = self.case.task(), Vectors()
        self.plan = self._plan()

    def row(self, way: str, steps: int, share: float, seed: int) -> dict[str, Any]:
        """The quality after each stage."""
        plan = fixed(self.plan) if "fixed" in way else self.plan
        folder = self.out / f"{self.name}-{way.replace(', ', '-').replace(' ', '-')}-{steps}-{share:g}-{seed}"
        made = apply_plan(
            plan, self.model, self.net, self.table, self.task, folder, measure=Formula(plan), notify=say, steps=steps,
            condense_share=share, seed=seed, heldout=min(2000, self.case.heldout), corrections=0, **WAYS[way],
        )  # fmt: skip
        report = made.report
        condensed = report["stages"].get("condensed", {})
        facts = {"case": self.name, "way": way, "steps": steps, "share": share, "seed": seed}
        return facts | {
            "quality": report["quality"], "interval": report["interval"], "seconds": report["seconds"],
            "teacher": report["teacher"], "against": report["stages"]["pruned"].get("against_condensed"),
            **{key: condensed.get(key) for key in ("mass_left", "channels", "returned")},
        }  # fmt: skip

    def _plan(self) -> Plan:
        path = self.out / f"{self.name}.json"
        if not path.exists():
            scores = importance_of("sensitivity", self.model, self.net, self.task, progress=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            search(self.model, self.net, self.table, BUDGETS[self.name], scores).save(path)
        return load_plan(path)


def fixed(plan: Plan) -> Plan:
    """The same plan, in which only what it keeps has importance, so that nothing comes back."""
    kept = {group: np.isin(np.arange(len(plan.importance[group])), channels) for group, channels in plan.keep.items()}
    return dataclasses.replace(plan, importance={group: tuple(map(float, mask)) for group, mask in kept.items()})


def show(row: dict[str, Any]) -> str:
    """One row as a line."""
    metric = CASES[row["case"]].metric
    stages = "  ".join(f"{stage} {found[metric]:.4g}" for stage, found in row["quality"].items())
    back = f"  {row['returned']} of {row['channels']} came back" if row["channels"] else ""
    return (
        f"{row['case']:<10} {row['way']:<28} {row['steps']:5d} steps, share {row['share']:.2g}: {metric} {stages}{back}"
    )


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, str, int, float, int]]:
    """Every row; without condensation the share does not matter."""
    for name in options.only or BUDGETS:
        for steps in options.steps:
            for way in options.way or WAYS:
                for share in options.share if way != "none" else options.share[:1]:
                    for seed in options.seed:
                        yield name, way, steps, share, seed


def main(argv: list[str] | None = None) -> int:
    """Make the rows that --out lacks, and print a line for each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.condensation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=BUDGETS, help="a network; may be repeated (default: all)")
    parser.add_argument("--way", action="append", choices=WAYS, help="may be repeated (default: all)")
    parser.add_argument("--steps", type=int, nargs="+", default=[400, 1600], help="of all training (default: 400 1600)")
    parser.add_argument("--share", type=float, nargs="+", default=[0.25, 0.5], help="of condensation (default: both)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("bench/condensation"), help="a folder (default: %(default)s)")
    options = parser.parse_args(argv)
    path = options.out / "rows.jsonl"
    rows = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    done = {tuple(row[key] for key in ("case", "way", "steps", "share", "seed")): row for row in rows}
    bench: Bench | None = None
    for key in wanted(options):
        if key not in done:
            bench = bench if bench and bench.name == key[0] else Bench(key[0], options.out)
            done[key] = bench.row(*key[1:])
            with path.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
        print(show(done[key]), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
