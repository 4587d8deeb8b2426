"""What each choice in `apply-plan` is worth: the same network, budget and steps, one choice changed at a time.

    python -m benchmarks.ablations --out bench/ablations                    # every row; resumes
    python -m benchmarks.ablations --only resnet56 --way group-l2 --way none --steps 1600 --share 0.5

Nothing is timed, so a busy machine does not matter: the table is the formula of benchmarks.solver, and what counts is
the quality after each stage. A step on windows counts by its share of the picture: as many pixels are seen.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.data import data_folder
from benchmarks.quality import CASES, SETS, say
from benchmarks.rivals import macs
from benchmarks.rows import add_rows, read_rows
from benchmarks.solver import Vectors
from compress import apply_plan
from compress.soap import BETAS
from latency.measurement import Measurement
from network.album import Album
from network.command_line import run
from network.errors import BudgetError, InputError
from network.images import Images
from search import Plan, load_plan, resolve, search
from search.build import build_space
from search.importance import importance_of
from search.task import Imitation, Task, Unlabelled

__all__ = ["WAYS", "main"]

KEY = ("case", "way", "steps", "share", "seed")


@dataclasses.dataclass(frozen=True, slots=True)
class Way:
    """One way to go from the original to the result.

    recipe: the choices of `compress.Recipe`. importance: what the plan is made by; macs: but within the limit on
    multiply-accumulates that is as fast. removal: whether groups may go whole. fixed: nothing that the plan gives up
    may come back. windows: by how much the side of the pictures is divided. picture: taught by crops of PICTURE alone.
    adam: by Adam in the place of SOAP.
    """

    recipe: Mapping[str, Any]
    importance: str = "sensitivity"
    macs: bool = False
    removal: bool = True
    fixed: bool = False
    windows: int = 1
    picture: bool = False
    adam: bool = False

    @property
    def condenses(self) -> bool:
        """Whether the share of condensation matters."""
        return self.recipe["condense"] != "none"


NONE, GROUP_L2 = {"condense": "none"}, {"condense": "group-l2"}

WAYS: dict[str, Way] = {
    "none": Way(NONE),
    "group-l2": Way(GROUP_L2),
    "group-l2, survivors fixed": Way(GROUP_L2, fixed=True),
    "l1": Way({"condense": "l1"}),
    "hard-concrete": Way({"condense": "hard-concrete"}),
    "group-l2, original teaches": Way(GROUP_L2 | {"teacher": "original"}),
    "without repair": Way(NONE | {"repair": False}),
    "half windows": Way(NONE, windows=2),
    "one picture": Way(NONE, picture=True),
    "features too": Way(NONE | {"features": "mse"}),
    "mixup": Way(NONE | {"mix": "mixup"}),
    "by Adam": Way(NONE, adam=True),
    "by taylor": Way(NONE, importance="taylor"),
    "by magnitude": Way(NONE, importance="magnitude"),
    "by MACs": Way(NONE, macs=True),
    "channels alone": Way(NONE, removal=False),
}

BUDGETS = {"resnet56": "0.5x", "dncnn": "0.4x", "johnson": "0.5x", "efficientnet-lite0": "0.67x"}

PICTURE = "Set14/monarch.png"
"""What the way "one picture" teaches by, in place of the photos; the same photos judge."""


@dataclasses.dataclass(frozen=True, slots=True)
class Formula:
    """What latency.measure would return if a network took what the plan's table says, each time it is compiled."""

    plan: Plan

    def __call__(self, modules: Mapping[str, Any], example: Any, device: Any, *, rounds: int = 1) -> Any:
        said = {"original": self.plan.baseline_ms, "narrow": self.plan.predicted_ms}
        return {name: Measurement(said[name.split()[0]], 0.0, rounds, 0.0) for name in modules}


