"""Which networks are traced, coupled and narrowed exactly, and how much of each can be pruned.

    python -m benchmarks.coverage --out coverage.jsonl                # everything; resumes
    python -m benchmarks.coverage --family generators
    python -m benchmarks.coverage --one torchvision:resnet50

Each network runs in a process of its own: float64, random weights (public ones for some generators), batch norms
calibrated on noise, random channels of every group at once, three seeds. Exact: the user's own forward of the narrow
network differs from the dense network with the same channels silenced by at most 1e-10, relative.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm import tqdm

import network
from benchmarks import generators
from benchmarks.checks import calibrated, random_keep, relative_difference
from benchmarks.data import data_folder
from benchmarks.networks import cartoongan, declare_torchvision_operators, pix2pix, resnet56
from network.__main__ import prunable_share
from network.errors import NarrowgaugeError

__all__ = ["FAMILIES", "checked", "main"]

EXACT = 1e-10
SEEDS = 3
MOST_PARAMETERS = 130e6
TIMEOUT_S = 600
TIMM_COUNT = 150

GENERATORS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...], str]] = {
    "cartoongan": (cartoongan, ((1, 3, 64, 64),), "cartoongan_hayao_fp16.pth"),
    "johnson": (generators.Johnson, ((1, 3, 64, 64),), "johnson_wave_fp16.pth"),
    "imdn": (generators.Imdn, ((1, 3, 32, 32),), "IMDN_x2.pth"),
    "zero-dce": (generators.ZeroDce, ((1, 3, 64, 64),), "ZeroDCE.pth"),
    "dncnn": (generators.DnCNN, ((1, 1, 64, 64),), "DnCNN_gray25.pth"),
    "resnet56": (resnet56, ((1, 3, 32, 32),), "resnet56.pth"),
    "pix2pix": (pix2pix, ((1, 3, 256, 256),), ""),
    "cyclegan": (generators.ResnetGenerator, ((1, 3, 64, 64),), ""),
    "spade": (generators.Spade, ((1, 6, 64, 64),), ""),
    "self-attention": (generators.SelfAttentionGenerator, ((1, 16, 16, 16),), ""),
    "adain": (generators.AdaIN, ((1, 3, 32, 32), (1, 3, 32, 32)), ""),
}


# ---- the networks ----------------------------------------------------------------------------------------------
def torchvision_names() -> list[str]:
    """Every classifier and every semantic segmentation network."""
    declare_torchvision_operators()
    import torchvision

    models = torchvision.models
    return models.list_models(module=models) + models.list_models(module=models.segmentation)


def timm_names() -> list[str]:
    """TIMM_COUNT names drawn with seed 0 whose network is small enough; building on meta tells."""
    declare_torchvision_operators()
    import timm

    names = timm.list_models()
    random.Random(0).shuffle(names)
    chosen: list[str] = []
    for name in names:
        with torch.device("meta"):
            try:
                model = timm.create_model(name)
            except (RuntimeError, NotImplementedError, AssertionError, TypeError):
                continue  # cannot be built on meta
        small = model.pretrained_cfg.get("input_size", (3, 224, 224))[-1] <= 256
        if small and sum(p.numel() for p in model.parameters()) <= MOST_PARAMETERS:
            chosen.append(name)
        if len(chosen) == TIMM_COUNT:
            break
    return chosen


FAMILIES: dict[str, Callable[[], Iterable[str]]] = {
    "generators": lambda: GENERATORS,
    "torchvision": torchvision_names,
    "timm": timm_names,
}


def built(family: str, name: str) -> tuple[nn.Module, tuple[tuple[int, ...], ...]]:
    """The network with its input shapes; random weights from seed 0, public ones where there are any."""
    torch.manual_seed(0)
    if family == "generators":
        build, shapes, weights = GENERATORS[name]
        model = build()
        if weights:
            network.load_weights(model, data_folder() / "weights" / weights)
        return model, shapes
    declare_torchvision_operators()
    if family == "timm":
        import timm

        model = timm.create_model(name)
        return model, ((1, *model.pretrained_cfg.get("input_size", (3, 224, 224))),)
    import torchvision

    known = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    plain = {"weights_backbone": None} if name.split("_")[0] in ("fcn", "deeplabv3", "lraspp") else {}
    model = torchvision.models.get_model(name, weights=None, **known, **plain)
    return model, ((1, 3, 299, 299) if name == "inception_v3" else (1, 3, 224, 224),)


# ---- one network -----------------------------------------------------------------------------------------------
def checked(family: str, name: str) -> dict[str, Any]:
    """What became of one network: `outcome` is exact, soft, wrong, frozen, refused, or not run, with the reason."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    try:
        model, shapes = built(family, name)
        if sum(p.numel() for p in model.parameters()) > MOST_PARAMETERS:
            return {"outcome": "not run", "reason": f"more than {MOST_PARAMETERS:.0f} parameters"}
        trained = family == "generators" and GENERATORS[name][2]
        model = model.double().eval() if trained else calibrated(model.double(), *shapes)
        inputs = tuple(x.double() for x in network.example_inputs(shapes))
        with torch.no_grad():
            model(*inputs)
    except Exception as error:
        return {"outcome": "not run", "reason": f"its own forward: {type(error).__name__}: {error}"[:200]}
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    start = time.perf_counter()
    try:
        net = network.trace(model, inputs)
    except NarrowgaugeError as error:
        return row | {"outcome": "refused", "reason": str(error)[:300]}
    row |= {"trace_s": time.perf_counter() - start, "groups": len(net.groups), "prunable": prunable_share(net)}
    row["channels"] = sum(group.width for group in net.groups)
    row["frozen"] = sum(each.width for each in net.frozen)
    soft = any(group.soft for group in net.groups)
    worst, narrow_s = 0.0, []
    for seed in range(SEEDS):
        keep = random_keep(net, seed)
        start = time.perf_counter()
        thin = network.narrow(model, net, keep)
        narrow_s.append(time.perf_counter() - start)
        with torch.no_grad():
            found, expected = thin(*inputs), network.mask(model, net, keep)(*inputs)
        pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
        worst = max([worst, *(relative_difference(a, b) for a, b in pairs if isinstance(a, Tensor))])
    outcome = "exact" if worst <= EXACT else "soft" if soft else "wrong"
    return row | {"outcome": outcome, "error": worst, "narrow_s": min(narrow_s), "soft": soft}


