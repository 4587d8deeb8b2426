"""The store of measured rows: a folder per machine, `device.json` and one Parquet file per finished batch.

    PROFILES/<machine id>/device.json          schema and the machine's description
    PROFILES/<machine id>/rows/<unique>.parquet

A batch is written beside and renamed into place, so a killed writer leaves whole files only, and any number of
writers may share the folder. A file that cannot be read is set aside under another name and said aloud.
"""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from latency.device import Device, Machine, available_cores, this_machine
from network.errors import DeviceError, StoreError
from network.files import write_atomically

__all__ = ["COLUMNS", "SCHEMA", "Store"]

SCHEMA = 1
COLUMNS: dict[str, Any] = {
    "kind": pa.string(),  # "layer", or "network" for a whole run
    "spec": pa.string(),  # the layer's specification as JSON; the network's fingerprint for a whole run
    "c_in": pa.int64(),
    "c_out": pa.int64(),
    "ms": pa.float64(),
    "iqr_ms": pa.float64(),
    "n": pa.int64(),
    "contention": pa.float64(),
    "layers_ms": pa.float64(),  # whole runs: what the layers' counters sum to
    "machine": pa.string(),
    "runtime": pa.string(),
    "version": pa.string(),
    "precision": pa.string(),
    "threads": pa.int64(),
    "network": pa.string(),  # fingerprint of the network that the row was measured in
    "configuration": pa.int64(),
    "measured_at": pa.string(),
}


class Store:
    """Rows of every machine under one folder, which need not exist yet."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def machines(self) -> dict[str, dict[str, Any]]:
        """Machine id → its description, for every machine in the store. Raises StoreError."""
        found = {}
        for path in sorted(self.folder.glob("*/device.json")):
            try:
                described = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                raise StoreError(f"cannot read {path}: {error}; remove the file and profile again") from error
            if not isinstance(described, dict) or described.get("schema") != SCHEMA:
                raise StoreError(f"{path} is not of schema {SCHEMA}; use another --profiles folder")
            found[path.parent.name] = described
        return found

    def append(self, machine: Machine, device: Device, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add one batch of rows, atomically. Raises StoreError."""
        folder = self.folder / machine.id
        if not (folder / "device.json").exists():
            described = {"schema": SCHEMA, "id": machine.id, **asdict(machine)}
            write_atomically(folder / "device.json", json.dumps(described, indent=2).encode())
        table = pa.Table.from_pylist(
            [{**device.as_row(), **row} for row in rows], schema=pa.schema(list(COLUMNS.items()))
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({"narrowgauge": str(SCHEMA)}), sink)
        write_atomically(folder / "rows" / f"{uuid.uuid4().hex}.parquet", sink.getvalue().to_pybytes())

    def rows(self, machine: str | None = None) -> pd.DataFrame:
        """All rows, of one machine or of all, with COLUMNS; empty when there are none. Raises StoreError."""
        self.machines()
        frames = []
        for path in sorted(self.folder.glob(f"{machine or '*'}/rows/*.parquet")):
            try:
                table = pq.read_table(path, partitioning=None)
                if table.schema.names != list(COLUMNS):
                    raise ValueError("its columns differ")
            except (OSError, ValueError, pa.ArrowException) as error:
                self._set_aside(path, error)
                continue
            frames.append(table.to_pandas())
        if not frames:
            return pd.DataFrame({name: pd.Series(dtype=kind.to_pandas_dtype()) for name, kind in COLUMNS.items()})
        return pd.concat(frames, ignore_index=True)

    def device_rows(self, device: Device) -> pd.DataFrame:
        """The rows of exactly this device."""
        rows = self.rows(device.machine)
        for column, value in device.as_row().items():
            rows = rows[rows[column] == value]
        return rows

    def by_device(self) -> list[tuple[Device, pd.DataFrame]]:
        """Every device that has rows, in a fixed order, with them."""
        keys = ["machine", "runtime", "precision", "threads", "version"]
        parts = [rows for _, rows in self.rows().groupby(keys)]
        return [(Device(*next(rows[keys].itertuples(index=False, name=None))), rows) for rows in parts]

    def devices(self) -> list[Device]:
        """Every device that has rows, in a fixed order."""
        return [device for device, _ in self.by_device()]

    def find(self, machine: str | None, runtime: str, precision: str, threads: int | None) -> Device:
        """The measured device that matches; raises DeviceError naming what is there.

        machine: its id, or a device's whole one, which then says the rest. Without it this one, or the only one of the
        store; without threads all cores of this machine, or the most measured; of several versions the newest.
        """
        known = self.devices()
        matches = [
            device
            for device in known
            if device.id == machine
            or (
                device.machine == (machine or device.machine)
                and device.runtime == runtime
                and device.precision == precision
                and device.threads == (threads or device.threads)
            )
        ]
        mine = this_machine().id
        matches = [device for device in matches if device.machine == mine] or matches
        if len({device.machine for device in matches}) > 1:
            machines = ", ".join(sorted({device.machine for device in matches}))
            raise DeviceError(f"several machines were measured: {machines}; choose one with --device")
        if matches:
            return max(matches, key=lambda d: (d.threads == available_cores(), d.threads, _version(d.version)))
        wanted = f"{machine or 'this machine'}/{runtime}-{precision}" + (f"-{threads}t" if threads else "")
        if machine and "/" in machine:
            wanted = machine
        there = ", ".join(device.id for device in known) or "nothing"
        raise DeviceError(
            f"no latency table for {wanted} in {self.folder} (there is {there}); "
            f"run profile-device MODEL --input SHAPE --runtime {runtime} --precision {precision}"
        )

    @staticmethod
    def _set_aside(path: Path, error: Exception) -> None:
        aside = path.with_suffix(".damaged")
        try:
            os.replace(path, aside)
            where = f"set aside as {aside.name}"
        except OSError:
            where = "left where it is"
        print(f"warning: {path} is damaged ({error}); {where}, its rows will be measured again", file=sys.stderr)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))
