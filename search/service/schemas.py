"""What may be pushed and asked: pydantic models with a limit on every size, and the fingerprints of what they hold.

Numbers are finite, names have no control characters, unknown keys are refused. Scalars are strict: "5" is no number.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from search.plan import Settings

__all__ = [
    "DeviceChoice",
    "DeviceFields",
    "ExplanationQuestion",
    "Fingerprint",
    "FrontQuestion",
    "MachineFields",
    "PlanDocument",
    "PlanQuestion",
    "Profile",
    "SettingsFields",
    "SweepQuestion",
    "Target",
    "TopQuestion",
    "Versioned",
    "fingerprint_of",
]

PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
MOST_ROWS = 200_000
MOST_CELLS = 10_000

Text = Annotated[str, StringConstraints(strict=True, max_length=4096, pattern=PRINTABLE)]
Name = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=512, pattern=PRINTABLE)]
Slug = Annotated[str, StringConstraints(strict=True, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Version = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64, pattern=r"^[\w.+-]+$")]
Stamp = Annotated[str, StringConstraints(strict=True, max_length=40, pattern=r"^[0-9T:.+Z-]+$")]
Fingerprint = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-f]{64}$")]
ShortFingerprint = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-f]{16}$")]
BudgetText = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=40, pattern=PRINTABLE)]
Count = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
Positive = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
Number = Annotated[float, Field(strict=True, ge=0, le=1e18)]
Milliseconds = Annotated[float, Field(strict=True, ge=0, le=1e9)]
PositiveMs = Annotated[float, Field(strict=True, gt=0, le=1e9)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]


class Document(BaseModel):
    """Immutable data with no keys but its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True)


class Versioned(Document):
    """A document that is kept, with the version of its form."""

    schema_: Literal[1] = Field(default=1, alias="schema")


