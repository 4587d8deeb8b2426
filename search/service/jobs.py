"""The queue of questions, in the database: asked by the API, answered by any worker, never lost with one.

A worker holds a job by a lease and pushes it ahead while it lives. A job whose lease ran out is taken up again, and
after too many such deaths fails with that reason. On PostgreSQL workers skip what others have locked; on SQLite, which
has one writer at a time, the same statements run one after the other.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, or_, select, update

from search.service.clock import now
from search.service.database import Database
from search.service.models import Job
from search.service.replies import JobStatus, Problem
from search.service.storage import NotFound

__all__ = ["Claim", "Queue"]

OPEN = ("queued", "running")


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this worker holds; `partial` is what an earlier holder had found of its answer."""

    number: int
    id: str
    kind: str
    question: Mapping[str, Any]
    worker: str
    attempt: int
    partial: Mapping[str, Any] | None


class Queue:
    """Jobs in a database; `lease_s` seconds without a sign of life, and `attempts` such deaths at most."""

    def __init__(self, database: Database, lease_s: float = 30.0, attempts: int = 3):
        self._database, self._lease, self._attempts = database, timedelta(seconds=lease_s), attempts

    # ---- who asks ----------------------------------------------------------------------------------------------------
    def ask(self, kind: str, key: str, question: Mapping[str, Any], by: str = "") -> str:
        """Queue a question and return its job's id: that of an earlier job, if it answered the very same."""
        same = select(Job.id).where(Job.key == key, Job.state == "done").order_by(Job.number.desc()).limit(1)
        with self._database.read() as session:
            if found := session.scalar(same):
                return found
        with self._database.write() as session:
            job = Job(id=uuid.uuid4().hex, kind=kind, key=key, question=json.dumps(question), state="queued")
            job.asked_at, job.asked_by = now(), by
            session.add(job)
            return job.id

    def status(self, id: str) -> JobStatus:
        """How far a job is. Raises NotFound."""
        with self._database.read() as session:
            job = session.scalar(select(Job).where(Job.id == id))
            if job is None:
                raise NotFound(f"there is no job {id}")
            return _status(job)

    def jobs(self, limit: int = 100) -> list[JobStatus]:
        """The newest jobs first, without their answers."""
        with self._database.read() as session:
            rows = session.scalars(select(Job).order_by(Job.number.desc()).limit(limit))
            return [_status(job).model_copy(update={"answer": None}) for job in rows]

    def finished(self, ids: Collection[str]) -> set[str]:
        """Which of these jobs are no longer open."""
        with self._database.read() as session:
            return set(session.scalars(select(Job.id).where(Job.id.in_(ids), Job.state.not_in(OPEN))))

    def cancel(self, id: str) -> JobStatus:
        """Stop a job that is open; its worker notices between two plans. Raises NotFound."""
        with self._database.write() as session:
            session.execute(
                update(Job).where(Job.id == id, Job.state.in_(OPEN)).values(state="cancelled", finished_at=now())
            )
        return self.status(id)

    def counts(self) -> dict[str, int]:
        """State → jobs."""
        with self._database.read() as session:
            found = session.execute(select(Job.state, func.count()).group_by(Job.state))
            return {row[0]: row[1] for row in found}

    def purge(self, days: float) -> int:
        """Forget jobs that ended so long ago; their plans stay. Returns how many."""
        with self._database.write() as session:
            gone = session.execute(delete(Job).where(Job.finished_at < now() - timedelta(days=days)))
            return gone.rowcount  # type: ignore[attr-defined]

    # ---- who answers -------------------------------------------------------------------------------------------------
    def claim(self, worker: str) -> Claim | None:
        """Take the oldest job that waits, or that its worker dropped."""
        waiting = or_(Job.state == "queued", (Job.state == "running") & (Job.lease_until < now()))
        with self._database.read() as session:  # without a writer's lock: mostly there is nothing
            if session.scalar(select(Job.number).where(waiting).limit(1)) is None:
                return None
        with self._database.write() as session:
            job = session.scalar(
                select(Job).where(waiting).order_by(Job.number).limit(1).with_for_update(skip_locked=True)
            )
            if job is None:
                return None
            if job.attempts >= self._attempts:
                job.state, job.finished_at = "failed", now()
                job.error = _dump(
                    Problem(detail=f"{job.attempts} workers died or were cut off over it; ask for less, or see the log")
                )
                return None
            job.state, job.worker, job.lease_until = "running", worker, now() + self._lease
            job.attempts += 1
            partial = json.loads(job.answer) if job.answer else None
            return Claim(job.number, job.id, job.kind, json.loads(job.question), worker, job.attempts, partial)

    def beat(self, claim: Claim) -> bool:
        """Say that the worker lives; false if the job is no longer its own."""
        return self._update(claim, lease_until=now() + self._lease)

    def progress(self, claim: Claim, done: int, total: int, partial: Mapping[str, Any] | None = None) -> bool:
        """Say how far it is, with what is found of the answer so far; false if the job is no longer its own."""
        fields = {} if partial is None else {"answer": json.dumps(partial)}
        return self._update(claim, done=done, total=total, lease_until=now() + self._lease, **fields)

    def finish(self, claim: Claim, answer: Mapping[str, Any]) -> bool:
        """Keep the answer; false, and nothing is kept, if the job is no longer its own."""
        fields = {"answer": json.dumps(answer, allow_nan=False), "done": Job.total, "finished_at": now()}
        return self._update(claim, state="done", **fields)

    def fail(self, claim: Claim, problem: Problem) -> bool:
        """End a job with the reason why there is no answer."""
        return self._update(claim, state="failed", error=_dump(problem), finished_at=now())

    def release(self, claim: Claim, *, counted: bool = False) -> bool:
        """Put a job back, as a worker does that is told to stop; it is no failed attempt unless it is `counted`."""
        return self._update(claim, state="queued", lease_until=None, attempts=claim.attempt - (not counted))

    def _update(self, claim: Claim, **fields: Any) -> bool:
        held = (Job.number == claim.number, Job.state == "running", Job.worker == claim.worker)
        with self._database.write() as session:
            changed = session.execute(update(Job).where(*held, Job.attempts == claim.attempt).values(**fields))
            return bool(changed.rowcount)  # type: ignore[attr-defined]


def _dump(problem: Problem) -> str:
    return problem.model_dump_json(exclude_none=True)


def _status(job: Job) -> JobStatus:
    own = JobStatus.model_fields.keys() - {"answer", "error"}
    return JobStatus(
        **{name: getattr(job, name) for name in own},
        answer=json.loads(job.answer) if job.answer else None,
        error=Problem.model_validate_json(job.error) if job.error else None,
    )
