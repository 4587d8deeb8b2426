"""How well the latency tables predict networks at widths that took no part in fitting, and how well anything could.

    python -m benchmarks.prediction --out prediction.jsonl                     # everything; resumes
    python -m benchmarks.prediction --only resnet50 --runtime onnxruntime --plans 20
    python -m benchmarks.prediction --only resnet56 --runtime torch --twice --burn
    python -m benchmarks.prediction --minutes 1 --isolated 0                   # at most a minute per table
    python -m benchmarks.prediction --report prediction.jsonl --plot prediction.svg

For each network and runtime: profile (as profile-device does), then time random plans. Beside the table's prediction
stands what multiply-accumulates would have said, scaled to fit these very plans, which flatters them. The full
network and a thin one are timed in turn with the plans, which says what the machine drifted since the table was made.
The noise floor is every fourth plan compiled and timed a second time in the same run: no prediction can be expected
to do better. Then, for all networks, what isolated timing would have said of the first --isolated plans: every layer
compiled and timed alone, added up, and scaled likewise. --removal predicts as many plans again in which up to all of
the groups that may go are gone; --twice makes the table twice and compares row by row; --burn makes it once more while
another process burns a core. Each row is written as it is finished; small networks come first, and every runtime in
turn, so that a run that is cut short says something of each.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import network
from benchmarks.generators import Imdn, Johnson
from benchmarks.isolated import Isolated
from benchmarks.networks import cartoongan, pix2pix, resnet56, torchvision_network
from benchmarks.prediction_report import line, plot, summary
from benchmarks.quantising import quantised
from benchmarks.rows import add_rows, read_rows
from latency import Device, Store, here, profile, verify
from latency.measurement import POLLUTED, SystemClock
from latency.placement import cores_of
from latency.runtimes import RUNTIMES
from latency.stairs import NEGLIGIBLE_MS
from latency.table import bare, device_table, fingerprint
from latency.verification import time_plans, unseen
from network.command_line import run
from network.errors import InputError
from network.files import write_atomically
from network.types import Network

__all__ = ["NETWORKS", "main"]

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet56": (resnet56, (1, 3, 32, 32)),
    "johnson": (Johnson, (1, 3, 256, 256)),
    "pix2pix": (pix2pix, (1, 3, 256, 256)),
    "mobilenet_v2": (lambda: torchvision_network("mobilenet_v2"), (1, 3, 224, 224)),
    "resnet50": (lambda: torchvision_network("resnet50"), (1, 3, 224, 224)),
    "efficientnet_b0": (lambda: torchvision_network("efficientnet_b0"), (1, 3, 224, 224)),
    "imdn": (Imdn, (1, 3, 128, 128)),
    "cartoongan": (cartoongan, (1, 3, 256, 256)),
}

BURN = "while True: pass"

Rows = list[dict[str, float]]
Key = tuple[str, str, str, str]
NAMED = ("network", "runtime", "precision", "kind")


class CountingClock(SystemClock):
    """The system's clock, which adds up the windows that are timed: each asks twice what time it is."""

    def __init__(self) -> None:
        self.windows_ms = 0.0
        self._opened: float | None = None

    def now_ms(self) -> float:
        now = super().now_ms()
        if self._opened is not None:
            self.windows_ms += now - self._opened
        self._opened = now if self._opened is None else None
        return now


@dataclass(frozen=True)
class Case:
    """One network in one runtime, and how much of it to measure."""

    model: nn.Module
    net: Network
    example: tuple[torch.Tensor, ...]
    device: Device
    options: argparse.Namespace

    def profile(self, folder: Path) -> dict[str, float | None]:
        """Make the table; how long it took and the share of pure timing, unless an earlier run made part of it."""
        options, clock, start = self.options, CountingClock(), time.perf_counter()
        begun = len(_rows(folder, self)) > 0
        wanted, minutes = options.configurations, options.minutes
        case = (self.model, self.net, self.example, self.device, folder)
        made = profile(*case, configurations=wanted, minutes=minutes, clock=clock)
        seconds = time.perf_counter() - start
        if begun:
            return {"configurations": made, "table_seconds": None, "timing_share": None}
        return {"configurations": made, "table_seconds": seconds, "timing_share": clock.windows_ms / 1e3 / seconds}

    def verify(self, folder: Path) -> dict[str, Any]:
        options = self.options
        return verify(self.model, self.net, self.example, self.device, folder, options.plans, seed=options.seed)

    @property
    def plans(self) -> list[dict[str, int]]:
        """The plans that `verify` times."""
        return unseen(self.net, self.options.plans, seed=self.options.seed)


