"""From what is pushed to the rows that are kept: the figures that lists show, computed once."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import asdict

import numpy as np

from latency.device import Device
from latency.table import fingerprint as layers_fingerprint
from latency.table import spec_text
from network.types import LayerSpec
from search.plan import Plan
from search.service.clock import now
from search.service.models import DeviceRow, NetworkRow, PlanRow, ProfileRow
from search.service.schemas import Profile, fingerprint_of
from search.service.traced import TracedNetwork

__all__ = [
    "device_key",
    "device_row",
    "network_row",
    "packed",
    "plan_fingerprint",
    "plan_row",
    "profile_row",
    "spec_key",
    "unpacked",
]


def device_key(device: Device) -> str:
    """What a device's address says: 16 hexadecimal digits of a hash of its five fields."""
    return fingerprint_of(asdict(device))[:16]


def spec_key(spec: LayerSpec) -> str:
    """What a layer's specification is indexed by."""
    return hashlib.sha256(spec_text(spec).encode()).hexdigest()[:16]


def plan_fingerprint(plan: Plan) -> str:
    """Equal for equal plans, however long the search took."""
    return fingerprint_of(json.loads(plan.untimed().to_json()))


def packed(text: str) -> bytes:
    """A JSON document as it is kept."""
    return zlib.compress(text.encode(), 6)


def unpacked(data: bytes) -> str:
    """What was packed."""
    return zlib.decompress(data).decode()


def device_row(device: Device, profile: Profile) -> DeviceRow:
    """The device that a profile is of."""
    return DeviceRow(key=device_key(device), first_seen=now(), **asdict(device) | dict(profile.machine))


def profile_row(profile: Profile, fingerprint: str, device_id: int, by: str) -> ProfileRow:
    """What was measured, when and how well."""
    runs = profile.runs
    full = [ms for ms, configuration in zip(runs.ms, runs.configuration, strict=True) if configuration == 0]
    return ProfileRow(
        fingerprint=fingerprint,
        device_id=device_id,
        network=profile.network,
        rows=len(profile.layers.spec) + len(runs.ms),
        configurations=len(set(runs.configuration)),
        layer_kinds=len(profile.specs),
        baseline_ms=float(np.median(full or runs.ms)),
        spread=float(np.median(np.array(runs.iqr_ms) / np.array(runs.ms))),
        contention=float(np.mean(runs.contention)),
        synthetic=profile.synthetic,
        measured_at=max(runs.measured_at),
        pushed_at=now(),
        pushed_by=by,
    )


def network_row(traced: TracedNetwork, fingerprint: str, by: str) -> NetworkRow:
    """A network's size, and the layers that a device must have measured."""
    net = traced.to_network()
    return NetworkRow(
        fingerprint=fingerprint,
        name=traced.name,
        layers_fingerprint=layers_fingerprint(net),
        layers=len(net.layers),
        groups=len(net.groups),
        parameters=float(net.parameter_count()),
        macs=float(net.macs()),
        specs=json.dumps(sorted({spec_key(layer.spec) for layer in net.layers})),
        pushed_at=now(),
        pushed_by=by,
    )


PROMISED = ("device", "runtime", "precision", "threads", "budget", "budget_ms", "baseline_ms", "predicted_ms")


def plan_row(plan: Plan, fingerprint: str, network: str | None, by: str) -> PlanRow:
    """What a plan promises and keeps."""
    return PlanRow(
        fingerprint=fingerprint,
        network=network,
        model=plan.model.ref,
        importance_kept=plan.importance_kept,
        status=plan.status,
        gap=plan.gap,
        made_at=now(),
        made_by=by,
        **{name: getattr(plan, name) for name in PROMISED},
    )
