"""Quality at equal delivered milliseconds, data, steps and seed: ours beside what a user would pick today.

    python -m benchmarks.quality --out bench/quality                       # every row; resumes
    python -m benchmarks.quality --only cartoongan --runtime openvino --steps 300
    python -m benchmarks.quality --only resnet56 --method ours --method uniform
    python -m benchmarks.quality --only johnson --runtime openvino:int8    # quantised, then compressed

Ours is `apply-plan`: condense, cut, repair, teach. The others (benchmarks/cuts.py) are cut until they are as fast as
ours, timed in turn; then their norms are recalibrated, and they learn from the original by the same loss for the same
steps; so does the uncut network, which says what of the quality is the training's own. Every row is one JSON line with
the held-out quality, its bootstrap intervals, steps and seconds; at the end stands how fast ours is where it is as good
as the best of the others.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import network
from benchmarks.cuts import CUTTERS, matched
from benchmarks.data import PHOTOS, CifarTask, data_folder, loaded, photos, profiled
from benchmarks.faces import SHAPE as FACE
from benchmarks.faces import WEIGHTS, face_unet, faces, trained
from benchmarks.generators import DnCNN, Imdn, Johnson, ZeroDce, of_modules
from benchmarks.networks import cartoongan, efficientnet_lite0, resnet56
from benchmarks.quality_report import UNCUT, at_equal_quality, line, plot
from benchmarks.quantising import quantised
from benchmarks.rows import add_rows, read_rows
from compress import apply_plan, load
from compress.batches import image_format
from compress.ledger import Ledger, identity
from compress.recipe import Recipe
from compress.school import School
from compress.tasks import Classification, Denoising, SuperResolution
from compress.tasks.restoration import Patches, Restoration
from latency import LatencyTable, here, measure
from network import Network
from network.command_line import run
from network.files import write_atomically
from search import Imitation, Plan, load_plan, search, weights_sha256
from search.importance import importance_of
from search.importance.data import minibatches
from search.task import Task

__all__ = ["CASES", "METHODS", "main"]

SETS = "set5_set12_set14_png.zip"
LOW_LIGHT = "dicm_lime_short256.zip"


# ---- what is compressed ------------------------------------------------------------------------------------------
class LabelFree(Imitation):
    """ImageNet photos of which the labels only judge."""

    def __init__(self, size: tuple[int, int, int]):
        path = data_folder() / "images" / PHOTOS
        super().__init__(network.open_images(path, size, "imagenet"), batch_size=16)
        classes = [f"{index:03d}" for index in range(1000)]
        self._judged = Classification(str(path), size, "imagenet", pattern=r"(\d+)_[^/]*$", classes=classes)
        self.train, self.heldout = self._judged.train, self._judged.heldout

    def metrics(self, output: Any, target: Any) -> Any:
        return self._judged.metrics(output, target)


def restoration(make: Callable[..., Restoration], judged_on: str, size: tuple[int, int, int], **options: Any) -> Task:
    """Patches of ImageNet photos teach, whole pictures of a classical set judge."""
    folder = data_folder() / "images"
    task = make(str(folder / PHOTOS), size, **options)
    judge = make(str(folder / SETS), size, whole=True, **options)
    names = sorted(name for part in (judge.train, judge.heldout) for name in part.names)
    task.heldout = Patches(judge, [name for name in names if name.startswith(judged_on)], whole=True)
    return task


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A network with its weights, the input that it is timed with, what it learns from, and by how much it speeds up.

    metric: what is compared first, of the report's quality. prepare: what makes the weights that are not public. plain:
    the same network in a form that peers can cut.
    """

    build: Callable[[], nn.Module]
    weights: str
    shape: tuple[int, ...]
    task: Callable[[], Task]
    metric: str
    speedups: tuple[float, ...] = (2.0, 4.0)
    heldout: int = 40
    prepare: Callable[[], Any] | None = None
    plain: Callable[[nn.Module], nn.Module] = copy.deepcopy

    def load(self) -> tuple[nn.Module, Network, tuple[Tensor, ...]]:
        """The network with its weights, traced, and its example inputs."""
        if self.prepare is not None:
            self.prepare()
        return loaded(self.build, self.weights, self.shape)


