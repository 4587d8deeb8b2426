"""What the service's tests share: small networks with synthetic tables, and a service with a worker, here or apart."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from benchmarks import fleet
from benchmarks.fleet import chain, device, importance, rows_of
from benchmarks.serving import Serving
from latency import LatencyTable
from latency.table import table_of
from network.types import Network
from search.budget import parse_budget
from search.plan import Plan, Settings
from search.planner import Problem
from search.service.answers import Library
from search.service.api import create_app
from search.service.schemas import Profile
from search.service.settings import ServiceSettings
from search.service.traced import TracedNetwork
from search.service.worker import Worker

__all__ = [
    "KNOWN",
    "MODEL",
    "NET",
    "Service",
    "importance",
    "listening",
    "local_plan",
    "problem",
    "process",
    "profile",
    "same_plan",
    "service",
    "sqlite",
    "table",
    "traced",
    "until",
]

NET = chain("a", [16, 48, 32, 8])
ROOT = Path(__file__).parents[1]
MODEL = [f"{ROOT / 'tests' / 'helpers.py'}:unet", "--input", "1x3x16x16"]
KNOWN = ["--runtime", "known"]


def profile(number: int = 0, net: Network = NET, seed: int | None = None) -> Profile:
    """What machine `number` would have measured."""
    return fleet.profile(net, number, seed)


def traced(net: Network = NET) -> TracedNetwork:
    """The network as it is pushed."""
    return fleet.traced(net)


def table(number: int = 0) -> LatencyTable:
    """The latency table that machine `number` makes for the network, without the service."""
    return table_of(rows_of(NET, device(number), seed=number), NET, device(number))


def problem(number: int = 0, also: tuple[int, str] | None = None, **changes: Any) -> Problem:
    """What the command searches: `also` is a further machine and its budget."""
    others = [(table(also[0]), parse_budget(also[1]))] if also else []
    return Problem(
        NET,
        table(number),
        importance(NET),
        reference=fleet.reference(NET),
        settings=Settings(**changes),
        others=others,
    )


def local_plan(budget: str, **options: Any) -> Plan:
    """The plan of the command, from the same rows and importance; options as of `problem`."""
    return problem(**options).plan(parse_budget(budget))


def same_plan(text: str) -> str:
    """plan.json without the seconds that the search took."""
    return re.sub(r'"solve_seconds": [^,]+', "", text)


class Service:
    """A service that listens on loopback, a client in front of it, and the application behind."""

    def __init__(self, app: FastAPI, url: str, headers: dict[str, str] | None = None):
        self.app, self.url, self.state = app, url, app.state
        self.network = ""
        self.tokens: dict[str, str] = {}
        self.http = httpx.Client(base_url=url, timeout=60, trust_env=False, headers=headers)

    def push(self, *numbers: int) -> str:
        """Push the network and these machines' profiles; returns the network's fingerprint, and remembers it."""
        for number in numbers:
            assert self.post("/profiles", profile(number)).status_code in (200, 201)
        self.network = self.post("/networks", traced()).json()["fingerprint"]
        return self.network

    def post(self, path: str, document: Any, **options: Any) -> Any:
        """POST a document or plain data."""
        if hasattr(document, "model_dump"):
            document = document.model_dump(mode="json")
        return self.http.post(path, json=document, **options)


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The application's URL while uvicorn serves it from a thread."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server, socket = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        socket.close()


@contextmanager
def service(
    url: str, *, works: bool = True, clock: Callable[[], float] = time.monotonic, **settings: Any
) -> Iterator[Service]:
    """A service on this database, with a worker in a thread."""
    app = create_app(ServiceSettings(database=SecretStr(url), lease_seconds=5.0, **settings), clock=clock)
    stop = threading.Event()
    worker = Worker(app.state.queue, Library(app.state.storage), lease_s=5.0)
    thread = threading.Thread(target=worker.run, args=(stop,))
    if works:
        thread.start()
    try:
        with listening(app) as address:
            yield Service(app, address)
    finally:
        stop.set()
        if works:
            thread.join()


def sqlite(folder: Path) -> str:
    """A new SQLite database's URL."""
    return f"sqlite:///{folder / 'service.db'}"


@contextmanager
def process(folder: Path, *words: str) -> Iterator[Serving]:
    """`narrowgauge serve` in a process of its own."""
    served = Serving(folder, sqlite(folder), *words, NARROWGAUGE_LEASE_SECONDS="2")
    try:
        yield served
    finally:
        served.kill()


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for what others do. Fails when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
