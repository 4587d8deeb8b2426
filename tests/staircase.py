"""A latency table with an analytic staircase, so that the search is tested without measuring anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from network.types import LayerSpec, Network


@dataclass(frozen=True)
class Overhead:
    fixed_ms: float = 0.25
    scale: float = 1.1


@dataclass(frozen=True)
class Device:
    machine: str = "test bench"
    runtime: str = "torch"
    precision: str = "fp32"
    threads: int = 1
    version: str = "0"

    @property
    def id(self) -> str:
        return "test-bench"


@dataclass(frozen=True)
class StaircaseTable:
    """Time goes up by whole vectors of `step` channels, in and out, plus a little for every channel."""

    step: int = 4
    overhead: Overhead = Overhead()
    device: Device = Device()
    fingerprint: str = "staircase"
    asked: set[LayerSpec] = field(default_factory=set)

    def milliseconds(self, spec: LayerSpec, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        self.asked.add(spec)
        area = float(np.prod(spec.spatial_out or (1,))) / 256
        vectors = np.ceil(c_in / self.step) * np.ceil(c_out / self.step)
        return area * (0.1 * vectors + 0.001 * (np.asarray(c_in) + np.asarray(c_out)))

    def layer_ms(self, net: Network, widths: Mapping[str, int]) -> dict[str, float]:
        widths = net.complete(widths)
        return {
            layer.name: self.overhead.scale
            * float(self.milliseconds(layer.spec, np.array(layer.c_in.at(widths)), np.array(layer.c_out.at(widths))))
            for layer in net.layers
        }

    def predict_ms(self, net: Network, widths: Mapping[str, int] | None = None) -> float:
        return self.overhead.fixed_ms + sum(self.layer_ms(net, widths or {}).values())

    def corrected(self, scale: float) -> StaircaseTable:
        return replace(self, overhead=Overhead(self.overhead.fixed_ms * scale, self.overhead.scale * scale))
