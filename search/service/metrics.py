"""What Prometheus reads: requests by route, and the queue as it stands in the database."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from search.service.database import Database
from search.service.jobs import Queue
from search.service.models import DeviceRow, NetworkRow, PlanRow, ProfileRow

__all__ = ["Metrics"]

KEPT = {"devices": DeviceRow, "profiles": ProfileRow, "networks": NetworkRow, "plans": PlanRow}
METHODS = {"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"}


class Metrics(Collector):
    """One registry for each app; jobs and rows are counted when they are asked for."""

    def __init__(self, database: Database, queue: Queue):
        self._database, self._queue = database, queue
        self._registry = CollectorRegistry()
        names = ["method", "route", "status"]
        self._requests = Counter("narrowgauge_requests", "Requests answered", names, registry=self._registry)
        self._seconds = Histogram(
            "narrowgauge_request_seconds", "Time to answer a request", ["route"], registry=self._registry
        )
        self._refused = Counter(
            "narrowgauge_refused", "Requests refused before they were read", ["reason"], registry=self._registry
        )
        self._registry.register(self)

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: the database need not answer when the registry is made."""
        return []

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; a method of nobody's making gets no series of its own."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a request that was refused for want of a token or by a limit."""
        self._refused.labels(reason).inc()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What the database holds."""
        jobs = GaugeMetricFamily("narrowgauge_jobs", "Jobs by state", labels=["state"])
        for state, count in self._queue.counts().items():
            jobs.add_metric([state], count)
        yield jobs
        kept = GaugeMetricFamily("narrowgauge_kept", "Documents that are kept", labels=["kind"])
        with self._database.read() as session:
            for kind, table in KEPT.items():
                kept.add_metric([kind], session.scalar(select(func.count()).select_from(table)) or 0)
        yield kept

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)
