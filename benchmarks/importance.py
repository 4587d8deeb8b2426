"""What each importance is worth in the end: quality of its plan after the cut, the repair and a fixed number of steps.

    python -m benchmarks.importance --profiles bench/profiles --only resnet56-torch --steps 200

One latency table, one budget, the same training for everyone; nothing is timed, so the table's word is taken for the
milliseconds and a busy machine changes nothing. Profile the case first (`benchmarks.spine` does).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablations import Formula
from benchmarks.spine import CASES, loaded, task_of
from compress import apply_plan
from latency import open_table
from network.command_line import run
from search import search
from search.importance import MEASURES, importance_of

__all__ = ["main"]


def rows_of(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per importance."""
    case = CASES[name]
    model, net, _ = loaded(case)
    table = open_table(options.profiles, net, runtime=case.runtime, precision=case.precision)
    task = task_of(case)
    rows = []
    for kind in options.importance:
        plan = search(model, net, table, options.budget or case.budget, importance_of(kind, model, net, task))
        with tempfile.TemporaryDirectory() as folder:
            made = apply_plan(
                plan,
                model,
                net,
                table,
                task,
                Path(folder) / "out",
                steps=options.steps,
                condense="none",
                lr=options.lr,
                heldout=options.heldout,
                autocast="auto",
                corrections=0,
                measure=Formula(plan),
            )
        row = {"case": name, "budget": plan.budget, "importance": kind, "steps": options.steps, "lr": options.lr}
        row |= {"predicted": plan.predicted_ms / plan.baseline_ms, "macs": net.macs(plan.widths) / net.macs()}
        rows.append(row | {"widths": dict(plan.widths), "quality": made.report["quality"]})
        stages = " → ".join(
            f"{stage} " + " ".join(f"{metric} {value:.4g}" for metric, value in quality.items())
            for stage, quality in made.report["quality"].items()
        )
        print(f"{name} {kind:<12} {row['predicted']:.3f}x ms {row['macs']:.3f}x MACs  {stages}", flush=True)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Print a line per case and importance."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.importance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profiles", type=Path, required=True, help="the store, filled by benchmarks.spine")
    parser.add_argument("--only", action="append", choices=CASES, help="a case; may be repeated (default: all)")
    parser.add_argument("--importance", nargs="+", choices=MEASURES, default=MEASURES, help="default: every kind")
    parser.add_argument("--budget", help="default: the case's")
    parser.add_argument("--steps", type=int, default=200, help="training steps (default: 200)")
    parser.add_argument("--lr", type=float, default=0.03, help="relative step (default: 0.03)")
    parser.add_argument("--heldout", type=int, default=5000, help="items that judge (default: 5000, or all there are)")
    parser.add_argument("--out", type=Path, help="a file for the rows, as JSON")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    rows = [row for name in options.only or CASES for row in rows_of(name, options)]
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
