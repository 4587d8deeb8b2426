"""Latency tables computed from a formula, so that search and compress are tested without measuring anything."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from latency import Device, LatencyTable, Overhead
from network.types import LayerSpec

DEVICE = Device("test-machine", "torch", "fp32", 1, "0")


@dataclass(frozen=True)
class AnalyticTable(LatencyTable):
    """Time in proportion to a layer's pairs of channels, plus a little; everything else is the real table's."""

    device: Device = DEVICE
    fingerprint: str = "analytic"
    overhead: Overhead = field(default_factory=lambda: Overhead(0.1, 1.0))
    rows: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    def milliseconds(self, spec: LayerSpec, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        return 0.01 + 1e-3 * np.asarray(c_in, float) * np.asarray(c_out, float)


@dataclass(frozen=True)
class StaircaseTable(AnalyticTable):
    """Time goes up by whole vectors of `step` channels, in and out, plus a little for every channel."""

    fingerprint: str = "staircase"
    overhead: Overhead = field(default_factory=lambda: Overhead(0.25, 1.1))
    step: int = 4
    asked: set[LayerSpec] = field(default_factory=set)

    def milliseconds(self, spec: LayerSpec, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        self.asked.add(spec)
        area = float(np.prod(spec.spatial_out or (1,))) / 256
        vectors = np.ceil(c_in / self.step) * np.ceil(c_out / self.step)
        return area * (0.1 * vectors + 0.001 * (np.asarray(c_in) + np.asarray(c_out)))
