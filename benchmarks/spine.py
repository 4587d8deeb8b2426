"""The whole spine on real weights, against the uniform width at the same delivered milliseconds and training.

    python -m benchmarks.spine --out bench                        # every row; resumes
    python -m benchmarks.spine --out bench --only cartoongan-torch --minutes 8

Uniform: every group × the same constant, channels of the largest L2 norm, no condensation and no repair, the same
training time (minutes) or steps, all of it distillation from the original. Its constant is the largest whose
network, timed in turn with ours, is no slower.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import network
from benchmarks import data
from benchmarks.data import CifarTask
from benchmarks.networks import cartoongan, resnet56
from compress import apply_plan
from latency import LatencyTable, here, measure, open_table, profile, verify
from network import Network
from network.command_line import run
from network.errors import BudgetError
from search import Plan, load_plan, search
from search.importance import importance_of, magnitude
from search.task import Task

__all__ = ["CASES", "main"]


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One row of the table: a network with its weights, where it will run, and the budget."""

    build: Any
    weights: str
    shape: tuple[int, ...]
    runtime: str
    precision: str
    budget: str
    labels: bool = False


CASES = {
    "cartoongan-torch": Case(cartoongan, "cartoongan_hayao_fp16.pth", (1, 3, 256, 256), "torch", "fp32", "0.35x"),
    "cartoongan-openvino": Case(cartoongan, "cartoongan_hayao_fp16.pth", (1, 3, 256, 256), "openvino", "fp32", "0.35x"),
    # One picture at a time, most of the time is no layer's: the fastest plan takes 0.55x in torch, 0.72x in OpenVINO,
    # and there 0.66x at batch 64 too, as 16 channels fill one vector and fewer take as long.
    "resnet56-torch": Case(resnet56, "resnet56.pth", (64, 3, 32, 32), "torch", "fp32", "0.5x", labels=True),
    "resnet56-openvino": Case(resnet56, "resnet56.pth", (64, 3, 32, 32), "openvino", "fp32", "0.75x", labels=True),
}


def loaded(case: Case) -> tuple[nn.Module, Network, tuple[torch.Tensor, ...]]:
    """The network with its weights, traced, and its example inputs."""
    return data.loaded(case.build, case.weights, case.shape)


def task_of(case: Case) -> Task:
    """Labels for ResNet-56, else the ImageNet photos as CartoonGAN wants them: BGR in [-1, 1]."""
    if case.labels:
        return CifarTask()
    return data.photos(case.shape, "signed", bgr=True)


def uniform(plan: Plan, model: nn.Module, net: Network, table: LatencyTable, example: tuple[torch.Tensor, ...]) -> Plan:
    """The plan of one constant for every width, as slow as `plan` or faster when both are timed in turn."""
    scores = {name: tuple(map(float, values)) for name, values in magnitude(model, net).items()}
    ours = network.narrow(model, net, plan.keep)
    low, high = 1, 64
    best = None
    while low <= high:
        middle = (low + high) // 2
        widths = {g.name: max(1, round(g.width * middle / 64)) for g in net.groups}
        candidate = dataclasses.replace(plan, widths=widths, importance=scores)
        times = measure(
            {"ours": ours, "uniform": network.narrow(model, net, candidate.keep)}, example, table.device, rounds=9
        )
        ratio = times["uniform"].median_ms / times["ours"].median_ms
        print(f"uniform {middle}/64: {ratio:.3f} of our milliseconds", file=sys.stderr)
        if ratio <= 1:
            best, low = candidate, middle + 1
        else:
            high = middle - 1
    if best is None:
        raise BudgetError("no uniform width is as fast as the plan")
    return dataclasses.replace(best, budget="1x", predicted_ms=float(table.predict_ms(net, best.widths)))


def compared(name: str, case: Case, out: Path, profiles: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Profile, verify, search, apply ours and uniform; each finished part is kept."""
    folder = out / name
    model, net, example = loaded(case)
    device = here(case.runtime, case.precision)
    profile(model, net, example, device, profiles, configurations=options.configurations)
    table = open_table(profiles, net, device=device.machine, runtime=case.runtime, precision=case.precision)
    checked = cached(folder / "verify.json", lambda: verify(model, net, example, device, profiles, options.verify))
    task = task_of(case)
    if not (folder / "plan.json").exists():
        scores = importance_of("sensitivity", model, net, task, progress=True)
        search(model, net, table, case.budget, scores).save(folder / "plan.json")
    plan = load_plan(folder / "plan.json")
    common: dict[str, Any] = {"seed": 0, "heldout": 10_000 if case.labels else 40, "autocast": options.autocast}
    common |= {"steps": options.steps} if options.steps else {"minutes": options.minutes}
    say = {"notify": lambda line: print(line, file=sys.stderr)}
    ours = apply_plan(plan, model, net, table, task, folder / "ours", **common, **say)
    rival = cached(
        folder / "uniform.json", lambda: json.loads(uniform(ours.plan, model, net, table, example).to_json())
    )
    (folder / "uniform-plan.json").write_text(json.dumps(rival))
    plain = {"condense": "none", "repair": False, "teacher": "original", "corrections": 0}
    theirs = apply_plan(
        load_plan(folder / "uniform-plan.json"), model, net, table, task, folder / "uniform", **common, **plain, **say
    )
    return [
        {"case": name, "method": method, "verify": {k: v for k, v in checked.items() if k != "rows"}, **made.report}
        for method, made in (("ours", ours), ("uniform", theirs))
    ]


def cached(path: Path, make: Any) -> Any:
    """The JSON in `path`, made if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    quality = " → ".join(
        f"{stage} " + " ".join(f"{metric} {value:.4g}" for metric, value in row["quality"][stage].items())
        for stage in ("original", "condensed", "pruned", "repaired", "distilled")
        if row["quality"].get(stage)
    )
    return (
        f"{row['case']:<20} {row['method']:<8} baseline {row['baseline_ms']:.4g} budget {row['budget_ms']:.4g} "
        f"predicted {row['predicted_ms']:.4g} delivered {row['delivered_ms']:.4g} ms "
        f"({row['delivered_ms'] / row['budget_ms']:.3f})  {quality}"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spine", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--only", action="append", choices=CASES, help="a case; may be repeated (default: all)")
    parser.add_argument("--minutes", type=float, default=8.0, help="training per method (default: 8)")
    parser.add_argument("--steps", type=int, help="training steps per method, instead of --minutes")
    parser.add_argument("--configurations", type=int, default=32, help="networks to profile (default: 32)")
    parser.add_argument("--verify", type=int, default=8, help="random plans to verify the table with (default: 8)")
    parser.add_argument("--autocast", default="auto", help="off or auto: bf16 training where it is faster")
    options = parser.parse_args(argv)
    rows = []
    for name in options.only or CASES:
        rows += compared(name, CASES[name], options.out, options.out / "profiles", options)
        (options.out / "spine.json").write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(line(row))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
