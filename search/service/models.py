"""The tables of the service, the same on SQLite and PostgreSQL; `migrations/` makes them.

What is large lies in `blobs` by its fingerprint, so that lists and counts never read it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, ForeignKey, Index, LargeBinary, String, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["Audit", "Base", "Blob", "DeviceRow", "Job", "MeasuredLayer", "NetworkRow", "PlanRow", "ProfileRow", "Token"]


class Instant(TypeDecorator[datetime]):
    """A moment in UTC; SQLite keeps no zone, so it is put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """All tables."""

    type_annotation_map = {datetime: Instant, str: String(512), bytes: LargeBinary}  # noqa: RUF012


class Blob(Base):
    """A document: Parquet of a profile's rows, or compressed JSON."""

    __tablename__ = "blobs"
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    data: Mapped[bytes]


class DeviceRow(Base):
    """A device that was measured. `key` is what its address says, a hash of the five fields that make it."""

    __tablename__ = "devices"
    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(16), unique=True)
    machine: Mapped[str] = mapped_column(String(64), index=True)
    runtime: Mapped[str] = mapped_column(String(64))
    precision: Mapped[str] = mapped_column(String(64))
    threads: Mapped[int]
    version: Mapped[str] = mapped_column(String(64))
    processor: Mapped[str] = mapped_column(Text)
    cores: Mapped[int]
    features: Mapped[str] = mapped_column(Text)
    accelerator: Mapped[str] = mapped_column(Text)
    first_seen: Mapped[datetime]


class ProfileRow(Base):
    """What one device measured in one network, once; the newest of a network counts, the others are history."""

    __tablename__ = "profiles"
    __table_args__ = (Index("profiles_newest", "device_id", "network", "id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64), unique=True)
    device_id: Mapped[int] = mapped_column(ForeignKey("devices.id"))
    network: Mapped[str] = mapped_column(String(16))
    rows: Mapped[int]
    configurations: Mapped[int]
    layer_kinds: Mapped[int]
    baseline_ms: Mapped[float]
    spread: Mapped[float]
    contention: Mapped[float]
    synthetic: Mapped[bool]
    measured_at: Mapped[str] = mapped_column(String(40))
    pushed_at: Mapped[datetime]
    pushed_by: Mapped[str] = mapped_column(String(64))


class MeasuredLayer(Base):
    """Which devices have rows of a layer specification: what says where a network can be searched."""

    __tablename__ = "measured_layers"
    spec: Mapped[str] = mapped_column(String(16), primary_key=True)
    device_id: Mapped[int] = mapped_column(ForeignKey("devices.id"), primary_key=True)


class NetworkRow(Base):
    """A traced network with an importance. `layers_fingerprint` is what profiles of it are measured under."""

    __tablename__ = "networks"
    cursor: Mapped[int] = mapped_column("id", primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str]
    layers_fingerprint: Mapped[str] = mapped_column(String(16), index=True)
    layers: Mapped[int]
    groups: Mapped[int]
    parameters: Mapped[float]
    macs: Mapped[float]
    specs: Mapped[str] = mapped_column(Text)
    pushed_at: Mapped[datetime]
    pushed_by: Mapped[str] = mapped_column(String(64))


class PlanRow(Base):
    """A plan, searched here or pushed. `network` is None for a plan of a network that is not here."""

    __tablename__ = "plans"
    __table_args__ = (Index("plans_of_network", "network", "id"),)
    cursor: Mapped[int] = mapped_column("id", primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64), unique=True)
    network: Mapped[str | None] = mapped_column(String(64))
    model: Mapped[str]
    device: Mapped[str] = mapped_column(String(64), index=True)
    runtime: Mapped[str] = mapped_column(String(64))
    precision: Mapped[str] = mapped_column(String(64))
    threads: Mapped[int]
    budget: Mapped[str] = mapped_column(String(40))
    budget_ms: Mapped[float]
    baseline_ms: Mapped[float]
    predicted_ms: Mapped[float]
    importance_kept: Mapped[float]
    status: Mapped[str] = mapped_column(String(16))
    gap: Mapped[float]
    made_at: Mapped[datetime]
    made_by: Mapped[str] = mapped_column(String(64))


class Job(Base):
    """A question being answered; `key` says which question on which tables, so that an answer is found again.

    A worker holds a job until `lease_until`, and pushes that ahead while it lives. Another takes up what it dropped.
    """

    __tablename__ = "jobs"
    __table_args__ = (Index("jobs_waiting", "state", "number"), Index("jobs_answered", "key", "state"))
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    kind: Mapped[str] = mapped_column(String(16))
    key: Mapped[str] = mapped_column(String(64))
    question: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=1)
    answer: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None]
    asked_at: Mapped[datetime]
    asked_by: Mapped[str] = mapped_column(String(64))
    finished_at: Mapped[datetime | None] = mapped_column(index=True)


class Token(Base):
    """Who may do what: the SHA-256 of a secret of 256 random bits, which itself is kept nowhere."""

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(String(64))
    requests_per_minute: Mapped[int | None]
    max_body_bytes: Mapped[int | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Audit(Base):
    """Who wrote what, and when."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    who: Mapped[str] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(128))
