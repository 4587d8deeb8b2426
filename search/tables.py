"""The latency tables that a plan was made from, opened again. No torch."""

from __future__ import annotations

from pathlib import Path

import latency
from latency import LatencyTable
from network.types import Network
from search.plan import Plan

__all__ = ["open_tables"]


def open_tables(profiles: Path, net: Network, plan: Plan) -> list[LatencyTable]:
    """The table of the plan's device, then those of its other devices. Raises DeviceError, TableError."""
    return [
        latency.open_table(
            profiles,
            net,
            device=each.device,
            runtime=each.runtime,
            precision=each.precision,
            threads=each.threads,
        )
        for each in (plan, *plan.others)
    ]
