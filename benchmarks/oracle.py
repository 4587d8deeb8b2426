"""Which importance predicts what removal does, on real weights: Pearson, Spearman, per group and over the network.

    python -m benchmarks.oracle                                # EfficientNet-Lite0, ResNet-56, CartoonGAN
    python -m benchmarks.oracle --only resnet56 --each 8 --batches 4

What `python -m search.importance --oracle` does, for the networks of the data folder: EfficientNet-Lite0 and
CartoonGAN imitate themselves on photos, ResNet-56 has labels. The truth is taken before any repair or training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.data import CifarTask, loaded, photos
from benchmarks.networks import cartoongan, efficientnet_lite0, resnet56
from benchmarks.rows import add_rows
from network.command_line import run
from search.importance import MEASURES, importance_of
from search.importance.oracle import agreement, oracle
from search.task import Task

__all__ = ["CASES", "main"]


@dataclass(frozen=True, slots=True)
class Case:
    """A network, its weights, its input, and how photos become inputs; None for CIFAR-10 with labels."""

    build: Callable[[], nn.Module]
    weights: str
    shape: tuple[int, ...]
    preprocess: str | None
    bgr: bool = False

    def task(self) -> Task:
        """What the truth is measured on."""
        if self.preprocess is None:
            return CifarTask()
        return photos(self.shape, self.preprocess, bgr=self.bgr)


CASES = {
    "efficientnet-lite0": Case(efficientnet_lite0, "efficientnet_lite0_fp16.pth", (1, 3, 224, 224), "imagenet"),
    "resnet56": Case(resnet56, "resnet56.pth", (1, 3, 32, 32), None),
    # Half its usual size, which leaves its 26 convolutions the same and takes a quarter of the time.
    "cartoongan": Case(cartoongan, "cartoongan_hayao_fp16.pth", (1, 3, 128, 128), "signed", bgr=True),
}


def rows_of(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per importance and kind of removal."""
    case = CASES[name]
    model, net, _ = loaded(case.build, case.weights, case.shape)
    task = case.task()
    trials = oracle(model, net, task, each=options.each, plans=options.plans, batches=options.batches, progress=True)
    found = {kind: importance_of(kind, model, net, task, progress=True) for kind in MEASURES}
    return [{"network": name, "importance": kind} | row for kind in MEASURES for row in agreement(trials, found[kind])]


def show(row: dict[str, Any]) -> None:
    """One row as a line."""
    numbers = (row["pearson_log"], row["spearman"], row["spearman_within_groups"])
    cells = " ".join(f"{'—' if number is None else format(number, '.3f'):>9}" for number in numbers)
    print(f"{row['network']:<18} {row['importance']:<12} {row['kind']:<8} {row['trials']:5} {cells}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Print a line per network, importance and kind of removal."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.oracle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=CASES, help="a network; may be repeated (default: all)")
    parser.add_argument("--each", type=int, default=6, metavar="N", help="trials per group and kind (default: 6)")
    parser.add_argument("--plans", type=int, default=24, metavar="N", help="whole networks (default: 24)")
    parser.add_argument("--batches", type=int, default=2, metavar="N", help="minibatches of truth (default: 2)")
    parser.add_argument("--out", type=Path, help="a file for the rows, one JSON object a line")
    options = parser.parse_args(argv)
    print(f"{'network':<18} {'importance':<12} {'removed':<8} trials  Pearson  Spearman in groups", flush=True)
    for name in options.only or CASES:
        rows = rows_of(name, options)
        for row in rows:
            show(row)
        add_rows(options.out, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