# ---- all of them -----------------------------------------------------------------------------------------------
def in_a_process(family: str, name: str) -> dict[str, Any]:
    """`checked` in a process of its own, so that one network's memory or crash is not another's."""
    command = [sys.executable, "-m", "benchmarks.coverage", "--one", f"{family}:{name}"]
    start = time.perf_counter()
    row: dict[str, Any] = {"family": family, "network": name}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        found = json.loads(done.stdout) if done.returncode == 0 else None
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        found, why = None, f"no answer within {TIMEOUT_S} s"
    return row | (found or {"outcome": "crashed", "reason": why[:300]}) | {"seconds": time.perf_counter() - start}


def summary(rows: list[dict[str, Any]]) -> str:
    """Totals per family, then every network that is not exact."""
    lines = []
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [row for row in rows if row["family"] == family and row["outcome"] != "not run"]
        counts = {
            kind: sum(row["outcome"] == kind for row in mine) for kind in dict.fromkeys(r["outcome"] for r in mine)
        }
        shares = [row["prunable"] for row in mine if "prunable" in row]
        traces = [row["trace_s"] for row in mine if "trace_s" in row]
        lines.append(
            f"{family}: {', '.join(f'{count} {kind}' for kind, count in counts.items())} of {len(mine)}; "
            f"prunable parameters median {np.median(shares):.1%}, least {min(shares):.1%}; "
            f"trace median {np.median(traces):.1f} s, most {max(traces):.1f} s"
            if shares
            else f"{family}: {dict(counts)}"
        )
    lines += [
        f"  {row['family']}:{row['network']} {row['outcome']}: {row.get('reason') or format(row['error'], '.1e')}"
        for row in rows
        if row["outcome"] != "exact"
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Check every network that has no row yet, and print the totals."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", action="append", choices=FAMILIES, help="may be repeated (default: all)")
    parser.add_argument("--one", metavar="FAMILY:NAME", help="check one network here and print its row")
    parser.add_argument("--out", type=Path, default=Path("coverage.jsonl"), help="rows, one JSON object a line")
    options = parser.parse_args(argv)
    if options.one:
        family, name = options.one.split(":", 1)
        row = checked(family, name)
        print(json.dumps(row | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return 0
    rows = [json.loads(text) for text in options.out.read_text().splitlines()] if options.out.exists() else []
    known = {(row["family"], row["network"]) for row in rows}
    wanted = [(family, name) for family in options.family or FAMILIES for name in FAMILIES[family]()]
    for family, name in tqdm([each for each in wanted if each not in known], unit="network"):
        rows.append(in_a_process(family, name))
        with options.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    print(summary([row for row in rows if (row["family"], row["network"]) in set(wanted)]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
