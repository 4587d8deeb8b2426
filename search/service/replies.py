"""What the service answers with: pydantic models that OpenAPI shows, read from the tables' rows."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = [
    "DeviceHistory",
    "DeviceSummary",
    "Explained",
    "JobStatus",
    "Kept",
    "NetworkSummary",
    "PlanSummary",
    "Problem",
    "ProfileSummary",
    "Several",
    "Sweep",
]

State = Literal["queued", "running", "done", "failed", "cancelled"]


class Reply(BaseModel):
    """Read from a row's attributes."""

    model_config = ConfigDict(from_attributes=True)


class Kept(Reply):
    """What was pushed, by its fingerprint; `created` is false if it was here already."""

    fingerprint: str
    created: bool


class Problem(Reply):
    """Why a request was refused; `type` names the error class where the question itself was at fault."""

    detail: str
    type: str | None = None
    smallest_ms: float | None = None


class Figures(Reply):
    """Over the profiles that count: `spread` is the interquartile range as a share, `contention` what others took."""

    networks: int
    rows: int
    measured_at: str
    contention: float
    spread: float
    pushed_at: datetime
    synthetic: bool


class DeviceSummary(Reply):
    """A device, and what was measured there, when and how well. `id` is what a plan's question names."""

    key: str
    cursor: int
    id: str
    machine: str
    runtime: str
    precision: str
    threads: int
    version: str
    processor: str
    cores: int
    features: str
    accelerator: str
    first_seen: datetime
    measured: Figures


class ProfileSummary(Reply):
    """What a device measured in one network; `counts` is false for what a newer push of the network replaced."""

    fingerprint: str
    network: str
    rows: int
    configurations: int
    layer_kinds: int
    baseline_ms: float
    spread: float
    contention: float
    synthetic: bool
    measured_at: str
    pushed_at: datetime
    pushed_by: str
    counts: bool = True


class DeviceHistory(DeviceSummary):
    """A device with all that was ever pushed of it, the newest first."""

    history: list[ProfileSummary]


class NetworkSummary(Reply):
    """A traced network; `layers_fingerprint` is what profiles of it carry as their network."""

    fingerprint: str
    cursor: int
    name: str
    layers_fingerprint: str
    layers: int
    groups: int
    parameters: float
    macs: float
    pushed_at: datetime
    pushed_by: str


class PlanSummary(Reply):
    """A plan's figures; plan.json itself is at /plans/{fingerprint}."""

    fingerprint: str
    cursor: int
    network: str | None
    model: str
    device: str
    runtime: str
    precision: str
    threads: int
    budget: str
    budget_ms: float
    baseline_ms: float
    predicted_ms: float
    importance_kept: float
    status: str
    gap: float
    made_at: datetime
    made_by: str


class JobStatus(Reply):
    """How far a question is; `answer` is there once it is done, `error` once it failed."""

    id: str
    kind: str
    state: State
    done: int
    total: int
    attempts: int
    asked_at: datetime
    asked_by: str
    finished_at: datetime | None
    answer: dict[str, Any] | None = None
    error: Problem | None = None


class PlanRowReply(Reply):
    """One of several plans."""

    plan: int
    budget_ms: float
    predicted_ms: float
    speedup: float
    importance_kept: float
    status: str
    gap: float
    file: str
    widths: dict[str, int]
    fingerprint: str


class Several(Reply):
    """Several plans of one network, as front.json and top.json have them; `knee` is the number of the plan there."""

    model_config = ConfigDict(from_attributes=True, serialize_by_alias=True)

    device: str
    runtime: str
    precision: str
    baseline_ms: float
    knee: int | None = None
    plans: list[PlanRowReply]


class Cell(Reply):
    """One device and budget of a sweep: a plan, or why there is none."""

    device: str
    budget: str
    plan: str | None = None
    budget_ms: float | None = None
    baseline_ms: float | None = None
    predicted_ms: float | None = None
    importance_kept: float | None = None
    status: str | None = None
    error: Problem | None = None


class Sweep(Reply):
    """A row per device and budget, in the order asked."""

    rows: list[Cell]


class Explained(Reply):
    """As `search --explain --json`."""

    model_config = ConfigDict(extra="allow")

    device: str
    runtime: str
    precision: str
    budget_ms: float
    baseline_ms: float
    predicted_ms: float
    importance_kept: float
    price_per_ms: float | None
    narrower: list[dict[str, Any]]
    wider: list[dict[str, Any]]
    full: list[str]
    least: list[str]
    modules: list[dict[str, Any]]