class Bench:
    """One network, its plan, and what each way of condensing makes of it."""

    def __init__(self, name: str, out: Path):
        self.name, self.case, self.out = name, CASES[name], out
        self.model, self.net, _ = self.case.load()
        self.task, self.table = self.case.task(), Vectors()

    def row(self, name: str, steps: int, share: float, seed: int) -> dict[str, Any]:
        """The quality after each stage."""
        way = WAYS[name]
        plan, recipe = self._plan(way), dict(way.recipe)
        if way.windows > 1:
            steps, recipe["crop"] = steps * way.windows**2, self.case.shape[-1] // way.windows
        folder = self.out / re.sub(r"\W+", "-", f"{self.name} {name} {steps} {share:g} {seed}")
        with mock.patch("compress.training.Soap", adam) if way.adam else contextlib.nullcontext():
            made = apply_plan(
                plan, self.model, self.net, self.table, self._task(way), folder, measure=Formula(plan), notify=say,
                steps=steps, condense_share=share, seed=seed, heldout=min(2000, self.case.heldout), corrections=0,
                **recipe,
            )  # fmt: skip
        report = made.report
        condensed = report["stages"].get("condensed", {})
        return {
            "quality": report["quality"], "interval": report["interval"], "seconds": report["seconds"],
            "teacher": report["teacher"], "against": report["stages"]["pruned"].get("against_condensed"),
            "of_the_way": report["stages"]["distilled"]["share"],
            **{key: condensed.get(key) for key in ("mass_left", "channels", "returned")},
        }  # fmt: skip

    def _task(self, way: Way) -> Task:
        """The case's own task, or one that is taught by crops of one picture."""
        if not way.picture:
            return self.task
        if not isinstance(self.task, Imitation):
            raise InputError(f"{self.name} learns from targets, which one picture does not have")
        photos, task = self.task.images, copy.copy(self.task)
        picture = Images(Album(data_folder() / "images" / SETS), [PICTURE], photos.size, photos.preprocess)
        task.train = Unlabelled(picture.split()[0])
        return task

    def _plan(self, way: Way) -> Plan:
        path = self.out / f"{self.name}-{way.importance}.json"
        if not path.exists():
            scores = importance_of(way.importance, self.model, self.net, self.task, progress=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            search(self.model, self.net, self.table, BUDGETS[self.name], scores).save(path)
        plan = load_plan(path)
        if not way.removal:
            plan = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, removal=False))
            plan = resolve(plan, self.net, self.table, plan.budget_ms)
        return fixed(plan) if way.fixed else self._by_macs(plan) if way.macs else plan

    def _by_macs(self, plan: Plan) -> Plan:
        """The plan of most importance within the limit on multiply-accumulates that is as fast."""
        importance = {group: np.asarray(scores) for group, scores in plan.importance.items()}
        space = build_space(self.net, self.table, importance, dataclasses.replace(plan.settings, max_macs=1.0))
        choice = macs(space, plan.budget_ms)
        if choice is None:
            raise BudgetError(f"{self.name}: no limit on multiply-accumulates is as fast")
        widths = {name: int(width) for name, width in space.labels(choice).items()}
        return dataclasses.replace(plan, widths=widths, predicted_ms=float(self.table.predict_ms(self.net, widths)))


def adam(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """What the trainer would use if it did not use SOAP."""
    return torch.optim.Adam(groups, lr=lr, betas=BETAS)


def fixed(plan: Plan) -> Plan:
    """The same plan, in which only what it keeps has importance, so that nothing comes back."""
    kept = {group: np.isin(np.arange(len(plan.importance[group])), channels) for group, channels in plan.keep.items()}
    return dataclasses.replace(plan, importance={group: tuple(map(float, mask)) for group, mask in kept.items()})


def show(row: dict[str, Any]) -> str:
    """One row as a line."""
    what = f"{row['case']:<10} {row['way']:<28} {row['steps']:5d} steps, share {row['share']:.2g}, seed {row['seed']}"
    if "refused" in row:
        return f"{what}: {row['refused']}"
    metric = CASES[row["case"]].metric
    stages = "  ".join(f"{stage} {found[metric]:.4g}" for stage, found in row["quality"].items())
    back = f"  {row['returned']} of {row['channels']} came back" if row["channels"] else ""
    return f"{what}: {metric} {stages}{back}"


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, str, int, float, int]]:
    """Every row; without condensation the share does not matter."""
    for name in options.only or BUDGETS:
        for steps in options.steps:
            for way in options.way or WAYS:
                for share in options.share if WAYS[way].condenses else options.share[:1]:
                    for seed in options.seed:
                        yield name, way, steps, share, seed


def main(argv: list[str] | None = None) -> int:
    """Make the rows that --out lacks, and print a line for each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=BUDGETS, help="a network; may be repeated (default: all)")
    parser.add_argument("--way", action="append", choices=WAYS, help="may be repeated (default: all)")
    parser.add_argument("--steps", type=int, nargs="+", default=[400, 1600], help="of all training (default: 400 1600)")
    parser.add_argument("--share", type=float, nargs="+", default=[0.25, 0.5], help="of condensation (default: both)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("bench/ablations"), help="a folder (default: %(default)s)")
    options = parser.parse_args(argv)
    path = options.out / "rows.jsonl"
    done = {tuple(row[key] for key in KEY): row for row in read_rows(path)}
    bench: Bench | None = None
    for key in wanted(options):
        if key not in done:
            bench = bench if bench and bench.name == key[0] else Bench(key[0], options.out)
            facts = dict(zip(KEY, key, strict=True))
            try:
                done[key] = facts | bench.row(*key[1:])
            except InputError as error:  # such as windows of pictures that have targets
                done[key] = facts | {"refused": str(error)}
            add_rows(path, [done[key]])
        print(show(done[key]), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
