"""How long every layer takes at every width, on one machine in one runtime: measured once, stored, looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from network.lazy import lazily

if TYPE_CHECKING:
    from latency.device import Device
    from latency.measurement import Measurement
    from latency.profiler import measure, profile
    from latency.runtimes import here
    from latency.store import Store
    from latency.table import LatencyTable, Overhead, open_table
    from latency.verification import verify

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

__getattr__ = lazily(
    __name__,
    {
        "device": ("Device",),
        "measurement": ("Measurement",),
        "profiler": ("measure", "profile"),
        "runtimes": ("here",),
        "store": ("Store",),
        "table": ("LatencyTable", "Overhead", "open_table"),
        "verification": ("verify",),
    },
)
