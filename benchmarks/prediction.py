"""How well the latency tables predict networks at widths that took no part in fitting, and how well anything could.

    python -m benchmarks.prediction --out prediction.jsonl                     # everything; resumes
    python -m benchmarks.prediction --only resnet50 --runtime onnxruntime --plans 20

For each network and runtime: profile (as profile-device does), then time random plans. Beside the table's prediction
stands what multiply-accumulates alone would have said, scaled to fit these very plans, which flatters it. The noise
floor is the same network timed twice in one interleaved run: no prediction can be expected to do better.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from torch import nn

import network
from benchmarks.generators import Imdn, Johnson
from benchmarks.networks import cartoongan, pix2pix, resnet56, torchvision_network
from latency import here, measure, profile, verify
from latency.profiler import design, first_channels
from latency.runtimes import RUNTIMES
from network.command_line import use_huge_pages

__all__ = ["NETWORKS", "main"]

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cartoongan": (cartoongan, (1, 3, 256, 256)),
    "johnson": (Johnson, (1, 3, 256, 256)),
    "pix2pix": (pix2pix, (1, 3, 256, 256)),
    "imdn": (Imdn, (1, 3, 128, 128)),
    "resnet50": (lambda: torchvision_network("resnet50"), (1, 3, 224, 224)),
    "mobilenet_v2": (lambda: torchvision_network("mobilenet_v2"), (1, 3, 224, 224)),
    "efficientnet_b0": (lambda: torchvision_network("efficientnet_b0"), (1, 3, 224, 224)),
    "resnet56": (resnet56, (1, 3, 32, 32)),
}

FLOOR_PLANS = 4
ROUNDS = 9


def row_of(name: str, runtime: str, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """One network in one runtime: errors as shares, correlations, the noise floor and what it took."""
    build, shape = NETWORKS[name]
    model, example = build().eval(), network.example_inputs([shape])
    net = network.trace(model, example)
    device = here(runtime, precision)
    profile(model, net, example, device, options.profiles, configurations=options.configurations)
    found = verify(model, net, example, device, options.profiles, options.plans)
    predicted, delivered = (np.array([row[key] for row in found["rows"]]) for key in ("predicted_ms", "delivered_ms"))
    plans = design(net, options.plans + 1, seed=1)[1:]
    macs = np.array([net.macs(widths) for widths in plans])
    by_macs = macs * float(np.median(delivered / macs))
    errors = np.abs(predicted / delivered - 1)
    return {
        "network": name,
        "runtime": runtime,
        "precision": precision,
        "threads": device.threads,
        "version": device.version,
        "plans": len(errors),
        "median_error": float(np.median(errors)),
        "within_5_percent": float(np.mean(errors <= 0.05)),
        "within_10_percent": float(np.mean(errors <= 0.10)),
        "worst_error": float(errors.max()),
        "rank_correlation": float(stats.spearmanr(predicted, delivered).statistic),
        "macs_median_error": float(np.median(np.abs(by_macs / delivered - 1))),
        "macs_rank_correlation": float(stats.spearmanr(macs, delivered).statistic),
        "floor": floor(model, net, example, device, plans[:FLOOR_PLANS]),
    }


def floor(model: nn.Module, net: Any, example: Any, device: Any, plans: list[dict[str, int]]) -> float:
    """Median difference, as a share, of the same narrow networks compiled and timed twice."""
    modules = {
        f"{number} {time}": network.narrow(model, net, first_channels(net, widths))
        for number, widths in enumerate(plans)
        for time in ("once", "again")
    }
    times = measure(modules, example, device, rounds=ROUNDS)
    ratios = [times[f"{n} once"].median_ms / times[f"{n} again"].median_ms for n in range(len(plans))]
    return float(np.median(np.abs(np.array(ratios) - 1)))


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    return (
        f"{row['network']:<16} {row['runtime']:<12} {row['precision']:<5} median {row['median_error']:6.1%}  "
        f"≤5 % {row['within_5_percent']:4.0%}  ≤10 % {row['within_10_percent']:4.0%}  worst {row['worst_error']:6.1%}  "
        f"rank {row['rank_correlation']:.3f}  MACs {row['macs_median_error']:6.1%} "
        f"rank {row['macs_rank_correlation']:.3f}  floor {row['floor']:5.1%}"
    )


def main(argv: list[str] | None = None) -> int:
    """Measure what --out lacks, and print a line per network and runtime."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prediction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=NETWORKS, help="a network; may be repeated (default: all)")
    parser.add_argument(
        "--runtime", action="append", help="runtime or runtime:precision; may be repeated (default: all)"
    )
    parser.add_argument("--plans", type=int, default=20, help="random plans (default: 20)")
    parser.add_argument("--configurations", type=int, default=32, help="networks to profile (default: 32)")
    parser.add_argument(
        "--profiles", type=Path, default=Path("bench/profiles"), help="the store (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/prediction.jsonl"), help="rows as JSON lines; resumes")
    options = parser.parse_args(argv)
    use_huge_pages()
    usable = {
        (name, precision)
        for name, runtime in RUNTIMES.items()
        if runtime.missing() is None
        for precision in runtime.precisions
        if runtime.supports(precision)
    }
    asked = [tuple((each + ":fp32").split(":")[:2]) for each in options.runtime or ()]
    rows = [json.loads(text) for text in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(row["network"], row["runtime"], row["precision"]): row for row in rows}
    for name in options.only or NETWORKS:
        for runtime, precision in asked or sorted(usable):
            key = (name, runtime, precision)
            if key not in done:
                done[key] = row_of(*key, options)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                with options.out.open("a") as file:
                    file.write(json.dumps(done[key]) + "\n")
            print(line(done[key]), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
