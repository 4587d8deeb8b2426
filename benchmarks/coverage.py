"""Which networks are traced, coupled and narrowed exactly, and how much of each can be pruned.

    python -m benchmarks.coverage --out coverage.jsonl                # everything; resumes
    python -m benchmarks.coverage --family generators
    python -m benchmarks.coverage --one torchvision:resnet50

Each network runs in a process of its own: float64, random weights (public ones for some generators), batch norms
calibrated on noise, random channels of every group at once, three seeds. Exact: the user's own forward of the narrow
network differs from the dense network with the same channels silenced by at most 1e-10, relative. Where Torch-Pruning
is installed, it cuts the same networks beside ours and is held to the same rule (benchmarks/peers.py).
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
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import network
from benchmarks import generators
from benchmarks.checks import calibrated, random_keep, worst_difference
from benchmarks.data import data_folder
from benchmarks.networks import cartoongan, declare_torchvision_operators, pix2pix, resnet56
from benchmarks.peers import EXACT, torch_pruning_row
from benchmarks.rows import add_rows, read_rows
from network import tracing, trial
from network.__main__ import prunable_share
from network.command_line import run
from network.errors import NarrowgaugeError
from network.types import Network

__all__ = ["FAMILIES", "checked", "main"]

SEEDS = 3
MOST_PARAMETERS = 130e6  # of a timm network
TIMM_COUNT = 150
OURS, PEER = "narrowgauge", "torch-pruning"
TIMEOUT_S = {OURS: 1800, PEER: 300}

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
    """Every classifier, semantic segmentation network and video network, and the backbone of every detector."""
    models = _torchvision_models()
    kinds = (models, models.segmentation, models.video, models.detection)
    return [name for kind in kinds for name in models.list_models(module=kind)]


def _torchvision_models() -> Any:
    declare_torchvision_operators()
    import torchvision

    return torchvision.models


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
    if family == "timm":
        declare_torchvision_operators()
        import timm

        model = timm.create_model(name)
        return model, ((1, *model.pretrained_cfg.get("input_size", (3, 224, 224))),)
    return _torchvision_network(name)


def _torchvision_network(name: str) -> tuple[nn.Module, tuple[tuple[int, ...], ...]]:
    models = _torchvision_models()
    detector = name in models.list_models(module=models.detection)
    whole = detector or name in models.list_models(module=models.segmentation)
    arguments = {"weights_backbone": None} if whole else {}
    if name in ("googlenet", "inception_v3"):
        arguments = {"init_weights": False}
    model = models.get_model(name, weights=None, **arguments)
    if name in models.list_models(module=models.video):
        return model, ((1, 3, 16, 224, 224) if name.startswith(("mvit", "s3d")) else (1, 3, 16, 112, 112),)
    side = {"inception_v3": 299, "ssd300_vgg16": 300}.get(name, 224)
    return model.backbone if detector else model, ((1, 3, side, side),)


# ---- one network -----------------------------------------------------------------------------------------------
def checked(family: str, name: str, by: str = OURS) -> dict[str, Any]:
    """What became of one network: `outcome` is exact, soft, wrong, refused, failed or not run, with the reason."""
    try:
        model, inputs = ready(family, name)
    except Exception as error:
        return {"outcome": "not run", "reason": f"its own forward: {type(error).__name__}: {error}"[:200]}
    return {"parameters": sum(p.numel() for p in model.parameters())} | CHECKS[by](model, inputs)


def checked_by_us(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """How it was traced, how much of it is prunable, and how its narrow networks compare, for each seed."""
    try:
        net, times = timed_trace(model, inputs)
    except NarrowgaugeError as error:
        return {"outcome": "refused", "reason": str(error)[:300]}
    row = {"groups": len(net.groups), "prunable": prunable_share(net), "free": free_share(net)}
    row["frozen"] = dict(Counter(reason for frozen in net.frozen for reason in frozen.reasons))
    return row | times | held_against_mask(model, net, inputs)


def ready(family: str, name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network in float64 and eval mode, its norms calibrated, with inputs; its own forward has run."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    model, shapes = built(family, name)
    trained = family == "generators" and GENERATORS[name][2]
    model = model.double().eval() if trained else calibrated(model.double(), *shapes)
    inputs = tuple(x.double() for x in network.example_inputs(shapes))
    with torch.no_grad():
        model(*inputs)
    return model, inputs


def timed_trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Network, dict[str, float]]:
    """The traced network, with the seconds that its export took, those that were ours, and those of them that went into
    a second export, which checks views that could be legal and wrong."""
    network.trace(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), (torch.zeros(1, 2),))  # loads what export needs
    spent = []

    def export(*args: Any) -> Any:
        start = time.perf_counter()
        program = original(*args)
        spent.append(time.perf_counter() - start)
        return program

    original = tracing.export
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with mock.patch.object(tracing, "export", export), mock.patch.object(trial, "export", export):
        start = time.perf_counter()
        net = network.trace(model, inputs)
        seconds = time.perf_counter() - start
    rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    times = {"export_s": spent[0], "analysis_s": seconds - spent[0], "again_s": sum(spent[1:])}
    return net, times | {"trace_mib": rise / 1024}


def held_against_mask(model: nn.Module, net: Network, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """The narrow network's own forward beside the silenced dense one's, for each seed."""
    errors, narrow_s = [], []
    for seed in range(SEEDS):
        keep = random_keep(net, seed)
        start = time.perf_counter()
        thin = network.narrow(model, net, keep)
        narrow_s.append(time.perf_counter() - start)
        with torch.no_grad():
            found = thin(*inputs)
            del thin
            errors.append(worst_difference(found, network.mask(model, net, keep)(*inputs)))
    soft = any(group.soft for group in net.groups)
    outcome = "exact" if max(errors) <= EXACT else "soft" if soft else "wrong"
    return {"outcome": outcome, "error": max(errors), "narrow_s": min(narrow_s), "soft": soft}


def free_share(net: Network) -> float:
    """The share of the weighted layers' output channels that some group cuts; layers that make the output apart.

    A group of one channel cuts none.
    """
    bound = {each.name for each in net.frozen if set(each.reasons) <= {"the network's output"}}
    layers = [layer for layer in net.layers if layer.weight and layer.module not in bound]
    kept = {group.name: 0 if group.width > 1 else 1 for group in net.groups}
    return 1 - sum(layer.c_out.at(kept) for layer in layers) / sum(layer.c_out.at(net.widths) for layer in layers)


def checked_by_peer(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """The same of Torch-Pruning: the first seed that is not exact, or the last."""
    row: dict[str, Any] = {}
    for seed in range(SEEDS):
        row = torch_pruning_row(model, inputs, seed)
        if row["outcome"] != "exact":
            break
    return row


CHECKS = {OURS: checked_by_us, PEER: checked_by_peer}


# ---- all of them -----------------------------------------------------------------------------------------------
def in_a_process(by: str, family: str, name: str) -> dict[str, Any]:
    """One row from a process of its own: its memory, crash or endless loop is not another's."""
    command = [sys.executable, "-m", "benchmarks.coverage", "--by", by, "--one", f"{family}:{name}"]
    start = time.perf_counter()
    row: dict[str, Any] = {"by": by, "family": family, "network": name}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S[by], check=False)
        found = json.loads(done.stdout) if done.returncode == 0 else None
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        found, why = None, f"no answer within {TIMEOUT_S[by]} s"
    return row | (found or {"outcome": "crashed", "reason": why[:300]}) | {"seconds": time.perf_counter() - start}


