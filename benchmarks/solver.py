"""How long the search takes, and how well it proves: seconds and gap per network and budget, and for a whole front.

    python -m benchmarks.solver                                  # six networks, widths by 8 and every width
    python -m benchmarks.solver --only resnet50 --alone          # beside the integer program without the relaxation

Nothing is measured but the search, so the table is a formula (whole vectors of channels in and out, plus moving the
data costs) and importance is drawn: gamma-distributed channels, as uneven as a trained network's, in groups of uneven
worth. Budgets are shares of the full network's time. Every row of --out is one JSON line.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

import network
from benchmarks.networks import cartoongan, pix2pix, torchvision_network
from benchmarks.rows import add_rows
from latency import Device, LatencyTable, Overhead
from network.command_line import run
from network.types import LayerSpec, Network
from search import Settings
from search.build import build_space
from search.incumbent import Climber
from search.program import optimise
from search.reduction import reduce_space
from search.solve import PROVED_GAP, Solver, solve
from search.space import IMPORTANCE, LATENCY, SearchSpace

__all__ = ["NETWORKS", "main"]

SHARES = (0.7, 0.5, 0.3)
WIDTHS = {"by 8": None, "every": 1 << 20}
"""Widths per group: the default, and no limit."""

VECTOR = 16
PRODUCTS = ("conv2d", "conv_transpose2d", "linear")

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet50": (lambda: torchvision_network("resnet50"), 224),
    "mobilenet_v2": (lambda: torchvision_network("mobilenet_v2"), 224),
    "efficientnet_b0": (lambda: torchvision_network("efficientnet_b0"), 224),
    "densenet121": (lambda: torchvision_network("densenet121"), 224),
    "cartoongan": (cartoongan, 256),
    "pix2pix": (pix2pix, 256),
}


@dataclass(frozen=True)
class Vectors(LatencyTable):
    """A machine that computes whole vectors of channels, and reads and writes what it computes."""

    device: Device = field(default_factory=lambda: Device("formula", "none", "fp32", 1, "0"))
    fingerprint: str = "vectors"
    overhead: Overhead = field(default_factory=lambda: Overhead(0.1, 1.0))
    rows: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    def milliseconds(self, spec: LayerSpec, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        positions = float(np.prod(spec.spatial_out or (1,)))
        attributes = dict(spec.attributes)
        taps = math.prod(int(size) for size in attributes.get("kernel", "1").split("x"))
        inputs, outputs = np.ceil(np.asarray(c_in) / VECTOR), np.ceil(np.asarray(c_out) / VECTOR)
        product = spec.op in PRODUCTS and attributes.get("groups") != "depthwise"
        computed = taps * (inputs * outputs if product else outputs)
        return 2e-6 * positions * (computed + 0.2 * (np.asarray(c_in) + np.asarray(c_out)))


def drawn_importance(net: Network, seed: int = 0) -> dict[str, np.ndarray]:
    """Gamma-distributed channels in groups of exponentially distributed worth."""
    random = np.random.default_rng(seed)
    return {group.name: random.gamma(0.3, size=group.width) * random.exponential() for group in net.groups}


class Clock:
    """Seconds on the wall, and of this process's CPU, which others on the machine lengthen less, since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self._began[0], "cpu_s": time.process_time() - self._began[1]}


def rows_of(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every budget, and the front, with widths by 8 and with every width."""
    build, size = NETWORKS[name]
    net = network.trace(build().eval(), network.example_inputs([(1, 3, size, size)]))
    table, importance = Vectors(), drawn_importance(net)
    baseline_ms = table.predict_ms(net)
    rows = []
    for widths in options.widths:
        count = WIDTHS[widths]
        space = build_space(net, table, importance, Settings(options=count))
        common = {"network": name, "widths": widths, "plans_log10": space.choices_log10}
        for share in SHARES:
            clock = Clock()
            found = solve(space, share * baseline_ms, time_limit_s=options.time_limit)
            row = common | {"share": share} | clock.read()
            row |= {"status": found.status, "gap": found.gap, "removed": found.removed}
            if options.alone and count is None:  # with every width the program itself has millions of columns
                row["alone_s"] = alone(space, share * baseline_ms, options.time_limit)
            rows.append(row | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
            show(rows[-1])
        if not options.front:
            continue
        clock = Clock()
        solver = Solver(space)
        gaps = [
            solver.solve(float(ms), time_limit_s=options.time_limit).gap
            for ms in np.linspace(solver.least(LATENCY, {}) * (1 + 1e-9), baseline_ms, options.front)
        ]
        rows.append(common | {"front": options.front} | clock.read() | {"gap": max(gaps)})
        show(rows[-1])
    return rows


def alone(space: SearchSpace, budget_ms: float, time_limit_s: float) -> float:
    """Seconds of the integer program with dominated options gone and coordinate ascent's start, but no relaxation."""
    began = time.perf_counter()
    limits = {LATENCY: budget_ms}
    reduced = reduce_space(space, limits).space
    start = Climber(reduced, limits).start(np.array([budget_ms]))
    optimise(reduced, IMPORTANCE, limits, start, time_limit_s, PROVED_GAP)
    return time.perf_counter() - began


def show(row: dict[str, Any]) -> None:
    """One row as a line."""
    what = f"front of {row['front']}" if "front" in row else f"{row['share']}x"
    beside = f", alone {row['alone_s']:.2f} s" if "alone_s" in row else ""
    print(
        f"{row['network']:<16} widths {row['widths']:<5} 10^{row['plans_log10']:<4.0f} {what:<12} "
        f"{row['seconds']:7.2f} s, CPU {row['cpu_s']:7.2f} s{beside}  gap {row['gap']:.1e}",
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the networks and print a line per row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.solver", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=NETWORKS, help="a network; may be repeated (default: all)")
    parser.add_argument("--alone", action="store_true", help="time the program without the relaxation too (by 8)")
    parser.add_argument(
        "--widths", nargs="+", choices=("by 8", "every"), default=("by 8", "every"), help="default: both"
    )
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="S", help="per program (default: 60)")
    parser.add_argument(
        "--front", type=int, default=64, metavar="N", help="budgets of the front; 0: none (default: 64)"
    )
    parser.add_argument("--out", type=Path, help="a file for the rows, one JSON object a line")
    options = parser.parse_args(argv)
    for name in options.only or NETWORKS:
        rows = rows_of(name, options)
        add_rows(options.out, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
