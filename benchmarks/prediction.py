"""How well the latency tables predict networks at widths that took no part in fitting, and how well anything could.

    python -m benchmarks.prediction --out prediction.jsonl                     # everything; resumes
    python -m benchmarks.prediction --only resnet50 --runtime onnxruntime --plans 20
    python -m benchmarks.prediction --only resnet56 --runtime torch --twice --burn

For each network and runtime: profile (as profile-device does), then time random plans. Beside the table's prediction
stands what others would have said: isolated timing (every layer compiled and timed alone, added up; of the first
--isolated plans) and multiply-accumulates, scaled to fit these very plans, which flatters them. The noise floor is the
same network timed twice in one interleaved run: no prediction can be expected to do better. --twice makes the table
twice and compares row by row; --burn makes it once more while another process burns a core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn

import network
from benchmarks.generators import Imdn, Johnson
from benchmarks.isolated import Isolated
from benchmarks.networks import cartoongan, pix2pix, resnet56, torchvision_network
from latency import Device, Store, here, measure, profile, verify
from latency.measurement import POLLUTED, SystemClock
from latency.profiler import design, first_channels
from latency.runtimes import RUNTIMES
from latency.stairs import NEGLIGIBLE_MS
from latency.table import device_table, fingerprint
from network.command_line import use_huge_pages
from network.types import Network

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
BURN = "while True: pass"


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
        clock, start, wanted = CountingClock(), time.perf_counter(), self.options.configurations
        made = profile(self.model, self.net, self.example, self.device, folder, configurations=wanted, clock=clock)
        seconds = time.perf_counter() - start
        if made < wanted:
            return {"table_seconds": None, "timing_share": None}
        return {"table_seconds": seconds, "timing_share": clock.windows_ms / 1e3 / seconds}

    def verify(self, folder: Path) -> dict[str, Any]:
        return verify(self.model, self.net, self.example, self.device, folder, self.options.plans)

    @property
    def plans(self) -> list[dict[str, int]]:
        """The plans that `verify` times."""
        return design(self.net, self.options.plans + 1, seed=1)[1:]


def built(name: str, device: Device, options: argparse.Namespace) -> Case:
    """The case of this network, traced."""
    build, shape = NETWORKS[name]
    model, example = build().eval(), network.example_inputs([shape])
    return Case(model, network.trace(model, example), example, device, options)


def predicted(case: Case) -> dict[str, Any]:
    """Errors as shares, correlations, the noise floor and what it took."""
    took = case.profile(case.options.profiles)
    found = case.verify(case.options.profiles)
    said, delivered = (np.array([row[key] for row in found["rows"]]) for key in ("predicted_ms", "delivered_ms"))
    plans = case.plans
    isolated = Isolated(case.model, case.net, case.example, case.device)
    alone = np.array([isolated.milliseconds(widths) for widths in plans[: case.options.isolated]])
    macs = np.array([case.net.macs(widths) for widths in plans], dtype=float)
    errors = np.abs(said / delivered - 1)
    return {
        "plans": len(errors),
        "median_error": float(np.median(errors)),
        "within_5_percent": float(np.mean(errors <= 0.05)),
        "within_10_percent": float(np.mean(errors <= 0.10)),
        "worst_error": float(errors.max()),
        "rank_correlation": _rank(said, delivered),
        **_rival("isolated", alone, delivered[: len(alone)]),
        **_rival("macs", macs, delivered),
        "isolated_over_whole": float(np.median(alone / delivered[: len(alone)])) if len(alone) else None,
        "floor": floor(case, plans[:FLOOR_PLANS]),
        **took,
    }


def _rank(said: np.ndarray, delivered: np.ndarray) -> float:
    return float(stats.spearmanr(said, delivered).statistic)


def _rival(name: str, said: np.ndarray, delivered: np.ndarray) -> dict[str, float | None]:
    """Error after the best single scale, and rank correlation; None of fewer than three plans."""
    if len(said) < 3:
        return {f"{name}_median_error": None, f"{name}_rank_correlation": None}
    scaled = said * float(np.median(delivered / said))
    error = float(np.median(np.abs(scaled / delivered - 1)))
    return {f"{name}_median_error": error, f"{name}_rank_correlation": _rank(said, delivered)}


def floor(case: Case, plans: list[dict[str, int]]) -> float:
    """Median difference, as a share, of the same narrow networks compiled and timed twice."""
    modules = {
        f"{number} {time}": network.narrow(case.model, case.net, first_channels(case.net, widths))
        for number, widths in enumerate(plans)
        for time in ("once", "again")
    }
    times = measure(modules, case.example, case.device, rounds=ROUNDS)
    ratios = [times[f"{n} once"].median_ms / times[f"{n} again"].median_ms for n in range(len(plans))]
    return float(np.median(np.abs(np.array(ratios) - 1)))


def twice(case: Case) -> dict[str, Any]:
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


def burnt(case: Case) -> dict[str, Any]:
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


KINDS: dict[str, Callable[[Case], dict[str, Any]]] = {"prediction": predicted, "twice": twice, "burn": burnt}


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    start = f"{row['network']:<16} {row['runtime']:<12} {row['precision']:<5} "
    if row["kind"] == "twice":
        parts = [f"{p} % {row[f'difference_p{p}']:.1%}" for p in (50, 75, 90, 95)]
        return (
            f"{start}made twice, {row['rows']} rows differ by: {'  '.join(parts)}  slowest quarter "
            f"{row['difference_of_the_slowest_quarter_p50']:.1%}  predictions {row['prediction_difference_p50']:.1%}"
        )
    errors = f"median {row['median_error']:6.1%}  ≤5 % {row['within_5_percent']:4.0%}  "
    errors += f"≤10 % {row['within_10_percent']:4.0%}"
    if row["kind"] == "burn":
        warned = "warned" if row["warned"] else "did not warn"
        return f"{start}while a core burnt: {errors}  contention {row['contention']:.0%}, {warned}"
    rivals = "".join(
        f"  {name} {row[f'{key}_median_error']:.1%} rank {row[f'{key}_rank_correlation']:.3f}"
        for name, key in (("isolated", "isolated"), ("MACs", "macs"))
        if row.get(f"{key}_median_error") is not None
    )
    if row.get("isolated_over_whole") is not None:
        rivals += f"  isolated/whole {row['isolated_over_whole']:.2f}"
    took = ""
    if row.get("table_seconds") is not None:
        took = f"  table {row['table_seconds']:.0f} s, {row['timing_share']:.0%} of it timing"
    return (
        f"{start}{errors}  worst {row['worst_error']:6.1%}  rank {row['rank_correlation']:.3f}{rivals}"
        f"  floor {row['floor']:5.1%}{took}"
    )


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
        "--isolated", type=int, default=6, help="plans to time layer by layer, 0 for none (default: 6)"
    )
    options.add_argument("--configurations", type=int, default=32, help="networks to profile (default: 32)")
    options.add_argument("--twice", action="store_true", help="also make the whole table twice, in two stores")
    options.add_argument("--burn", action="store_true", help="also make it while a second process burns one core")
    options.add_argument(
        "--profiles", type=Path, default=Path("bench/profiles"), help="the store (default: %(default)s)"
    )
    options.add_argument("--out", type=Path, default=Path("bench/prediction.jsonl"), help="rows as JSON lines; resumes")
    return options


def usable() -> list[tuple[str, str]]:
    """Every runtime and precision that this machine has."""
    there = [runtime for runtime in RUNTIMES.values() if runtime.missing() is None]
    return sorted((r.name, precision) for r in there for precision in r.precisions if r.supports(precision))


def main(argv: list[str] | None = None) -> int:
    """Measure what --out lacks, and print a line per network, runtime and question."""
    options = parser().parse_args(argv)
    use_huge_pages()
    asked = [tuple((each + ":fp32").split(":")[:2]) for each in options.runtime or ()]
    kinds = ["prediction", *(["twice"] if options.twice else []), *(["burn"] if options.burn else [])]
    rows = [json.loads(text) for text in options.out.read_text().splitlines()] if options.out.exists() else []
    named = ("network", "runtime", "precision", "kind")
    done = {tuple(row[field] for field in named): row for row in ({"kind": "prediction"} | row for row in rows)}
    for name in options.only or NETWORKS:
        for runtime, precision in asked or usable():
            device, case = here(runtime, precision, options.threads), None
            about = {"threads": device.threads, "version": device.version}
            for kind in kinds:
                key = (name, runtime, precision, kind)
                if key not in done:
                    case = case or built(name, device, options)
                    done[key] = dict(zip(named, key, strict=True)) | about | KINDS[kind](case)
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    with options.out.open("a") as file:
                        file.write(json.dumps(done[key]) + "\n")
                print(line(done[key]), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
