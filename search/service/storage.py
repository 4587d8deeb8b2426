"""What the service keeps: devices, profiles, networks and plans, each once by its fingerprint, nothing overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from latency.device import Device, choose_device
from network.errors import DeviceError, PlanError
from search.plan import Plan, plan_of
from search.service.clock import now
from search.service.database import Database
from search.service.models import Audit, Blob, DeviceRow, MeasuredLayer, NetworkRow, PlanRow, ProfileRow
from search.service.profiles import device_of, to_parquet
from search.service.replies import DeviceHistory, DeviceSummary, Figures, NetworkSummary, PlanSummary, ProfileSummary
from search.service.rows import (
    device_key,
    device_row,
    network_row,
    packed,
    plan_fingerprint,
    plan_row,
    profile_row,
    spec_key,
    unpacked,
)
from search.service.schemas import DeviceChoice, Profile, fingerprint_of
from search.service.traced import TracedNetwork, spec_of

__all__ = ["NotFound", "Storage", "Writer"]

RACES = 5
"""Times that a write is tried when others write the same at the same moment."""

Row = TypeVar("Row")


class NotFound(LookupError):
    """Nothing here has that name."""


@dataclass(frozen=True, slots=True)
class Writer:
    """Who pushes, and from where: what the audit says."""

    name: str
    address: str = ""


class Storage:
    """Pushes and look-ups; every push is one transaction, and pushing twice stores once."""

    def __init__(self, database: Database):
        self.database = database

    # ---- pushes: each returns the fingerprint, and whether it is new -------------------------------------------------
    def add_profile(self, profile: Profile, by: Writer | None = None) -> tuple[str, bool]:
        """Keep what a device measured in a network; it counts from now on, what it replaces is history."""
        fingerprint = fingerprint_of(profile)
        device, data = device_of(profile), to_parquet(profile)
        specs = {spec_key(spec_of(spec)) for spec in profile.specs}

        def add(session: Session) -> None:
            owner = session.scalar(select(DeviceRow).where(DeviceRow.key == device_key(device)))
            if owner is None:
                owner = device_row(device, profile)
                session.add(owner)
                session.flush()
            known = set(session.scalars(select(MeasuredLayer.spec).where(MeasuredLayer.device_id == owner.id)))
            session.add_all(MeasuredLayer(spec=spec, device_id=owner.id) for spec in sorted(specs - known))
            session.add_all(
                [profile_row(profile, fingerprint, owner.id, _name(by)), Blob(fingerprint=fingerprint, data=data)]
            )

        return fingerprint, self._once(ProfileRow, fingerprint, add, by)

    def add_network(self, traced: TracedNetwork, by: Writer | None = None) -> tuple[str, bool]:
        """Keep a traced network with its importance."""
        fingerprint, data = fingerprint_of(traced), packed(traced.model_dump_json())

        def add(session: Session) -> None:
            session.add_all([network_row(traced, fingerprint, _name(by)), Blob(fingerprint=fingerprint, data=data)])

        return fingerprint, self._once(NetworkRow, fingerprint, add, by)

    def add_plan(self, plan: Plan, network: str | None, by: Writer | None = None) -> tuple[str, bool]:
        """Keep a plan as the text that `search` writes; `network` is the fingerprint that it was searched from."""
        fingerprint, data = plan_fingerprint(plan), packed(plan.to_json())

        def add(session: Session) -> None:
            session.add_all([plan_row(plan, fingerprint, network, _name(by)), Blob(fingerprint=fingerprint, data=data)])

        return fingerprint, self._once(PlanRow, fingerprint, add, by)

    def audit(self, by: Writer, action: str, subject: str) -> None:
        """Note a write that is no push."""
        with self.database.write() as session:
            session.add(_audit(by, action, subject))

    def _once(self, kind: Any, fingerprint: str, add: Callable[[Session], None], by: Writer | None) -> bool:
        """Run `add` in one transaction unless it was kept already; a race with another writer is run again."""
        for left in reversed(range(RACES)):
            try:
                with self.database.write() as session:
                    if session.scalar(select(kind.fingerprint).where(kind.fingerprint == fingerprint)) is not None:
                        return False
                    add(session)
                    if by:
                        session.add(_audit(by, f"push to {kind.__tablename__}", fingerprint))
                return True
            except IntegrityError:
                if not left:
                    raise
        raise AssertionError("the last race returns or raises")

    # ---- look-ups ----------------------------------------------------------------------------------------------------
    def devices(
        self, network: str | None = None, machine: str | None = None, after: int = 0, limit: int = 1000
    ) -> list[DeviceSummary]:
        """What was measured, oldest first; `network`: only where that network can be searched. Raises NotFound."""
        chosen = select(DeviceRow).where(DeviceRow.id > after).order_by(DeviceRow.id).limit(limit)
        if machine:
            chosen = chosen.where(DeviceRow.machine == machine)
        with self.database.read() as session:
            if network:
                chosen = chosen.where(DeviceRow.id.in_(_able(session, network)))
            return _summaries(session, session.scalars(chosen).all())

    def device(self, key: str) -> DeviceHistory:
        """One device and its profiles, the newest first. Raises NotFound."""
        with self.database.read() as session:
            row = _found(session.scalar(select(DeviceRow).where(DeviceRow.key == key)), f"device {key}")
            profiles = session.scalars(
                select(ProfileRow).where(ProfileRow.device_id == row.id).order_by(ProfileRow.id.desc()).limit(1000)
            )
            history, seen = [], set[str]()
            for profile in profiles:
                summary = ProfileSummary.model_validate(profile)
                history.append(summary.model_copy(update={"counts": profile.network not in seen}))
                seen.add(profile.network)
            return DeviceHistory(**dict(_summaries(session, [row])[0]), history=history)

    def profile(self, fingerprint: str) -> bytes:
        """A profile's rows as Parquet, with the columns of `latency.store`. Raises NotFound."""
        with self.database.read() as session:
            return _blob(session, ProfileRow, fingerprint, "profile")

    def networks(self, after: int = 0, limit: int = 1000) -> list[NetworkSummary]:
        """Networks, oldest first."""
        chosen = select(NetworkRow).where(NetworkRow.cursor > after).order_by(NetworkRow.cursor).limit(limit)
        with self.database.read() as session:
            return [NetworkSummary.model_validate(row) for row in session.scalars(chosen)]

    def network(self, fingerprint: str) -> TracedNetwork:
        """A traced network. Raises NotFound."""
        with self.database.read() as session:
            data = _blob(session, NetworkRow, fingerprint, "network")
        return TracedNetwork.model_validate_json(unpacked(data))

    def check_network(self, fingerprint: str) -> None:
        """Raises NotFound unless that network is here."""
        with self.database.read() as session:
            _found(session.scalar(_of(NetworkRow, fingerprint)), f"network {fingerprint}")

    def plans(
        self, network: str | None = None, machine: str | None = None, after: int = 0, limit: int = 100
    ) -> list[PlanSummary]:
        """Plans, oldest first."""
        chosen = select(PlanRow).where(PlanRow.cursor > after).order_by(PlanRow.cursor).limit(limit)
        if network:
            chosen = chosen.where(PlanRow.network == network)
        if machine:
            chosen = chosen.where(PlanRow.device == machine)
        with self.database.read() as session:
            return [PlanSummary.model_validate(row) for row in session.scalars(chosen)]

    def plan_text(self, fingerprint: str) -> str:
        """plan.json. Raises NotFound."""
        with self.database.read() as session:
            return unpacked(_blob(session, PlanRow, fingerprint, "plan"))

    def plan(self, fingerprint: str) -> tuple[Plan, str]:
        """A plan and the fingerprint of its network. Raises NotFound, PlanError for a plan of a network elsewhere."""
        with self.database.read() as session:
            row = _found(session.scalar(_of(PlanRow, fingerprint)), f"plan {fingerprint}")
        if row.network is None:
            raise PlanError(f"plan {fingerprint[:12]} is of a network that is not here; search it here instead")
        return plan_of(json.loads(self.plan_text(fingerprint))), row.network

    # ---- what a search reads -----------------------------------------------------------------------------------------
    def choose(self, choice: DeviceChoice) -> Device:
        """The measured device that is meant. Raises DeviceError, which names what there is."""
        machine, _, rest = choice.device.partition("/")
        with self.database.read() as session:
            rows = session.scalars(select(DeviceRow).where(DeviceRow.machine == machine))
            known = [_device(row) for row in rows if choice.version in (None, row.version)]
            if not known:
                there = session.scalars(select(DeviceRow.machine).distinct().order_by(DeviceRow.machine).limit(5)).all()
                raise DeviceError(
                    f"no device {choice.device!r} is here (there is {', '.join(there) or 'nothing'}); "
                    "push it: profile-device MODEL --input SHAPE --push URL"
                )
        named = choice.device if rest else machine
        return choose_device(known, named, choice.runtime, choice.precision, choice.threads, where="the service")

    def newest(self, device: Device) -> list[str]:
        """The fingerprints of the profiles that count for a device, in a fixed order."""
        mine = select(DeviceRow.id).where(DeviceRow.key == device_key(device))
        chosen = select(ProfileRow.fingerprint).where(ProfileRow.id.in_(_newest(ProfileRow.device_id.in_(mine))))
        with self.database.read() as session:
            return list(session.scalars(chosen.order_by(ProfileRow.network)))

    def blobs(self, fingerprints: Sequence[str]) -> list[bytes]:
        """The profiles' rows as Parquet, in this order."""
        with self.database.read() as session:
            found = session.execute(select(Blob.fingerprint, Blob.data).where(Blob.fingerprint.in_(fingerprints)))
            data = {row.fingerprint: row.data for row in found}
        return [data[fingerprint] for fingerprint in fingerprints]


