"""Fleets that nobody owns: profiles computed from a formula and marked synthetic, for the service's tests and loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from latency.device import Device, Machine
from latency.profiler import design
from latency.table import fingerprint, spec_text
from network.types import Group, Layer, LayerSpec, Member, Network, Width
from search.plan import ModelReference
from search.service.profiles import profile_of
from search.service.schemas import Profile
from search.service.traced import TracedNetwork, describe

__all__ = ["chain", "device", "importance", "machine", "profile", "reference", "rows_of", "traced"]

STAMP = "2026-11-22T00:00:00+00:00"
VECTOR = 8


def machine(number: int = 0) -> Machine:
    """A made-up machine; equal numbers make equal machines."""
    return Machine(f"Synthetic CPU {number}", 2, "x86_64 synthetic")


def device(number: int = 0, runtime: str = "torch") -> Device:
    """What runs there."""
    return Device(machine(number).id, runtime, "fp32", 2, "2.0")


def rows_of(net: Network, owner: Device, configurations: int = 12, seed: int = 0) -> pd.DataFrame:
    """Rows as `latency.profiler` would have measured them on a machine that computes whole vectors of channels."""
    random = np.random.default_rng(seed)
    speed, rows = random.uniform(0.5, 2.0), []
    common = {**owner.as_row(), "network": fingerprint(net), "n": 5, "contention": 0.0, "measured_at": STAMP}
    for number, widths in enumerate(design(net, configurations)):
        total = 0.0
        for layer in net.layers:
            counts = layer.c_in.at(widths), layer.c_out.at(widths)
            ms = speed * _milliseconds(*counts) * random.uniform(0.99, 1.01)
            total += ms
            rows.append(common | _row("layer", spec_text(layer.spec), counts, ms, None, number))
        whole = 0.1 * speed + 1.05 * total * random.uniform(0.99, 1.01)
        rows.append(common | _row("network", fingerprint(net), (0, 0), whole, total, number))
    return pd.DataFrame(rows)


def profile(net: Network, number: int = 0, seed: int | None = None) -> Profile:
    """What machine `number` would have measured in the network; seed: default its number."""
    rows = rows_of(net, device(number), seed=number if seed is None else seed)
    return profile_of(machine(number), device(number), fingerprint(net), rows, synthetic=True)


def traced(net: Network, seed: int = 0) -> TracedNetwork:
    """The network with a drawn importance, as it is pushed."""
    return describe(net, importance(net, seed), reference(net))


def importance(net: Network, seed: int = 0) -> dict[str, np.ndarray]:
    """Of every channel of every group."""
    random = np.random.default_rng(seed)
    return {group.name: random.gamma(0.5, size=group.width) for group in net.groups}


def reference(net: Network) -> ModelReference:
    """What would build the network, were there such a file."""
    return ModelReference("net.py:build", "{}", net.input_shapes)


def chain(name: str, widths: Sequence[int]) -> Network:
    """A network of 3x3 convolutions of these widths, the last of which stays whole; its layers are no other chain's."""
    layers, groups, parameters = [], [], {}
    ends = [Width(3), *(Width(0, ((f"{name}{at}", 1),)) for at in range(len(widths) - 1)), Width(widths[-1])]
    full = [3, *widths]
    for at in range(len(widths)):
        spec = LayerSpec("conv2d", (("kernel", "3x3"), ("of", name)), 1, (32, 32), (32, 32))
        inputs = (f"conv{at - 1}",) if at else ()
        weight = f"{at}.weight"
        layers.append(Layer(f"conv{at}", str(at), spec, ends[at], ends[at + 1], inputs, weight, 9.0 * 32 * 32))
        parameters[weight] = (full[at + 1], full[at], 3, 3)
    for at, width in enumerate(widths[:-1]):
        index = np.arange(width, dtype=np.int64)[:, None]
        members = (Member(f"{at}.weight", 0, index, "producer"), Member(f"{at + 1}.weight", 1, index, "consumer"))
        groups.append(Group(f"{name}{at}", width, members, (str(at),), (str(at + 1),)))
    shapes = ((1, 3, 32, 32),)
    return Network(tuple(layers), tuple(groups), (), (), parameters, shapes, frozenset(parameters))


def _milliseconds(c_in: int, c_out: int) -> float:
    return 0.01 + 0.004 * -(-c_in // VECTOR) * -(-c_out // VECTOR)


def _row(
    kind: str, spec: str, counts: tuple[int, int], ms: float, layers_ms: float | None, number: int
) -> dict[str, Any]:
    row = {"kind": kind, "spec": spec, "c_in": counts[0], "c_out": counts[1], "ms": ms, "iqr_ms": 0.02 * ms}
    return row | {"layers_ms": layers_ms, "configuration": number}
