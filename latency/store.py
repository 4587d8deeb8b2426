"""The store of measured rows: a folder per machine, `device.json` and one Parquet file per finished batch.

    PROFILES/<machine id>/device.json          schema and the machine's description
    PROFILES/<machine id>/rows/<unique>.parquet

A batch is written beside and renamed into place, so a killed writer leaves whole files only, and any number of
writers may share the folder. A file that cannot be read is set aside under another name and said aloud.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from latency.device import Device, Machine, available_cores, choose_device, this_machine
from network.errors import StoreError
from network.files import write_atomically

__all__ = ["COLUMNS", "SCHEMA", "Store", "installed"]

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


DESCRIPTION = ("processor", "cores", "features", "accelerator")
"""What a machine is described by, in the order of `Machine`."""


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

    def check_writable(self) -> None:
        """Raise StoreError now, not after the measuring, if nothing can be added here."""
        probe = self.folder / ".writable"
        write_atomically(probe, b"")
        probe.unlink(missing_ok=True)
        self.machines()

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
                content = path.read_bytes()
            except FileNotFoundError:  # another process has set it aside
                continue
            except OSError as error:  # the system's, and not of what the file holds
                raise StoreError(f"cannot read {path}: {error.strerror or error}; mend that and try again") from error
            try:
                table = pq.read_table(pa.BufferReader(content))
                if table.schema.names != list(COLUMNS):
                    raise ValueError("its columns differ")
            except MemoryError as error:
                raise StoreError(f"cannot read {path}: {error}; free some memory and try again") from error
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
        return _by_device(self.rows())

    def export_csv(self, path: Path) -> int:
        """Write every row, with its machine's description, to one CSV file; returns how many. Raises StoreError."""
        rows = self.rows()
        machines = pd.DataFrame.from_dict(self.machines(), orient="index", columns=["schema", *DESCRIPTION])
        table = rows.join(machines, on="machine")
        write_atomically(path, table.to_csv(index=False).encode())
        return len(rows)

    def absorb(self, source: Path) -> int:
        """Add the rows that this store lacks from an exported CSV file or another store; returns how many.

        Raises StoreError if the source is neither, and before anything is added.
        """
        all_rows, machines = _read_store(source) if source.is_dir() else _read_csv(source)
        found = all_rows.merge(self.rows(), how="left", indicator=True)
        new = found[found.pop("_merge") == "left_only"]
        for device, part in _by_device(new):
            rows: Any = part.to_dict("records")
            self.append(machines[device.machine], device, rows)
        return len(new)

    def devices(self) -> list[Device]:
        """Every device that has rows, in a fixed order."""
        return [device for device, _ in self.by_device()]

    def find(self, machine: str | None, runtime: str, precision: str, threads: int | None) -> Device:
        """The measured device that matches, as `choose_device` finds it. Raises DeviceError naming what is there."""
        asked, mine, where = (machine, runtime, precision, threads), this_machine().id, str(self.folder)
        cores = available_cores()
        found = choose_device(self.devices(), *asked, mine=mine, cores=cores, installed=installed, where=where)
        there = installed(found.runtime) if found.machine == mine else None
        if there is not None and _release(there) != _release(found.version):
            print(
                f"warning: {found.id} was measured with version {found.version}, and {there} is installed; "
                "run profile-device again",
                file=sys.stderr,
            )
        return found

    @staticmethod
    def _set_aside(path: Path, error: Exception) -> None:
        aside = path.with_suffix(".damaged")
        try:
            os.replace(path, aside)
            where = f"set aside as {aside.name}"
        except OSError:
            where = "left where it is"
        print(f"warning: {path} is damaged ({error}); {where}, its rows will be measured again", file=sys.stderr)


def _release(version: str) -> str:
    """A version without what torch's says of huge pages, which is up to the process."""
    return version.removesuffix("+hugepages")


def installed(runtime: str) -> str | None:
    """The version of a runtime that can be used here; None where it cannot."""
    from latency.runtimes import RUNTIMES  # torch, which to read rows does not need

    found = RUNTIMES.get(runtime)
    return found.version if found is not None and found.missing() is None else None


def _by_device(rows: pd.DataFrame) -> list[tuple[Device, pd.DataFrame]]:
    keys = ["machine", "runtime", "precision", "threads", "version"]
    parts = [part for _, part in rows.groupby(keys)]
    return [(Device(*next(part[keys].itertuples(index=False, name=None))), part) for part in parts]


def _read_store(folder: Path) -> tuple[pd.DataFrame, dict[str, Machine]]:
    store = Store(folder)
    described = store.machines()
    if not described:
        raise StoreError(f"{folder} is no store: no folder in it has a device.json; name a store or an exported CSV")
    machines = {name: Machine(*(fields.get(key, "") for key in DESCRIPTION)) for name, fields in described.items()}
    return store.rows(), machines


def _read_csv(path: Path) -> tuple[pd.DataFrame, dict[str, Machine]]:
    text = dict.fromkeys(("spec", "version", "network", "measured_at", *DESCRIPTION), str)
    try:
        table = pd.read_csv(
            path,
            float_precision="round_trip",
            dtype=text | {"cores": int},
            keep_default_na=False,
            na_values={"layers_ms": [""]},
        )
    except (OSError, ValueError) as error:
        raise StoreError(
            f"cannot read {path}: {' '.join(str(error).split())}; name a store or an exported CSV"
        ) from None
    missing = [name for name in ("schema", *COLUMNS, *DESCRIPTION) if name not in table]
    if missing or (table.schema != SCHEMA).any():
        what = f"it lacks the column {missing[0]!r}" if missing else f"it is not of schema {SCHEMA}"
        raise StoreError(f"{path} is no exported table: {what}; make one with profile-device --export")
    described = table[["machine", *DESCRIPTION]].drop_duplicates().itertuples(index=False, name=None)
    return table[list(COLUMNS)], {name: Machine(*fields) for name, *fields in described}