def _name(by: Writer | None) -> str:
    return by.name if by else ""


def _audit(by: Writer, action: str, subject: str) -> Audit:
    return Audit(at=now(), who=by.name, address=by.address, action=action, subject=subject)


def _summaries(session: Session, rows: Sequence[DeviceRow]) -> list[DeviceSummary]:
    """Devices with the sums over the profiles that count."""
    found = session.execute(
        select(
            ProfileRow.device_id,
            func.count(),
            func.sum(ProfileRow.rows),
            func.max(ProfileRow.measured_at),
            func.avg(ProfileRow.contention),
            func.avg(ProfileRow.spread),
            func.max(ProfileRow.pushed_at),
            func.count().filter(ProfileRow.synthetic) > 0,
        )
        .where(ProfileRow.id.in_(_newest(ProfileRow.device_id.in_([row.id for row in rows]))))
        .group_by(ProfileRow.device_id)
    )
    measured = {row[0]: Figures(**dict(zip(Figures.model_fields, row[1:], strict=True))) for row in found}
    own = DeviceSummary.model_fields.keys() - {"cursor", "id", "measured"}
    return [
        DeviceSummary(
            cursor=row.id, id=_device(row).id, measured=measured[row.id], **{name: getattr(row, name) for name in own}
        )
        for row in rows
    ]


