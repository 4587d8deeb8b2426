"""How a worker holds a job: a heart that beats beside the search, and a word on how far it is from time to time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from search.service.jobs import Claim, Queue
from search.service.replies import Problem

__all__ = ["Hold", "Lost", "Stopped"]

TELL_S = 1.0


class Lost(Exception):
    """The job is no longer this worker's: cancelled, or taken up by another."""


class Stopped(Exception):
    """The worker was told to stop."""


class Hold:
    """Pushes a job's lease ahead while the block runs; `search.service.answers.Watch` for what is done inside.

    A plan that takes longer than `plan_s` seconds fails the job, and `give_up` ends the process: a search cannot be
    interrupted from outside.
    """

    def __init__(
        self,
        queue: Queue,
        claim: Claim,
        stop: threading.Event,
        *,
        lease_s: float,
        plan_s: float,
        give_up: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._queue, self._claim, self._stop = queue, claim, stop
        self._lease_s, self._plan_s, self._give_up, self._clock = lease_s, plan_s, give_up, clock
        self._told, self._moved = -TELL_S, clock()
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Hold:
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._heart.join()

    def progress(self, done: int, total: int, partial: Mapping[str, Any] | None = None) -> None:
        """Raises Lost, Stopped."""
        self._moved = self._clock()
        if self._moved - self._told >= TELL_S or self._stop.is_set():
            if not self._queue.progress(self._claim, done, total, partial):
                raise Lost
            self._told = self._clock()
        if self._stop.is_set():
            raise Stopped

    def _beat(self) -> None:
        while not self._done.wait(self._lease_s / 4):
            with contextlib.suppress(SQLAlchemyError):  # a database that is away is asked again
                if self._clock() - self._moved > self._plan_s:
                    text = f"a plan took longer than NARROWGAUGE_PLAN_SECONDS, {self._plan_s:.0f} s; ask for less"
                    self._queue.fail(self._claim, Problem(detail=text))
                    self._give_up()
                self._queue.beat(self._claim)
