"""The latency table: measured milliseconds of every layer of a network at every width, on one device."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import lsq_linear

from latency.borrowing import with_borrowed
from latency.device import Device, this_machine
from latency.stairs import Staircase, fit_staircase
from latency.store import Store
from network.errors import TableError
from network.types import LayerSpec, Network

__all__ = ["LatencyTable", "Overhead", "device_table", "fingerprint", "open_table", "spec_text", "table_of"]


SCALES = (0.5, 2.0)
"""What the layers' sum in context can be off by: counters cost time too, and a runtime overlaps some of it."""


def spec_text(spec: LayerSpec) -> str:
    """A layer's specification as canonical JSON, the key of its rows."""
    return json.dumps(asdict(spec), sort_keys=True, separators=(",", ":"))


def fingerprint(net: Network) -> str:
    """Equal for networks whose layers and widths are equal; weights play no part."""
    layers = [(spec_text(x.spec), x.c_in.fixed, x.c_in.terms, x.c_out.fixed, x.c_out.terms) for x in net.layers]
    return hashlib.sha256(repr((layers, sorted(net.widths.items()))).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Overhead:
    """What no layer owns: whole-network ms = fixed_ms + scale · Σ layer ms."""

    fixed_ms: float
    scale: float


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds by layer specification and widths on `device`. `fingerprint` changes with any row that is used.

    borrowed: the layer specifications that were never measured there and stand on the samples of others
    (`latency.borrowing`), each with the median relative error of so answering for measured layers of its operation.
    """

    device: Device
    fingerprint: str
    overhead: Overhead
    rows: pd.DataFrame = field(repr=False)
    borrowed: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def _samples(self) -> dict[str, pd.DataFrame]:
        layers = self.rows[self.rows.kind == "layer"]
        return {str(key): rows for key, rows in layers.groupby("spec", sort=False)}

    @cached_property
    def _models(self) -> dict[str, Staircase]:
        return {}

    def model(self, spec: LayerSpec) -> Staircase:
        """The fitted staircase of one layer specification. Raises TableError if it was never measured."""
        key = spec_text(spec)
        if key not in self._samples:
            raise TableError(
                f"the table of {self.device.id} has no row for a {spec.op} of spatial size {spec.spatial_in}; "
                f"run profile-device MODEL --input SHAPE with --runtime {self.device.runtime} "
                f"--precision {self.device.precision}"
            )
        return self._fitted(key)

    def _fitted(self, key: str) -> Staircase:
        if key not in self._models:
            rows = self._samples[key]
            self._models[key] = fit_staircase(rows.c_in.to_numpy(), rows.c_out.to_numpy(), rows.ms.to_numpy())
        return self._models[key]

    def milliseconds(self, spec: LayerSpec, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        """Layer time at these channel counts (broadcast together), in ms, before overhead. Raises TableError."""
        return self.model(spec).milliseconds(c_in, c_out)

    def layer_ms(self, net: Network, widths: Mapping[str, int]) -> dict[str, float]:
        """Every layer's share of the whole at these group widths, in ms, overhead's scale included."""
        widths = net.complete(widths)
        at: dict[str, list[int]] = {}
        for number, layer in enumerate(net.layers):
            at.setdefault(spec_text(layer.spec), []).append(number)
        times = np.zeros(len(net.layers))
        for numbers in at.values():
            layers = [net.layers[number] for number in numbers]
            c_in = np.array([layer.c_in.at(widths) for layer in layers])
            c_out = np.array([layer.c_out.at(widths) for layer in layers])
            times[numbers] = self.milliseconds(layers[0].spec, c_in, c_out)
        return {layer.name: self.overhead.scale * float(ms) for layer, ms in zip(net.layers, times, strict=True)}

    def predict_ms(self, net: Network, widths: Mapping[str, int] | None = None) -> float:
        """Predicted latency of the whole network at these group widths, in ms."""
        return self.overhead.fixed_ms + sum(self.layer_ms(net, widths or {}).values())

    def corrected(self, scale: float) -> LatencyTable:
        """This table with every time multiplied: what a delivered latency that missed its prediction teaches."""
        overhead = Overhead(self.overhead.fixed_ms * scale, self.overhead.scale * scale)
        return replace(self, overhead=overhead)

    def held_out_error(self, net: Network, folds: int = 3) -> np.ndarray:
        """Relative error of each whole-network run of `net`, predicted from the other runs only: shape (runs,)."""
        runs = self.rows[(self.rows.kind == "network") & (self.rows.spec == fingerprint(net))]
        errors = []
        for fold in range(folds):
            held = set(runs.configuration[runs.configuration % folds == fold])
            mine = (self.rows.network == fingerprint(net)) & self.rows.configuration.isin(held)
            rest = self.rows[~mine]
            if (
                not held
                or rest[rest.kind == "layer"].spec.nunique() < self.rows.spec[self.rows.kind == "layer"].nunique()
            ):
                continue
            table = LatencyTable(self.device, self.fingerprint, _overhead(rest, net), rest)
            for configuration in sorted(held):
                run = self.rows[mine & (self.rows.configuration == configuration)]
                layers = run[run.kind == "layer"]
                predicted = sum(
                    float(table._fitted(key).milliseconds(part.c_in.to_numpy(), part.c_out.to_numpy()).sum())
                    for key, part in layers.groupby("spec", sort=False)
                )
                whole = float(run.ms[run.kind == "network"].median())
                errors.append((table.overhead.fixed_ms + table.overhead.scale * predicted) / whole - 1)
        return np.array(errors)


def _overhead(rows: pd.DataFrame, net: Network) -> Overhead:
    """Fit whole = fixed + scale · layers over whole runs, by relative errors; this network's if any.

    The scale is within SCALES: where noise hides what width does, all time would be fixed else, and no plan faster.
    """
    runs = rows[rows.kind == "network"]
    own = runs[runs.spec == fingerprint(net)]
    runs = own if len(own) >= 4 else runs
    whole, layers = runs.ms.to_numpy(), runs.layers_ms.to_numpy()
    if len(whole) < 4:
        return Overhead(0.0, float(np.median(whole / layers)) if len(whole) else 1.0)
    columns = np.stack([1 / whole, layers / whole], axis=1)
    least, most = SCALES
    fixed, scale = lsq_linear(columns, np.ones(len(whole)), bounds=([0.0, least], [np.inf, most])).x
    return Overhead(float(fixed), float(scale))


def open_table(
    profiles: Path,
    net: Network,
    *,
    device: str | None = None,
    runtime: str = "torch",
    precision: str = "fp32",
    threads: int | None = None,
) -> LatencyTable:
    """The table of one device for one network, from the store in `profiles`.

    device: a machine's id, a whole device's (machine/runtime-precision-threads), None for any that was measured.
    A layer that another machine never measured is answered from its nearest measured ones, with a warning on stderr.
    Raises DeviceError when no such device was measured, TableError naming the first layer that is missing.
    """
    store = Store(profiles)
    found = store.find(device, runtime, precision, threads)
    elsewhere = this_machine(store.machines()[found.machine].get("accelerator", "")).id != found.machine
    table = table_of(store.device_rows(found), net, found, nearest=elsewhere)
    if table.borrowed:
        print(f"warning: {_what_is_borrowed(table, net)}", file=sys.stderr)
    return table


def _what_is_borrowed(table: LatencyTable, net: Network) -> str:
    specs = {layer.name: spec_text(layer.spec) for layer in net.layers}
    times = table.layer_ms(net, {})
    share = sum(ms for name, ms in times.items() if specs[name] in table.borrowed) / max(sum(times.values()), 1e-9)
    error = float(np.median(list(table.borrowed.values())))
    return (
        f"{len(table.borrowed)} of {len(set(specs.values()))} layer kinds of this network, {share:.0%} of its time, "
        f"were never measured on {table.device.id} and are taken from the nearest that were; measured layers left out "
        f"in turn are missed by {error:.0%} so (median); run profile-device there on this MODEL and --input"
    )


def device_table(profiles: Path, net: Network, device: Device) -> LatencyTable:
    """The table of exactly this device, its runtime's version included. Raises TableError as `open_table` does."""
    return table_of(Store(profiles).device_rows(device), net, device)


def table_of(rows: pd.DataFrame, net: Network, device: Device, *, nearest: bool = False) -> LatencyTable:
    """The table that these rows of one device make for one network. Raises TableError as `open_table` does.

    nearest: layers that are missing borrow the samples of those most like them, where there are any.
    """
    wanted = {spec_text(layer.spec): layer for layer in net.layers}
    borrowed: dict[str, float] = {}
    if nearest:
        rows, borrowed = with_borrowed(rows, sorted(wanted.keys() - set(rows.spec)))
    missing = [layer for key, layer in wanted.items() if key not in set(rows.spec)]
    if missing:
        first = missing[0]
        raise TableError(
            f"the table of {device.id} lacks {len(missing)} of {len(wanted)} layer kinds of this network, first "
            f"{first.name} ({first.spec.op} in '{first.module}'); run profile-device on this MODEL and --input "
            f"with --runtime {device.runtime} --precision {device.precision}"
        )
    rows = rows[rows.spec.isin(wanted.keys()) | (rows.kind == "network")]
    rows = rows.sort_values(list(rows.columns), kind="stable").reset_index(drop=True)
    used = rows[["kind", "spec", "c_in", "c_out", "ms", "layers_ms"]]
    digest = hashlib.sha256(pd.util.hash_pandas_object(used, index=False).to_numpy().tobytes()).hexdigest()[:16]
    return LatencyTable(device, digest, _overhead(rows, net), rows, borrowed)