def summary(rows: list[dict[str, Any]]) -> str:
    """Totals per family and by whom, then every network that we do not narrow exactly."""
    lines = []
    for family, by in dict.fromkeys((row["family"], row["by"]) for row in rows):
        mine = [row for row in rows if (row["family"], row["by"]) == (family, by) and row["outcome"] != "not run"]
        counts = Counter(row["outcome"] for row in mine)
        lines.append(f"{family}, {by}: {', '.join(f'{n} {kind}' for kind, n in counts.items())} of {len(mine)}")
        lines += [f"  {text}" for text in _figures([row for row in mine if "prunable" in row])]
    lines += [
        f"  {row['family']}:{row['network']} {row['outcome']}: {row.get('reason') or format(row['error'], '.1e')}"
        for row in rows
        if row["outcome"] != "exact" and row["by"] == OURS
    ]
    return "\n".join(lines)


def _figures(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    found = {
        key: np.array([row[key] for row in rows]) for key in ("prunable", "free", "export_s", "analysis_s", "again_s")
    }
    own = found["analysis_s"] - found["again_s"]
    whole, most = ((found["free"] >= share).mean() for share in (1 - 1e-12, 0.9))
    return [
        f"parameters in prunable groups: {_spread(found['prunable'], '.1%')}",
        f"output channels free: {_spread(found['free'], '.1%')}; all of them in {whole:.0%} of the networks, nine "
        f"tenths in {most:.0%}",
        f"export, seconds: {_spread(found['export_s'], '.2f')}",
        f"analysis, seconds: {_spread(found['analysis_s'], '.2f')}; longer than the export in "
        f"{(found['analysis_s'] > found['export_s']).sum()} of {len(rows)}, without a second export in "
        f"{(own > found['export_s']).sum()}",
    ]


def _spread(values: np.ndarray, form: str) -> str:
    return f"median {np.median(values):{form}}, least {values.min():{form}}, most {values.max():{form}}"


def main(argv: list[str] | None = None) -> int:
    """Check every network that has no row yet, ours first, and print the totals."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", action="append", choices=FAMILIES, help="may be repeated (default: all)")
    parser.add_argument("--by", action="append", choices=CHECKS, help="may be repeated (default: both)")
    parser.add_argument("--one", metavar="FAMILY:NAME", help="check one network here and print its row")
    parser.add_argument("--out", type=Path, default=Path("coverage.jsonl"), help="rows, one JSON object a line")
    options = parser.parse_args(argv)
    by = options.by or [OURS, *([PEER] if find_spec("torch_pruning") else [])]
    if options.one:
        row = checked(*options.one.split(":", 1), by=by[0])
        print(json.dumps(row | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return 0
    rows = read_rows(options.out)
    known = {(row["by"], row["family"], row["network"]) for row in rows}
    networks = [(family, name) for family in options.family or FAMILIES for name in FAMILIES[family]()]
    wanted = [(who, family, name) for who in by for family, name in networks]
    for each in tqdm([each for each in wanted if each not in known], unit="network"):
        rows.append(in_a_process(*each))
        add_rows(options.out, rows[-1:])
    print(summary([row for row in rows if (row["by"], row["family"], row["network"]) in set(wanted)]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
