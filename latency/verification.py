"""Predicted against measured: random plans that took no part in fitting, timed in turn with two that were profiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from latency.device import Device
from latency.measurement import FILL_MS, Clock, interleave, without_drift
from latency.profiler import BATCH, anchors, compile_at, design, waiting
from latency.runtimes.torch_eager import usual_threads
from latency.table import FULL, THIN, LatencyTable, bare, device_table, fingerprint, slowdown
from network import Network

__all__ = ["time_plans", "unseen", "verify"]

WHOLE, SLIM, AGAIN = "full", "thin", "again"


def unseen(net: Network, plans: int, *, seed: int = 1, gone: float = 0.0) -> list[dict[str, int]]:
    """Random plans that `profile` does not measure.

    gone: the largest share of the groups that may go which does; each plan's own is drawn between 0 and that.
    """
    chosen = design(net, plans + 1, seed=seed)[1:] or [net.widths] * plans
    drawn = np.random.default_rng(seed)
    for widths in chosen:
        share = gone * drawn.random()
        widths |= {name: 0 for name in bare(net) if drawn.random() < share}
    return chosen


def verify(
    model: nn.Module,
    net: Network,
    example: tuple[torch.Tensor, ...],
    device: Device,
    profiles: Path,
    plans: int,
    *,
    rounds: int = 9,
    seed: int = 1,
    clock: Clock | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Predicted against measured latency of random plans that took no part in fitting.

    Returns {"plans", "median_abs_error", "within_5_percent", "within_10_percent", "drift", "without_drift", "rows"},
    errors as shares. drift: how much slower the machine now was than when it was profiled, as a factor: `slowdown` by
    the full network and the thin one, which are timed with the plans; without_drift: the errors once every plan's own
    is divided out. Both None if the full one was not profiled.
    """
    table = device_table(profiles, net, device)
    chosen = unseen(net, plans, seed=seed)
    rows = time_plans(model, table, net, example, chosen, rounds=rounds, clock=clock, progress=progress)[0]
    drifts = [row["drift"] for row in rows if row["drift"] is not None]
    return {
        "plans": len(rows),
        **_errors(rows),
        "drift": float(np.median(drifts)) if drifts else None,
        "without_drift": _errors(rows, drifts) if drifts else None,
        "rows": rows,
    }


@usual_threads()
def time_plans(
    model: nn.Module,
    table: LatencyTable,
    net: Network,
    example: tuple[torch.Tensor, ...],
    plans: Sequence[Mapping[str, int]],
    *,
    rounds: int = 9,
    twins: bool = False,
    clock: Clock | None = None,
    progress: bool = True,
) -> tuple[list[dict[str, Any]], list[float]]:
    """Rows {"predicted_ms", "delivered_ms", "drift"} of these plans, on the table's device, which is this one.

    twins: also the noise floor, by what share the first plan of each batch differs when it is compiled and timed twice.
    """
    device = table.device
    ready = partial(compile_at, model=model, net=net, example=example, device=device)
    usual = _anchors_ms(table, net)
    full = ready({})
    ready = partial(ready, like=full)
    standing = {WHOLE: full} | ({SLIM: ready(anchors(net)[THIN])} if THIN in usual else {})
    rows: list[dict[str, Any]] = []
    floors: list[float] = []
    with tqdm(total=len(plans), desc=f"verifying {device.id}", unit="plan", disable=not progress) as bar:
        for start in range(0, len(plans), BATCH):
            batch = plans[start : start + BATCH]
            compiled = {str(number): ready(widths) for number, widths in enumerate(batch)} | standing
            compiled |= {AGAIN: ready(batch[0])} if twins else {}
            runs = {name: each.run for name, each in compiled.items()}
            samples = without_drift(
                interleave(runs, rounds=rounds, threads=waiting(device), fill_ms=FILL_MS, clock=clock)
            )
            ms = {name: each.measurement().median_ms for name, each in samples.items()}
            delivered = np.array([ms[str(number)] for number in range(len(batch))])
            now, before = (ms[WHOLE], ms.get(SLIM, np.nan)), (usual.get(FULL, np.nan), usual.get(THIN, np.nan))
            drifts = slowdown(delivered, now, before)
            rows += [
                {
                    "predicted_ms": table.predict_ms(net, widths),
                    "delivered_ms": float(ms_now),
                    "drift": float(drift) if FULL in usual else None,
                }
                for widths, ms_now, drift in zip(batch, delivered, drifts, strict=True)
            ]
            floors += [abs(ms[AGAIN] / ms["0"] - 1)] if twins else []
            bar.update(len(batch))
    return rows, floors


def _anchors_ms(table: LatencyTable, net: Network) -> dict[int, float]:
    """What the full network and the thin one usually took when they were profiled, where they were."""
    runs = table.rows[(table.rows.kind == "network") & (table.rows.spec == fingerprint(net))]
    times = {number: runs.ms[runs.configuration == number] for number in (FULL, THIN)}
    return {number: float(ms.median()) for number, ms in times.items() if len(ms)}


def _errors(rows: Sequence[Mapping[str, Any]], drifts: Sequence[float] = ()) -> dict[str, float]:
    said, delivered = (np.array([row[key] for row in rows]) for key in ("predicted_ms", "delivered_ms"))
    errors = np.abs(said * (np.array(drifts) if drifts else 1.0) / delivered - 1)
    return {
        "median_abs_error": float(np.median(errors)),
        "within_5_percent": float(np.mean(errors <= 0.05)),
        "within_10_percent": float(np.mean(errors <= 0.10)),
    }
