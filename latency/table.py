"""The latency table: measured milliseconds of every layer of a network at every width, on one device."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from latency.borrowing import with_borrowed
from latency.device import Device, this_machine
from latency.stairs import Staircase, fit_staircase
from latency.store import Store
from network.errors import TableError
from network.types import LayerSpec, Network

__all__ = [
    "BARE",
    "FULL",
    "THIN",
    "LatencyTable",
    "Overhead",
    "bare",
    "device_table",
    "fingerprint",
    "open_table",
    "slowdown",
    "spec_text",
    "table_of",
]


FULL, THIN = 0, 10**5
"""Numbers of the configurations that are timed with every batch: the full network and a thin one."""

BARE = THIN + 1
"""Number of the configuration without any group that may go. Its counters bear other layers' names and are not kept."""

OWN_RUNS = 4
"""Configurations of a network that say what its overhead is."""

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
    """What no layer owns: whole-network ms = fixed_ms + scale · Σ layer ms + gone_ms · layers that are gone.

    gone_ms: what is left of a layer without inputs or outputs (`network.removal`), which a forward may still call.
    """

    fixed_ms: float
    scale: float
    gone_ms: float = 0.0

    def times(self, factor: float) -> Overhead:
        """The same of a machine that takes `factor` times as long."""
        return Overhead(self.fixed_ms * factor, self.scale * factor, self.gone_ms * factor)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds by layer specification and widths on `device`. `fingerprint` changes with any row that is used.

    borrowed: the layer specifications that were never measured there and stand on the samples of others
    (`latency.borrowing`), each with the median relative error of so answering for measured layers of its operation.
    models: those that were fitted so far.
    """

    device: Device
    fingerprint: str
    overhead: Overhead
    rows: pd.DataFrame = field(repr=False)
    borrowed: Mapping[str, float] = field(default_factory=dict)
    models: dict[str, Staircase] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _samples(self) -> dict[str, pd.DataFrame]:
        layers = self.rows[self.rows.kind == "layer"]
        return {str(key): rows for key, rows in layers.groupby("spec", sort=False)}

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
        if key not in self.models:
            rows = self._samples[key]
            self.models[key] = fit_staircase(rows.c_in.to_numpy(), rows.c_out.to_numpy(), rows.ms.to_numpy())
        return self.models[key]

    def milliseconds(self, spec: LayerSpec, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        """Layer time at these channel counts (broadcast together), in ms, before overhead. Raises TableError.

        What is left of a layer without inputs or outputs is the same for all of them.
        """
        gone = (np.asarray(c_in) == 0) | (np.asarray(c_out) == 0)
        left = self.overhead.gone_ms / self.overhead.scale
        return np.where(gone, left, self.model(spec).milliseconds(c_in, c_out))

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
        return replace(self, overhead=self.overhead.times(scale))

    def _runs(self, net: Network, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """(whole ms, Σ layer ms by this table's models) of each configuration of `net` in these rows: (N,) both.

        By the models and not by that run's own counters: their noise would flatten what width does.
        """
        mine, run = rows[rows.network == fingerprint(net)], ["configuration", "measured_at"]
        layers = mine[mine.kind == "layer"]
        said = pd.Series(0.0, index=layers.index, name="said")
        for key, part in layers.groupby("spec", sort=False):
            said[part.index] = self._fitted(str(key)).milliseconds(part.c_in.to_numpy(), part.c_out.to_numpy())
        sums = layers.assign(said=said).groupby(run).said.sum()
        whole = mine[mine.kind == "network"].groupby(run).ms.median()
        both = pd.concat([whole, sums], axis=1, join="inner").groupby("configuration").median()
        return both.ms.to_numpy(), both.said.to_numpy()

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
            table = _calibrated(LatencyTable(self.device, self.fingerprint, Overhead(0.0, 1.0), rest), net)
            whole, layers = table._runs(net, self.rows[mine])
            errors += list((table.overhead.fixed_ms + table.overhead.scale * layers) / whole - 1)
        return np.array(errors)

    def held_out_bound(self, net: Network) -> float:
        """What 95 % of `held_out_error` stay within; infinite where there are too few runs to say."""
        errors = np.abs(self.held_out_error(net))
        return float(np.quantile(errors, 0.95)) if len(errors) else np.inf


def steadied(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows as if the machine had been in every batch as fast as it usually was (`slowdown`)."""
    runs, batch = rows[rows.kind == "network"], ["network", "measured_at"]
    now = runs.pivot_table(index=batch, columns="configuration", values="ms", aggfunc="median")
    now = now.reindex(columns=[FULL, THIN])
    now[THIN] = now[THIN].where(now[THIN].notna().groupby("network").transform("all"))
    both = pd.concat([now, now.groupby("network").transform("median")], axis=1).loc[runs.set_index(batch).index]
    full, thin, *usual = both.to_numpy().T
    run = [*batch, "configuration"]
    slower = pd.Series(slowdown(runs.ms.to_numpy(), (full, thin), usual), index=pd.MultiIndex.from_frame(runs[run]))
    factor = slower.groupby(run).median().reindex(pd.MultiIndex.from_frame(rows[run])).fillna(1.0).to_numpy()
    return rows.assign(ms=rows.ms / factor, layers_ms=rows.layers_ms / factor)


def slowdown(ms: np.ndarray, now: Sequence[np.ndarray | float], usual: Sequence[np.ndarray | float]) -> np.ndarray:
    """By what factor networks that take `ms` now, (N,), take longer than usual; nan where the full one is unknown.

    now, usual: ms of the full and of the thin network, floats or (N,) each; nan where unknown. A neighbour that takes
    caches or memory from this machine does not slow all networks alike: between the two the factor's logarithm is
    linear in log ms, beyond them it stays. Without a thin one it is the full one's.
    """
    (full, thin), (full_usual, thin_usual) = (np.broadcast_arrays(ms, *pair)[1:] for pair in (now, usual))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip(np.log(ms / thin) / np.log(full / thin), 0.0, 1.0)
        share = np.where(np.isfinite(share), share, 1.0)
        thin_log = np.where(share < 1.0, np.log(thin / thin_usual), 0.0)
        return np.asarray(np.exp(share * np.log(full / full_usual) + (1.0 - share) * thin_log))


def _calibrated(table: LatencyTable, net: Network) -> LatencyTable:
    """The table with the overhead of this network's own runs; of all networks' where it has too few."""
    whole, layers = table._runs(net, table.rows)
    runs = table.rows[table.rows.kind == "network"]
    if len(whole) < OWN_RUNS:
        counted = runs[runs.configuration != BARE]
        whole, layers = counted.ms.to_numpy(), counted.layers_ms.to_numpy()
    table = replace(table, overhead=_overhead(whole, layers))
    without = runs.ms[(runs.spec == fingerprint(net)) & (runs.configuration == BARE)]
    return table if without.empty else replace(table, overhead=_with_gone(table, net, float(without.median())))


def _with_gone(table: LatencyTable, net: Network, bare_ms: float) -> Overhead:
    """The table's overhead with what layers that are gone leave, by a run without any group that may go."""
    widths = net.complete(bare(net))
    gone = sum(0 in (layer.c_in.at(widths), layer.c_out.at(widths)) for layer in net.layers)
    return replace(table.overhead, gone_ms=max(0.0, bare_ms - table.predict_ms(net, widths)) / max(gone, 1))


def bare(net: Network) -> dict[str, int]:
    """The widths of the groups that may go, when they do."""
    return {group.name: 0 for group in net.groups if group.removable}


def _overhead(whole: np.ndarray, layers: np.ndarray) -> Overhead:
    """Fit whole = fixed + scale · layers over runs, (N,) both, by the logarithm of what is off, outliers little.

    The scale is within SCALES: where noise hides what width does, all time would be fixed else, and no plan faster.
    """
    if len(whole) < OWN_RUNS:
        return Overhead(0.0, float(np.median(whole / layers)) if len(whole) else 1.0)
    unit = float(np.median(whole))
    found = least_squares(
        lambda x: np.log((x[0] * unit + x[1] * layers) / whole),
        (0.05, float(np.clip(0.95 * np.median(whole / layers), SCALES[0] * 1.01, SCALES[1] * 0.99))),
        bounds=([0.0, SCALES[0]], [np.inf, SCALES[1]]),
        loss="soft_l1",
        f_scale=0.03,
    ).x
    return Overhead(float(found[0]) * unit, float(found[1]))


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
    rows = steadied(rows[rows.spec.isin(wanted.keys()) | (rows.kind == "network")])
    rows = rows.sort_values(list(rows.columns), kind="stable").reset_index(drop=True)
    used = rows[["kind", "spec", "c_in", "c_out", "ms", "layers_ms"]]
    digest = hashlib.sha256(pd.util.hash_pandas_object(used, index=False).to_numpy().tobytes()).hexdigest()[:16]
    return _calibrated(LatencyTable(device, digest, Overhead(0.0, 1.0), rows, borrowed), net)
