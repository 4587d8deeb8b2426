"""What the service's tests share: small networks with synthetic tables, and a service with a worker, here or apart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from benchmarks.fleet import chain, device, machine, rows_of
from latency import LatencyTable
from latency.table import fingerprint, table_of
from network.types import Network
from search.budget import parse_budget
from search.plan import ModelReference, Plan, Settings
from search.planner import Problem
from search.service.answers import Library
from search.service.api import create_app
from search.service.auth import Rate
from search.service.profiles import profile_of
from search.service.schemas import Profile
from search.service.settings import ServiceSettings
from search.service.traced import TracedNetwork, describe
from search.service.worker import Worker

__all__ = [
    "KNOWN",
    "MODEL",
    "NET",
    "Service",
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
]

NET = chain("a", [16, 48, 32, 8])
ROOT = Path(__file__).parents[1]
MODEL = [f"{ROOT / 'tests' / 'helpers.py'}:unet", "--input", "1x3x16x16"]
KNOWN = ["--runtime", "known"]
REFERENCE = ModelReference("net.py:build", "{}", ((1, 3, 32, 32),))


def importance(net: Network, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {group.name: random.gamma(0.5, size=group.width) for group in net.groups}


IMPORTANCE = importance(NET)


def profile(number: int = 0, net: Network = NET, seed: int | None = None) -> Profile:
    """What machine `number` would have measured."""
    rows = rows_of(net, device(number), seed=number if seed is None else seed)
    return profile_of(machine(number), device(number), fingerprint(net), rows, synthetic=True)


def traced(net: Network = NET) -> TracedNetwork:
    """The network as it is pushed."""
    return describe(net, importance(net), REFERENCE)


def table(number: int = 0) -> LatencyTable:
    """The latency table that machine `number` makes for the network, without the service."""
    return table_of(rows_of(NET, device(number), seed=number), NET, device(number))


def problem(number: int = 0, also: tuple[int, str] | None = None, **changes: Any) -> Problem:
    """What the command searches: `also` is a further machine and its budget."""
    others = [(table(also[0]), parse_budget(also[1]))] if also else []
    return Problem(NET, table(number), IMPORTANCE, reference=REFERENCE, settings=Settings(**changes), others=others)


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
def service(url: str, *, works: bool = True, rate: Rate | None = None, **settings: Any) -> Iterator[Service]:
    """A service on this database, with a worker in a thread."""
    app = create_app(ServiceSettings(database=SecretStr(url), lease_seconds=5.0, **settings), rate=rate)
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
def process(folder: Path, *words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`narrowgauge serve` in a process of its own, and its URL."""
    command = [sys.executable, "-m", "search.service.command", "serve", "--port", "0", "--database", sqlite(folder)]
    variables = {**os.environ, "NARROWGAUGE_LEASE_SECONDS": "2", **environment}
    with (folder / "log").open("w") as log:
        served = subprocess.Popen([*command, *words], stderr=log, text=True, env=variables, cwd=ROOT)
    try:
        yield served, _address(folder / "log", served)
    finally:
        served.kill()
        served.wait()


def _address(log: Path, served: subprocess.Popen[str]) -> str:
    for _ in range(600):
        for line in log.read_text().splitlines():
            if line.startswith("serving "):
                return line.split()[1]
        assert served.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())