CASES = {
    "cartoongan": Case(
        cartoongan, "cartoongan_hayao_fp16.pth", (1, 3, 256, 256),
        lambda: photos((1, 3, 256, 256), "signed", bgr=True), "psnr_db",
    ),
    "johnson": Case(
        Johnson, "johnson_wave_fp16.pth", (1, 3, 256, 256),
        lambda: photos((1, 3, 256, 256), "byte"), "psnr_db", (1.5, 2.5),
        plain=of_modules,
    ),
    "imdn": Case(
        Imdn, "IMDN_x2.pth", (1, 3, 128, 128),
        lambda: restoration(SuperResolution, "Set5/", (3, 64, 64)), "y_psnr_db",
    ),
    "dncnn": Case(
        DnCNN, "DnCNN_gray25.pth", (1, 1, 256, 256),
        lambda: restoration(Denoising, "Set12_gray/", (1, 64, 64)), "true_psnr_db",
    ),
    "zero-dce": Case(
        ZeroDce, "ZeroDCE.pth", (1, 3, 256, 256),
        lambda: photos((1, 3, 256, 256), "unit", file=LOW_LIGHT, heldout=0.25), "psnr_db", heldout=16,
    ),
    "efficientnet-lite0": Case(
        efficientnet_lite0, "efficientnet_lite0_fp16.pth", (1, 3, 224, 224),
        lambda: LabelFree((3, 224, 224)), "agreement", (1.5, 2.5), heldout=200,
    ),
    "faces": Case(face_unet, str(WEIGHTS), FACE, faces, "psnr_db", prepare=trained),
    "resnet56": Case(
        resnet56, "resnet56.pth", (64, 3, 32, 32), CifarTask, "accuracy", (1.5, 2.5), heldout=10_000,
    ),
}  # fmt: skip

METHODS = ("ours", *CUTTERS, UNCUT)

OBSERVED = 8
"""Batches that say how far activations reach, where a network is to be quantised."""


# ---- one row -----------------------------------------------------------------------------------------------------
class Bench:
    """One network in one runtime at one speed-up: the plan, our result, and every rival's."""

    def __init__(self, name: str, runtime: str, speedup: float, options: argparse.Namespace):
        self.case, self.name, self.speedup, self.options = CASES[name], name, speedup, options
        self.runtime = runtime
        kind, _, precision = runtime.partition(":")
        self.device = here(kind, precision or "fp32")
        self.folder = options.out / f"{name}-{runtime.replace(':', '-')}-{speedup:g}x-{options.configurations}"
        self.made = self.folder / f"{options.steps}-steps-seed-{options.seed}"
        self.model, self.net, self.example = self.case.load()
        self.task = self.case.task()
        if precision == "int8":
            seen = [inputs for inputs, _ in minibatches(self.task, OBSERVED, options.seed)]
            self.model = quantised(self.case.plain(self.model), seen)
            self.net = network.trace(self.model, self.example)
        self.common: dict[str, Any] = {
            "seed": options.seed, "heldout": self.case.heldout, "autocast": "auto", "steps": options.steps,
        }  # fmt: skip

    def row(self, method: str) -> dict[str, Any]:
        """What one method comes to."""
        start = time.monotonic()
        found = self._ours() if method == "ours" else self._rival(method)
        facts = {"case": self.name, "runtime": self.device.runtime, "precision": self.device.precision}
        facts |= {"speedup": self.speedup, "method": method, "metric": self.case.metric}
        facts |= {"asked_with": asked_with(self.options)}
        return facts | found | {"wall_s": time.monotonic() - start}

    def _ours(self) -> dict[str, Any]:
        plan, table = self._plan(), self._table()
        made = apply_plan(plan, self.model, self.net, table, self.task, self.made / "ours", notify=say, **self.common)
        report = made.report
        last = report["stages"]["distilled"]
        return {
            "delivered_ms": report["delivered_ms"],
            "original_ms": report["baseline_ms"],
            "met": report["met"],
            "quality": report["quality"]["distilled"],
            "interval": report["interval"]["distilled"],
            "stages": report["quality"],
            "seconds": report["seconds"],
            "rate": last["curve"]["lr"],
            "of_the_way": last["share"],
        }

    def _rival(self, method: str) -> dict[str, Any]:
        ours = load(self.made / "ours", copy.deepcopy(self.model))
        whole = self.model if method in ("uniform", UNCUT) else self.case.plain(self.model)
        try:
            narrow, cut = self._cut(method, whole, ours)
        except Exception as error:  # whatever a peer meets is its outcome
            return {"failed": f"{type(error).__name__}: {error}"[:300]}
        times = measure({"original": self.model, "ours": ours, "peer": narrow}, self.example, self.device, rounds=15)
        recipe = Recipe(**self.common, condense="none", repair=False, teacher="original")
        shapes = [tuple(parameter.shape) for parameter in narrow.parameters()]  # the clock decides where the cut ends
        ledger = Ledger(self.made / method, identity(recipe.as_dict(), shapes), resume=False, notify=say)
        school = School(copy.deepcopy(self.model), self.net, self.task, recipe, ledger, say)
        narrow = narrow.to(memory_format=image_format())  # type: ignore[call-overload]
        after_cut = school.examiner.judge(narrow)
        school.settle(narrow)
        settled = school.examiner.judge(narrow)
        trained = school.distil(narrow, school.original, recipe.split()[1], {}, settled.error)
        verdict = school.examiner.judge(narrow, full=True)
        ledger.clear()
        return cut | {
            "delivered_ms": times["peer"].median_ms,
            "original_ms": times["original"].median_ms,
            "of_ours": times["peer"].median_ms / times["ours"].median_ms,
            "quality": verdict.quality,
            "interval": verdict.interval,
            "stages": {"pruned": after_cut.quality, "settled": settled.quality, "distilled": verdict.quality},
            "seconds": {"distilled": trained["curve"]["seconds"]},
            "rate": trained["curve"]["lr"],
            "of_the_way": trained["share"],
        }

    def _cut(self, method: str, whole: nn.Module, ours: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        """What a rival trains, and what was measured of its cut."""
        if method == UNCUT:
            return copy.deepcopy(whole), {}
        return matched(CUTTERS[method], whole, self.net, self.example, self.task, ours, self.device)

    def _plan(self) -> Plan:
        path = self.folder / "plan.json"
        if not path.exists():
            plan = search(self.model, self.net, self._table(), f"{1 / self.speedup:.6f}x", self._importance())
            path.parent.mkdir(parents=True, exist_ok=True)
            plan.save(path)
        return load_plan(path)

    def _importance(self) -> Mapping[str, Any]:
        """Measured once for all runtimes and speed-ups of the same weights, whose plans keep it."""
        weights = weights_sha256(self.model)
        for path in sorted(self.options.out.glob(f"{self.name}-*/plan.json")):
            known = load_plan(path)
            if known.model.weights_sha256 == weights:
                return known.importance
        return importance_of("sensitivity", self.model, self.net, self.task, progress=True)

    def _table(self) -> LatencyTable:
        return profiled(self.model, self.net, self.example, self.device, self.options)


def say(text: str) -> None:
    """To the terminal, and not among the rows."""
    print(text, file=sys.stderr, flush=True)


def asked_with(options: argparse.Namespace) -> dict[str, Any]:
    """What changes a row's answer beside its case; one that was made with anything else is made again."""
    return {name: getattr(options, name) for name in ("steps", "seed", "configurations")}


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, str, float, str]]:
    """(case, runtime, speed-up, method) of every row; ours comes first, as the others are matched to it."""
    methods = dict.fromkeys(["ours", *(options.method or METHODS)])
    for name in options.only or CASES:
        for runtime in options.runtime or ("openvino", "torch"):
            for speedup in options.speedup or CASES[name].speedups:
                for method in methods:
                    yield name, runtime, speedup, method