def _newest(where: Any) -> Select[Any]:
    """The ids of the profiles that count: of every device and network the last."""
    return select(func.max(ProfileRow.id)).where(where).group_by(ProfileRow.device_id, ProfileRow.network)


def _able(session: Session, network: str) -> Select[Any]:
    """The devices that have rows of every layer of a network. Raises NotFound."""
    specs = json.loads(_found(session.scalar(_of(NetworkRow, network)), f"network {network}").specs)
    return (
        select(MeasuredLayer.device_id)
        .where(MeasuredLayer.spec.in_(specs))
        .group_by(MeasuredLayer.device_id)
        .having(func.count() == len(specs))
    )


def _of(kind: Any, fingerprint: str) -> Select[Any]:
    return select(kind).where(kind.fingerprint == fingerprint)


def _blob(session: Session, kind: Any, fingerprint: str, what: str) -> bytes:
    _found(session.scalar(select(kind.fingerprint).where(kind.fingerprint == fingerprint)), f"{what} {fingerprint}")
    return session.scalars(select(Blob.data).where(Blob.fingerprint == fingerprint)).one()


def _found(row: Row | None, what: str) -> Row:
    if row is None:
        raise NotFound(f"there is no {what}")
    return row


def _device(row: DeviceRow) -> Device:
    return Device(row.machine, row.runtime, row.precision, row.threads, row.version)