@cache
def _traced(name: str, in_integers: bool) -> tuple[nn.Module, Network, tuple[torch.Tensor, ...]]:
    build, shape = NETWORKS[name]
    model, example = build().eval(), network.example_inputs([shape])
    model = quantised(model, [example]) if in_integers else model
    return model, network.trace(model, example), example


def built(name: str, device: Device, options: argparse.Namespace) -> Case:
    """The case of this network, quantised for int8, which is traced once for all runtimes."""
    return Case(*_traced(name, device.precision == "int8"), device, options)


def predicted(case: Case, _: Rows) -> dict[str, Any]:
    """Every plan's predicted and delivered milliseconds and MACs, the noise floor, and what it took."""
    rows, floors, took = _timed(case, case.plans, twins=True)
    rows = [row | {"macs": case.net.macs(widths)} for row, widths in zip(rows, case.plans, strict=True)]
    return {"rows": rows, "floors": floors, **took}


def removed(case: Case, _: Rows) -> dict[str, Any]:
    """Predicted and delivered milliseconds of plans without some groups, and how many those are."""
    options = case.options
    plans = unseen(case.net, options.plans, seed=options.seed, gone=1.0) if bare(case.net) else []
    rows, _, took = _timed(case, plans)
    gone = [sum(width == 0 for width in widths.values()) for widths in plans]
    return {"rows": [row | {"gone": count} for row, count in zip(rows, gone, strict=True)], **took}


def _timed(case: Case, plans: list[dict[str, int]], *, twins: bool = False) -> tuple[Rows, list[float], dict[str, Any]]:
    """What `time_plans` says of them beside the case's table, and what making that took."""
    took = case.profile(case.options.profiles)
    table = device_table(case.options.profiles, case.net, case.device)
    return *time_plans(case.model, table, case.net, case.example, plans, twins=twins), took


def isolated(case: Case, delivered: Rows) -> dict[str, Any]:
    """Isolated milliseconds of the first plans, beside what was delivered, and drifted, when they were predicted."""
    timer = Isolated(case.model, case.net, case.example, case.device)
    plans = zip(case.plans[: case.options.isolated], delivered, strict=False)
    kept = ("delivered_ms", "drift")
    return {
        "rows": [{"isolated_ms": timer.milliseconds(widths)} | {key: row[key] for key in kept} for widths, row in plans]
    }


def twice(case: Case, _: Rows) -> dict[str, Any]:
    """The whole table made twice, in two stores: differences per row, weighted by time and not, and of predictions."""
    folders = [case.options.profiles, _beside(case.options.profiles, "again")]
    for folder in folders:
        case.profile(folder)
    once, again = (_rows(folder, case) for folder in folders)
    once = once[once > NEGLIGIBLE_MS]
    difference = (again / once - 1).abs().dropna()
    slowest = once[difference.index] >= once.quantile(0.75)
    tables = [device_table(folder, case.net, case.device) for folder in folders]
    said = np.array([[table.predict_ms(case.net, widths) for widths in case.plans] for table in tables])
    return {
        "rows": len(difference),
        **{f"difference_p{p}": float(np.percentile(difference, p)) for p in (50, 75, 90, 95)},
        "difference_of_the_slowest_quarter_p50": float(difference[slowest].median()),
        "prediction_difference_p50": float(np.median(np.abs(said[1] / said[0] - 1))),
    }


def _beside(folder: Path, name: str) -> Path:
    return folder.with_name(f"{folder.name}-{name}")


def _rows(folder: Path, case: Case) -> pd.Series:
    """Milliseconds of this network's layers, by configuration, specification and widths."""
    rows = Store(folder).device_rows(case.device)
    rows = rows[(rows.network == fingerprint(case.net)) & (rows.kind == "layer")]
    rows = rows.drop_duplicates(["configuration", "spec", "c_in", "c_out"])
    return rows.set_index(["configuration", "spec", "c_in", "c_out"]).ms


def burnt(case: Case, _: Rows) -> dict[str, Any]:
    """The table made while a second process burns one core, against plans timed without it; and whether it warns."""
    folder = _beside(case.options.profiles, "burnt")
    with _burning():
        case.profile(folder)
    found = case.verify(folder)
    runs = Store(folder).device_rows(case.device)
    contention = float(runs[(runs.kind == "network") & (runs.spec == fingerprint(case.net))].contention.mean())
    kept = ("plans", "within_5_percent", "within_10_percent")
    return {
        "median_error": found["median_abs_error"],
        **{key: found[key] for key in kept},
        "contention": contention,
        "warned": contention > POLLUTED,
    }


@contextlib.contextmanager
def _burning() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", BURN])
    try:
        yield
    finally:
        process.kill()
        process.wait()