def main(argv: list[str] | None = None) -> int:
    """Make the rows that --out lacks, print a line for each, and what they say of speed at equal quality."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=CASES, help="a network; may be repeated (default: all)")
    parser.add_argument("--runtime", action="append", help="RUNTIME[:PRECISION] (default: openvino and torch)")
    parser.add_argument("--speedup", action="append", type=float, help="delivered, such as 2 (default: the network's)")
    parser.add_argument("--method", action="append", choices=METHODS, help="beside ours (default: all)")
    parser.add_argument("--steps", type=int, default=300, help="training steps for everyone (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--configurations", type=int, default=24, help="networks to profile (default: 24)")
    parser.add_argument(
        "--profiles", type=Path, default=Path("bench/profiles"), help="the store (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/quality"), help="a folder (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw quality over speed-up, as SVG")
    options = parser.parse_args(argv)
    path = options.out / "rows.jsonl"
    rows = [row for row in read_rows(path) if row.get("asked_with") == asked_with(options)]
    done = {(row["case"], f"{row['runtime']}:{row['precision']}", row["speedup"], row["method"]): row for row in rows}
    bench: Bench | None = None
    for name, runtime, speedup, method in wanted(options):
        key = (name, runtime if ":" in runtime else f"{runtime}:fp32", speedup, method)
        if key not in done:
            if bench is None or (bench.name, bench.runtime, bench.speedup) != (name, runtime, speedup):
                bench = Bench(name, runtime, speedup, options)
            done[key] = bench.row(method)
            add_rows(path, [done[key]])
        print(line(done[key]), flush=True)
    for said in at_equal_quality(done.values()):
        print(said, flush=True)
    if options.plot is not None:
        write_atomically(options.plot, plot(done.values()).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
