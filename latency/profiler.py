"""Fill a latency table: whole networks at designed widths, timed in turn, every operation read in context."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import qmc
from torch import nn
from tqdm import tqdm

from latency.device import Device, this_machine
from latency.measurement import FILL_MS, Clock, Measurement, Samples, interleave, without_drift
from latency.runtimes import UNOWNED, Compiled, get_runtime
from latency.runtimes.torch_eager import usual_threads
from latency.store import Store
from latency.table import BARE, FULL, THIN, bare, device_table, fingerprint, spec_text
from network import Keep, Network, flush_denormals, narrow
from network.errors import DeviceError, InputError, NarrowgaugeError
from network.types import Layer

__all__ = ["BATCH", "anchors", "compile_at", "design", "every_width", "first_channels", "measure", "profile", "waiting"]

BATCH = 4
"""Configurations timed in turn in one batch; a batch is written when it is finished."""

USUAL, MOST = 32, 128
"""Configurations where nobody says how many; and where an error is given, which then says when there are enough."""

FEW = 4
"""So many at the most where other networks have filled all of the table."""

ENOUGH, SLACK = 12, 1.25
"""A layer specification needs no new rows where it has so many, of widths up to this factor from its own."""

LEAST = 8
"""Before there are so many configurations, what they say of one another is no reason to stop."""

REASON = 300
"""Characters of what a runtime says of a network that it cannot run, which may be pages."""

ALIGNMENTS = (16, 1, 8, 32)
"""Designed widths are rounded to these in turn, so that both the steps and what lies between are sampled."""


THINNED = 0.35
"""Of every width: few random configurations are quicker."""


def design(net: Network, count: int, *, seed: int = 0) -> list[dict[str, int]]:
    """`count` width configurations that fill the space of all groups: scrambled Sobol points (Owen, 1998), rounded.

    The first is the full network. Equal arguments give equal designs, and a longer design begins with the shorter.
    """
    if count < 1 or not net.groups:
        return [net.widths][:count]
    with np.errstate(all="ignore"):
        sobol = qmc.Sobol(len(net.groups), scramble=True, rng=np.random.default_rng(seed))
        points = sobol.random(2 ** int(np.ceil(np.log2(max(count, 2)))))
    configurations = [net.widths]
    for number, point in enumerate(points[: count - 1]):
        align = ALIGNMENTS[number % len(ALIGNMENTS)]
        configurations.append(
            {group.name: _rounded(u, group.width, align) for group, u in zip(net.groups, point, strict=True)}
        )
    return configurations


def anchors(net: Network) -> dict[int, dict[str, int]]:
    """The configurations that are timed with every batch, by number: the full network and one that is quick."""
    thin = {group.name: _rounded(THINNED, group.width, ALIGNMENTS[0]) for group in net.groups}
    return {FULL: net.widths} | ({THIN: thin} if thin != net.widths else {})


def _rounded(u: float, width: int, align: int) -> int:
    """A width in [1, width] at share u, a multiple of `align` where the group is wide enough."""
    wanted = max(1.0, (0.06 + 0.94 * u) * width)
    unit = align if width >= 2 * align else 1
    return int(min(width, max(1, round(wanted / unit) * unit)))


EXHAUSTIVE = 10**6
"""Configurations of `every_width` are numbered from here, so that they never meet those of `design`."""


def every_width(net: Network, layer: Layer) -> dict[int, dict[str, int]]:
    """Every width of the group that a layer makes (else of the one it reads), the others full, by configuration number.

    Raises InputError if both are fixed.
    """
    names = layer.c_out.groups or layer.c_in.groups
    if not names:
        raise InputError(f"the channels of {layer.name} are fixed; name another layer for --exhaustive")
    number = [group.name for group in net.groups].index(names[0])
    group = net.groups[number]
    widths = range(1, group.width + 1)
    return {EXHAUSTIVE * (number + 1) + width: net.widths | {group.name: width} for width in widths}


def first_channels(net: Network, widths: Mapping[str, int]) -> Keep:
    """Keep the first channels of each group: which ones does not matter to time."""
    return {name: range(width) for name, width in widths.items() if width < net.group(name).width}


def compile_at(
    widths: Mapping[str, int],
    model: nn.Module,
    net: Network,
    example: tuple[torch.Tensor, ...],
    device: Device,
    like: Compiled | None = None,
) -> Compiled:
    """The network at these widths, ready in the device's runtime on this machine; like: the same at other widths."""
    thin = flush_denormals(narrow(model, net, first_channels(net, widths)))  # time is to be a matter of widths
    return _compiled(thin, example, device, like)


