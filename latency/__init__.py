"""How long every layer takes at every width, on one machine in one runtime: measured once, stored, looked up."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latency.device import Device as Device
    from latency.measurement import Measurement as Measurement
    from latency.profiler import measure as measure
    from latency.profiler import profile as profile
    from latency.profiler import verify as verify
    from latency.runtimes import here as here
    from latency.store import Store as Store
    from latency.table import LatencyTable as LatencyTable
    from latency.table import Overhead as Overhead
    from latency.table import open_table as open_table

_WHERE = {
    "Device": "latency.device",
    "LatencyTable": "latency.table",
    "Measurement": "latency.measurement",
    "Overhead": "latency.table",
    "Store": "latency.store",
    "here": "latency.runtimes",
    "measure": "latency.profiler",
    "open_table": "latency.table",
    "profile": "latency.profiler",
    "verify": "latency.profiler",
}

__all__ = [
    "Device",
    "LatencyTable",
    "Measurement",
    "Overhead",
    "Store",
    "here",
    "measure",
    "open_table",
    "profile",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'latency' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)
