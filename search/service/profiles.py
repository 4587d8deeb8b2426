"""Profiles in their three forms: rows of `latency.store`, the document that is pushed, the Parquet that is kept."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from latency.device import Device, Machine
from latency.store import COLUMNS, Store
from latency.table import spec_text
from search.service.schemas import Profile
from search.service.traced import spec_of

__all__ = ["device_of", "from_parquet", "profile_of", "profiles_of", "to_parquet"]

LAYER_COLUMNS = ("c_in", "c_out", "ms", "iqr_ms", "n", "contention", "configuration", "measured_at")
RUN_COLUMNS = ("ms", "iqr_ms", "n", "contention", "layers_ms", "configuration", "measured_at")


def profiles_of(store: Store, devices: Iterable[Device] | None = None) -> Iterator[Profile]:
    """What a store holds of these devices, or of all: a profile per device and network that was measured there."""
    machines = store.machines()
    wanted = None if devices is None else set(devices)
    for device, rows in store.by_device():
        if wanted is None or device in wanted:
            fields = machines[device.machine]
            machine = Machine(fields["processor"], fields["cores"], fields["features"], fields.get("accelerator", ""))
            for network, part in rows.groupby("network"):
                if (part.kind == "network").any():
                    yield profile_of(machine, device, str(network), part)


def profile_of(machine: Machine, device: Device, network: str, rows: pd.DataFrame, synthetic: bool = False) -> Profile:
    """The document of the rows that one device measured in one network. Raises ValueError for rows that are none."""
    layers, runs = rows[rows.kind == "layer"], rows[rows.kind == "network"]
    codes, specs = pd.factorize(layers.spec)
    return Profile.model_validate(
        {
            "machine": asdict(machine),
            "device": {key: value for key, value in asdict(device).items() if key != "machine"},
            "network": network,
            "specs": [json.loads(text) for text in specs],
            "layers": {"spec": codes.tolist()} | {name: layers[name].tolist() for name in LAYER_COLUMNS},
            "runs": {name: runs[name].tolist() for name in RUN_COLUMNS},
            "synthetic": synthetic,
        }
    )


def device_of(profile: Profile) -> Device:
    """Whose milliseconds they are; the machine's id follows from what it is."""
    return Device(Machine(**dict(profile.machine)).id, **dict(profile.device))


def to_parquet(profile: Profile) -> bytes:
    """The rows as `latency.store` writes them, compressed."""
    specs = np.array([spec_text(spec_of(spec)) for spec in profile.specs], dtype=object)
    layers, runs = profile.layers, profile.runs
    fields = [
        {"kind": "layer", "spec": specs[list(layers.spec)], "layers_ms": None}
        | {name: getattr(layers, name) for name in LAYER_COLUMNS},
        {"kind": "network", "spec": profile.network, "c_in": 0, "c_out": 0}
        | {name: getattr(runs, name) for name in RUN_COLUMNS},
    ]
    counts = (len(layers.spec), len(runs.ms))
    common = device_of(profile).as_row() | {"network": profile.network}
    parts = [_table(common | part, count) for part, count in zip(fields, counts, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.concat_tables(parts), sink, compression="zstd")
    return sink.getvalue()


def from_parquet(blobs: Iterable[bytes]) -> pd.DataFrame:
    """The rows of several profiles of one device, with the types that `latency.store` gives them."""
    return pd.concat([pq.read_table(io.BytesIO(blob)).to_pandas() for blob in blobs], ignore_index=True)


def _table(fields: dict[str, object], count: int) -> pa.Table:
    """One table of `count` rows; what is no column is the same in every row."""
    columns = [
        pa.array(list(value) if isinstance(value, tuple | np.ndarray) else [value] * count, kind)
        for value, kind in ((fields[name], kind) for name, kind in COLUMNS.items())
    ]
    return pa.table(columns, schema=pa.schema(list(COLUMNS.items())))