def _compiled(
    module: nn.Module, example: tuple[torch.Tensor, ...], device: Device, like: Compiled | None = None
) -> Compiled:
    """The module, ready in the device's runtime. Raises DeviceError where that cannot run it."""
    runtime = get_runtime(device.runtime, device.precision)
    try:
        made = runtime.compile(module, example, precision=device.precision, threads=device.threads, like=like)
        if like is None:
            made.run()  # eager torch knows an operation, or does not, no earlier
        return made
    except (NarrowgaugeError, AssertionError):
        raise
    except Exception as error:  # whatever a runtime says of an operation that it does not know
        raise DeviceError(
            f"runtime {device.runtime} cannot run this network: {_reason(error)}; choose another --runtime"
        ) from error


def _reason(error: BaseException) -> str:
    """What the first of a chain of errors said, in one line, as far as it fits."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return said if len(said) <= REASON else f"{said[:REASON]}…"


def waiting(device: Device) -> int:
    """The threads whose cores a pass waits for: of an accelerator's runtime the one that launches."""
    return 1 if get_runtime(device.runtime, device.precision).accelerator else device.threads


@usual_threads()
def measure(
    modules: Mapping[str, nn.Module],
    example: tuple[torch.Tensor, ...],
    device: Device,
    *,
    rounds: int = 15,
    clock: Clock | None = None,
) -> dict[str, Measurement]:
    """Whole-network latency of several modules, interleaved, in the device's runtime on this machine.

    What slowed or sped all of them alike in one round is divided out (`latency.measurement:without_drift`), so that
    their ratio is known better than any of them.
    """
    compiled = {name: _compiled(module, example, device) for name, module in modules.items()}
    samples = interleave(
        {name: each.run for name, each in compiled.items()},
        rounds=rounds,
        threads=waiting(device),
        fill_ms=FILL_MS,
        clock=clock,
    )
    return {name: each.measurement() for name, each in without_drift(samples).items()}


@usual_threads()
def profile(
    model: nn.Module,
    net: Network,
    example: tuple[torch.Tensor, ...],
    device: Device,
    profiles: Path,
    *,
    configurations: int | None = None,
    exhaustive: Layer | None = None,
    rounds: int = 5,
    minutes: float | None = None,
    error: float | None = None,
    clock: Clock | None = None,
    progress: bool = True,
) -> int:
    """Measure what the store lacks of this network on this device; returns the configurations that were measured.

    Every batch of configurations is stored as it is finished: a killed run goes on where it stopped. The full network
    and a thin one are timed with each of them, which tells later how fast the machine was then
    (`latency.table:steadied`); once the network without any group that may go, which says what such groups leave.
    Without `configurations` there are USUAL, or MOST with an `error`; and without both only FEW, for the overhead,
    where other networks have filled all of this one's layers. `exhaustive` adds every width of that layer. It ends
    early after `minutes`, or when 95 % of this network's configurations are predicted from the others within `error`
    (a share). Raises DeviceError where the runtime cannot run the network.
    """
    store = Store(profiles)
    runtime = get_runtime(device.runtime, device.precision)
    machine = this_machine(runtime.accelerator)
    key = fingerprint(net)
    stored = store.device_rows(device)
    done = set(stored.configuration[(stored.kind == "network") & (stored.spec == key)])
    if configurations is None and error is None:
        elsewhere = stored[(stored.kind == "layer") & (stored.network != key)]
        configurations = FEW if _filled(net, elsewhere) else USUAL
    configurations = configurations or MOST
    designed = ({BARE: bare(net)} if bare(net) else {}) | dict(enumerate(design(net, configurations)))
    designed |= every_width(net, exhaustive) if exhaustive else {}
    todo = [(n, widths) for n, widths in designed.items() if n not in done]
    if todo:
        store.check_writable()
    start, good = time.monotonic(), False
    measured = 0

    always = anchors(net)
    standing: dict[int, Compiled] = {}
    with tqdm(total=len(todo), desc=f"profiling {device.id}", unit="network", disable=not (progress and todo)) as bar:
        for batch in _batches(todo, BATCH):
            if error is not None and not good and len(done - {BARE}) >= LEAST:
                good = device_table(profiles, net, device).held_out_bound(net) <= error
            if good and batch[-1][0] < EXHAUSTIVE:
                continue
            timed = always | dict(batch)
            ready = dict(standing)
            for n in [n for n in timed if n not in ready]:
                ready[n] = compile_at(timed[n], model, net, example, device, like=standing.get(FULL))
                standing |= {n: ready[n]} if n in always else {}
            timed_in_turn = partial(interleave, rounds=rounds, threads=waiting(device), clock=clock)
            whole = without_drift(timed_in_turn({str(n): each.run for n, each in ready.items()}, fill_ms=FILL_MS))
            layers = timed_in_turn({str(n): each.counters for n, each in ready.items() if n != BARE}, keep=True)
            stamp = datetime.datetime.now(datetime.UTC).isoformat()
            rows = [
                row | {"network": key, "configuration": n, "measured_at": stamp}
                for n, widths in timed.items()
                for row in _rows(net, key, widths, whole[str(n)].measurement(), layers.get(str(n)))
            ]
            store.append(machine, device, rows)
            done |= {n for n, _ in batch}
            measured += len(batch)
            bar.update(len(batch))
            if minutes is not None and time.monotonic() - start > 60 * minutes:
                break
    return measured