def fingerprint_of(document: Document | dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON: sorted keys, no spaces, every default written out."""
    data = document.model_dump(mode="json") if isinstance(document, Document) else document
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# ---- device profiles ---------------------------------------------------------------------------------------------
class MachineFields(Document):
    """The hardware, as `latency.device.Machine`; its id follows from it."""

    processor: Text
    cores: Positive
    features: Text
    accelerator: Text = ""


class DeviceFields(Document):
    """What ran there, as `latency.device.Device` without its machine."""

    runtime: Slug
    precision: Slug
    threads: Positive
    version: Version


class SpecFields(Document):
    """A layer without its widths, as `network.types.LayerSpec`."""

    op: Name
    attributes: Annotated[tuple[tuple[Name, Text], ...], Field(max_length=64)] = ()
    batch: Positive = 1
    spatial_in: Annotated[tuple[Count, ...], Field(max_length=8)] = ()
    spatial_out: Annotated[tuple[Count, ...], Field(max_length=8)] = ()
    fused_with: Annotated[tuple[Name, ...], Field(max_length=64)] = ()


class Columns(Document):
    """Rows by column: every column is as long as the others."""

    @model_validator(mode="after")
    def _equally_long(self) -> Columns:
        lengths = {name: len(getattr(self, name)) for name in type(self).model_fields}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}")
        return self


class LayerRows(Columns):
    """Samples of single layers; `spec` is a position in the profile's `specs`."""

    spec: Annotated[tuple[Count, ...], Field(max_length=MOST_ROWS)]
    c_in: Annotated[tuple[Count, ...], Field(max_length=MOST_ROWS)]
    c_out: Annotated[tuple[Count, ...], Field(max_length=MOST_ROWS)]
    ms: Annotated[tuple[Milliseconds, ...], Field(max_length=MOST_ROWS)]
    iqr_ms: Annotated[tuple[Milliseconds, ...], Field(max_length=MOST_ROWS)]
    n: Annotated[tuple[Count, ...], Field(max_length=MOST_ROWS)]
    contention: Annotated[tuple[Number, ...], Field(max_length=MOST_ROWS)]
    configuration: Annotated[tuple[Count, ...], Field(max_length=MOST_ROWS)]
    measured_at: Annotated[tuple[Stamp, ...], Field(max_length=MOST_ROWS)]


class NetworkRows(Columns):
    """Whole runs of the network; configuration 0 is the full one."""

    ms: Annotated[tuple[PositiveMs, ...], Field(min_length=1, max_length=MOST_ROWS)]
    iqr_ms: Annotated[tuple[Milliseconds, ...], Field(max_length=MOST_ROWS)]
    n: Annotated[tuple[Count, ...], Field(max_length=MOST_ROWS)]
    contention: Annotated[tuple[Number, ...], Field(max_length=MOST_ROWS)]
    layers_ms: Annotated[tuple[PositiveMs, ...], Field(max_length=MOST_ROWS)]
    configuration: Annotated[tuple[Count, ...], Field(max_length=MOST_ROWS)]
    measured_at: Annotated[tuple[Stamp, ...], Field(max_length=MOST_ROWS)]


class Profile(Versioned):
    """What one device measured in one network: device.json and the rows of the store, by column.

    `network` is the fingerprint of the network's layers and widths (`latency.table.fingerprint`). `synthetic` marks
    tables that were computed and not measured.
    """

    machine: MachineFields
    device: DeviceFields
    network: ShortFingerprint
    specs: Annotated[tuple[SpecFields, ...], Field(min_length=1, max_length=20_000)]
    layers: LayerRows
    runs: NetworkRows
    synthetic: bool = Field(default=False, strict=True)

    @model_validator(mode="after")
    def _specs_exist(self) -> Profile:
        if self.layers.spec and max(self.layers.spec) >= len(self.specs):
            raise ValueError(f"layers.spec names {max(self.layers.spec)}, and there are {len(self.specs)} specs")
        return self


# ---- plans -------------------------------------------------------------------------------------------------------
Arguments = Annotated[str, StringConstraints(strict=True, max_length=65_536, pattern=r"^[^\x00]*$")]


class ReferenceFields(Document):
    """How the network is named on the command line; text only, nothing here is ever imported."""

    ref: Name
    args: Arguments = "{}"
    input: Annotated[tuple[Annotated[tuple[Positive, ...], Field(max_length=8)], ...], Field(max_length=64)] = ()
    weights_sha256: Annotated[str, StringConstraints(strict=True, pattern=r"^([0-9a-f]{64})?$")] = ""


class FeedFields(Document):
    """The data that importance was measured on, as the command line named it."""

    images: Text | None = None
    preprocess: Text = "unit"
    bgr: bool = Field(default=False, strict=True)
    task: Text | None = None
    task_args: Arguments = "{}"


class SettingsFields(Document):
    """What bounds the choices beside the budget, as the command's options; see `search.plan.Settings`."""

    options: Annotated[int, Field(strict=True, ge=1, le=1024)] | None = None
    min_width: Annotated[dict[Name, Share], Field(max_length=256)] = Field(
        default_factory=lambda: dict(Settings().min_width)
    )
    multiple_of: Annotated[dict[Name, Positive], Field(max_length=256)] = Field(default_factory=dict)
    removal: bool = True
    keep: Annotated[tuple[Name, ...], Field(max_length=256)] = ()
    frozen: Annotated[tuple[Name, ...], Field(max_length=256)] = ()
    max_params: Positive | None = None
    max_macs: Annotated[float, Field(strict=True, gt=0, le=1e18)] | None = None
    max_memory: Annotated[int, Field(strict=True, ge=1, le=2**53)] | None = None
    max_bytes: Annotated[int, Field(strict=True, ge=1, le=2**53)] | None = None
    time_limit_s: Annotated[float, Field(strict=True, gt=0, le=600)] | None = Settings().time_limit_s


class PromiseFields(Document):
    """As `search.plan.Promise`."""

    device: Slug
    runtime: Slug
    precision: Slug
    threads: Positive
    table_fingerprint: ShortFingerprint
    budget: BudgetText
    budget_ms: PositiveMs
    baseline_ms: PositiveMs
    predicted_ms: PositiveMs


class PlanLayerFields(Document):
    """As `search.plan.PlanLayer`."""

    name: Name
    module: Text
    c_in: Count
    c_out: Count
    ms: Milliseconds
    baseline_ms: Milliseconds


class FrozenGroupFields(Document):
    """As `search.plan.FrozenGroup`."""

    group: Name
    reason: Text


Scores = Annotated[tuple[Number, ...], Field(min_length=1, max_length=1_000_000)]
Channels = Annotated[tuple[Count, ...], Field(min_length=1, max_length=1_000_000)]


class PlanDocument(Versioned, PromiseFields):
    """plan.json, as `search` writes it."""

    model: ReferenceFields
    status: Literal["optimal", "feasible"]
    objective: Number
    bound: Number
    gap: Number
    solve_seconds: Number
    choices_log10: Number
    widths: Annotated[dict[Name, Count], Field(max_length=20_000)]
    layers: Annotated[tuple[PlanLayerFields, ...], Field(max_length=20_000)]
    frozen: Annotated[tuple[FrozenGroupFields, ...], Field(max_length=20_000)]
    importance: Annotated[dict[Name, Scores], Field(max_length=20_000)]
    feed: FeedFields
    settings: SettingsFields
    others: Annotated[tuple[PromiseFields, ...], Field(max_length=64)] = ()
    survivors: Annotated[dict[Name, Channels], Field(max_length=20_000)] = {}


# ---- questions ---------------------------------------------------------------------------------------------------
class DeviceChoice(Document):
    """A device that was measured: a machine's id, or a whole device's, which then says the rest.

    Without `threads` the most that were measured, without `version` the newest of the runtime.
    """

    device: Annotated[str, StringConstraints(strict=True, max_length=200, pattern=r"^[a-z0-9][a-z0-9._/-]*$")]
    runtime: Slug = "torch"
    precision: Slug = "fp32"
    threads: Positive | None = None
    version: Version | None = None


class Target(DeviceChoice):
    """A device and the budget that the network must keep there: "20ms", or "0.5x" of its full time."""

    budget: BudgetText


class Question(Document):
    """What is asked of one network."""

    network: Fingerprint
    settings: SettingsFields = Field(default_factory=SettingsFields)


class PlanQuestion(Question):
    """The best plan that keeps the budget of every device named."""

    devices: Annotated[tuple[Target, ...], Field(min_length=1, max_length=16)]


class TopQuestion(PlanQuestion):
    """Several plans of one budget that are well apart, the best first."""

    count: Annotated[int, Field(strict=True, ge=1, le=32)]


class FrontQuestion(Question):
    """Plans from the fastest on the device to the full network; `others` keep budgets beside."""

    device: DeviceChoice
    others: Annotated[tuple[Target, ...], Field(max_length=15)] = ()
    count: Annotated[int, Field(strict=True, ge=2, le=256)] = 16


class ExplanationQuestion(Document):
    """Where a stored plan's milliseconds went, and where the next would come from."""

    plan: Fingerprint


class SweepQuestion(Question):
    """A plan of its own for every device and every budget."""

    devices: Annotated[tuple[DeviceChoice, ...], Field(min_length=1, max_length=1000)]
    budgets: Annotated[tuple[BudgetText, ...], Field(min_length=1, max_length=64)]

    @model_validator(mode="after")
    def _bounded(self) -> SweepQuestion:
        if (count := len(self.devices) * len(self.budgets)) > MOST_CELLS:
            raise ValueError(f"a sweep of {count} plans is over the limit of {MOST_CELLS}; ask in parts")
        return self