KINDS: dict[str, Callable[[Case, Rows], dict[str, Any]]] = {
    "prediction": predicted,
    "removal": removed,
    "isolated": isolated,
    "twice": twice,
    "burn": burnt,
}
"""Question → its answer, given the plans of this network and runtime as they were predicted."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.prediction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--only", action="append", choices=NETWORKS, help="a network; may be repeated (default: all)")
    options.add_argument(
        "--runtime", action="append", help="runtime or runtime:precision; may be repeated (default: all)"
    )
    options.add_argument("--threads", type=int, help="default: every core")
    options.add_argument("--plans", type=int, default=20, help="random plans (default: 20)")
    options.add_argument(
        "--seed", type=int, default=1, help="draws them, not 0, which draws the networks that are profiled (default: 1)"
    )
    options.add_argument(
        "--isolated", type=int, default=6, help="plans to time layer by layer, 0 for none (default: 6)"
    )
    options.add_argument("--minutes", type=float, metavar="M", help="at most this long per table (default: no limit)")
    options.add_argument("--configurations", type=int, default=32, help="networks to profile (default: 32)")
    options.add_argument("--removal", action="store_true", help="also plans from which whole groups are gone")
    options.add_argument("--twice", action="store_true", help="also make the whole table twice, in two stores")
    options.add_argument("--burn", action="store_true", help="also make it while a second process burns one core")
    options.add_argument(
        "--profiles", type=Path, default=Path("bench/profiles"), help="the store (default: %(default)s)"
    )
    options.add_argument(
        "--out",
        type=Path,
        default=Path("bench/prediction.jsonl"),
        help="rows as JSON lines; resumes, and measures again what was asked for with other numbers (of plans, ...)",
    )
    options.add_argument("--report", type=Path, metavar="FILE", help="only print the summary of these rows")
    options.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw what was said over what was delivered, as SVG"
    )
    return options


def usable() -> list[tuple[str, str]]:
    """Every runtime and precision that this machine has."""
    there = [runtime for runtime in RUNTIMES.values() if runtime.missing() is None]
    return sorted((r.name, precision) for r in there for precision in r.precisions if r.supports(precision))


def asked(options: argparse.Namespace) -> Iterator[Key]:
    """What is to be measured: every question of every network before the next question, all runtimes in turn."""
    named = [(text + ":fp32").split(":")[:2] for text in options.runtime or ()]
    wanted = {"prediction": True, "isolated": options.isolated > 0}
    wanted |= {kind: getattr(options, kind) for kind in ("removal", "twice", "burn")}
    for kind in (kind for kind in KINDS if wanted[kind]):
        for name in options.only or NETWORKS:
            for runtime, precision in named or usable():
                yield name, runtime, precision, kind


def read(path: Path) -> dict[Key, dict[str, Any]]:
    """The rows of a file that may not be there yet."""
    return {tuple(row[field] for field in NAMED): row for row in read_rows(path)}  # type: ignore[misc]


def asked_with(key: Key, options: argparse.Namespace) -> dict[str, Any]:
    """What changes a row's answer; one that was made with anything else is measured again."""
    changing = ["plans", "seed", "configurations", "minutes", "threads"] + ["isolated"] * (key[-1] == "isolated")
    return {name: getattr(options, name) for name in changing}


def answered(key: Key, done: dict[Key, dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """One row, measured now."""
    name, runtime, precision, kind = key
    device, start = here(runtime, precision, options.threads), time.perf_counter()
    delivered = done.get((name, runtime, precision, "prediction"), {}).get("rows", [])
    cores = cores_of(device.threads)
    before = cores.met
    answer = KINDS[kind](built(name, device, options), delivered)
    met = cores.met.since(before)
    about = {
        "threads": device.threads,
        "version": device.version,
        "asked_with": asked_with(key, options),
        "seconds": time.perf_counter() - start,
        "waited_seconds": met.waited_s,
        "apart": met.share_apart,
    }
    return dict(zip(NAMED, key, strict=True)) | about | answer


def main(argv: list[str] | None = None) -> int:
    """Measure what --out lacks, and print a line per network, runtime and question, and the summary."""
    options = parser().parse_args(argv)
    if options.seed == 0:
        raise InputError("--seed 0 draws the networks that are profiled; take another")
    done = read(options.report or options.out)
    if options.report is None:
        for key in asked(options):
            if done.get(key, {}).get("asked_with") != asked_with(key, options):
                done[key] = answered(key, done, options)
                add_rows(options.out, [done[key]])
            print(line(done[key]), flush=True)
    print(summary(done.values()))
    if options.plot is not None:
        write_atomically(options.plot, plot(done.values()).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