def _filled(net: Network, layers: pd.DataFrame) -> bool:
    """Whether these rows of other networks have enough samples of every layer, about its full and its thin widths."""
    once = layers.drop_duplicates(["network", "configuration", "spec", "c_in", "c_out"])  # the full one is in all
    known = {str(spec): part for spec, part in once.groupby("spec")}

    def within(layer: Layer, widths: Mapping[str, int]) -> bool:
        part = known.get(spec_text(layer.spec), once[:0])
        met = ((part.c_in, layer.c_in.at(widths)), (part.c_out, layer.c_out.at(widths)))
        return len(part) >= ENOUGH and all(c.min() / SLACK <= wanted <= c.max() * SLACK for c, wanted in met)

    return all(within(layer, widths) for layer in net.layers for widths in anchors(net).values())


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[k : k + size] for k in range(0, len(items), size))


def _rows(
    net: Network, key: str, widths: Mapping[str, int], whole: Measurement, counted: Samples | None
) -> Iterator[dict[str, Any]]:
    """The rows of one configuration: one per layer, zero where the runtime fused it away, and one for the whole.

    Where nothing was counted, of the whole alone, as if layers were all of it.
    """
    layers = [] if counted is None else _layer_rows(net, widths, whole.median_ms, counted)
    yield from layers
    yield {
        "kind": "network",
        "spec": key,
        "c_in": 0,
        "c_out": 0,
        "ms": whole.median_ms,
        "iqr_ms": whole.iqr_ms,
        "n": whole.n,
        "contention": whole.contention,
        "layers_ms": sum(row["ms"] for row in layers) if layers else whole.median_ms,
    }


def _layer_rows(net: Network, widths: Mapping[str, int], whole_ms: float, counted: Samples) -> list[dict[str, Any]]:
    """One row per layer, zero where the runtime fused it away.

    A layer's time is its share of the pass that its counters were read in, times the whole network's: how fast the
    machine was in that pass cancels. Raises RuntimeError where no layer owns any of it.
    """
    passes = [counted.results[k] for k in counted.clean]
    totals = [sum(counters.values()) or 1.0 for counters in passes]
    contention = float(np.mean(counted.contention))
    rows = []
    for layer in net.layers:
        shares = [counters.get(layer.name, 0.0) / total for counters, total in zip(passes, totals, strict=True)]
        low, median, high = np.percentile(shares, [25, 50, 75]) * whole_ms
        rows.append(
            {
                "kind": "layer",
                "spec": spec_text(layer.spec),
                "c_in": layer.c_in.at(widths),
                "c_out": layer.c_out.at(widths),
                "ms": float(median),
                "iqr_ms": float(high - low),
                "n": len(passes),
                "contention": contention,
                "layers_ms": None,
            }
        )
    if not any(row["ms"] for row in rows):
        reported = sorted(set().union(*passes) - {UNOWNED})
        raise RuntimeError(f"no counter matched a layer of the network; the runtime reported {reported[:5]}")
    return rows
