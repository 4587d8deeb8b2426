"""The service under load, at scale and under faults: on loopback, bounded in time, with tables marked as synthetic.

    python -m benchmarks.service                     # everything, about a quarter of an hour
    python -m benchmarks.service load --seconds 60   # 64 clients on SQLite and on PostgreSQL
    python -m benchmarks.service scale               # a search beside 1,000 devices x 20 networks, and beside nothing
    python -m benchmarks.service faults              # kill -9, a database that restarts, a full disk, two writers
    python -m benchmarks.service page                # the page in Chromium, beside 1,000 devices and beside one

Every row of --out is one JSON line. Nothing is measured but the service: the tables are a formula's.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from sqlalchemy import func, select, text

from benchmarks.fleet import chain, device, machine, profile, rows_of, traced
from benchmarks.page import TIMES, chromium, find_chromium, times_of
from benchmarks.postgres import Server, find_binaries, running
from benchmarks.rows import add_rows
from benchmarks.serving import Serving
from latency.table import fingerprint
from network.command_line import run
from network.errors import NarrowgaugeError
from network.types import Network
from search.service.client import Client
from search.service.database import Database
from search.service.models import Blob, Job, NetworkRow, PlanRow, ProfileRow
from search.service.profiles import profile_of
from search.service.schemas import Target
from search.service.storage import Storage

__all__ = ["main"]

NET = chain("load", [16, 48, 64, 48, 32, 8])
KINDS = ("read", "push", "search")
SHARES = (0.8, 0.1, 0.1)
"""What a client does next: mostly it looks, one time in ten each it pushes or asks for a plan."""

VARIABLES = {
    "NARROWGAUGE_LEASE_SECONDS": "3",
    "NARROWGAUGE_REQUESTS_PER_MINUTE": "10000000",
    "NARROWGAUGE_JOB_ATTEMPTS": "10",
}


@contextlib.contextmanager
def serving(url: str | None = None, workers: int = 1, folder: Path | None = None) -> Iterator[Serving]:
    """A service on this database, or on SQLite in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="narrowgauge-bench-") as name:
        place = folder or Path(name)
        words = ("--workers", str(workers), "--log-level", "warning")
        service = Serving(Path(name), url or f"sqlite:///{place / 'service.db'}", *words, **VARIABLES)
        try:
            yield service
        finally:
            service.stop()


# ---- load --------------------------------------------------------------------------------------------------------
class Load:
    """Clients that look, push and ask, and remember what was acknowledged."""

    def __init__(self, service: Serving, clients: int, seed: int = 0):
        self.service, self._clients, self._seed = service, clients, seed
        self.seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.acknowledged: collections.Counter[str] = collections.Counter()
        self.plans: set[str] = set()
        self.errors: list[str] = []
        self._lock, self._stop = threading.Lock(), threading.Event()
        with service.client() as client:
            self.network = client.push_network(traced(NET))
            for number in range(8):
                self._kept(client.push_profile(profile(NET, number)).fingerprint)

    def run(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> float:
        """Let the clients work for so long, `meanwhile` beside; returns the seconds they took."""
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(self._clients)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        timer = threading.Timer(seconds, self._stop.set)
        timer.start()
        meanwhile()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    def stop(self) -> None:
        """Let the clients end what they are at."""
        self._stop.set()

    def _client(self, number: int) -> None:
        draw = random.Random(self._seed * 1000 + number)
        with self.service.client() as client:
            while not self._stop.is_set():
                kind = draw.choices(KINDS, SHARES)[0]
                prepared = self._prepared(kind, draw, number)
                started = time.perf_counter()
                try:
                    prepared(client)
                except (NarrowgaugeError, httpx.HTTPError) as error:
                    with self._lock:
                        self.errors.append(f"{kind}: {error}")
                else:
                    with self._lock:
                        self.seconds[kind].append(time.perf_counter() - started)

    def _prepared(self, kind: str, draw: random.Random, number: int) -> Callable[[Client], None]:
        """What a client will do; documents are made before the clock starts."""
        if kind == "push":
            # A third is pushed by several clients at once: it must be kept once.
            seed = draw.randrange(10**9) if draw.random() < 2 / 3 else draw.randrange(100)
            document = profile(NET, draw.randrange(8), seed)
            return lambda client: self._kept(client.push_profile(document).fingerprint)
        if kind == "search":
            target = Target(device=device(draw.randrange(8)).id, budget=f"{draw.uniform(0.4, 1.0):.4f}x")

            def search(client: Client) -> None:
                client.plan(self.network, [target])

            return search
        look = draw.choice((Client.devices, Client.networks, lambda client: client.network(self.network)))

        def read(client: Client) -> None:
            look(client)

        return read

    def _kept(self, name: str) -> None:
        with self._lock:
            self.acknowledged[name] += 1

    def audit(self) -> dict[str, int]:
        """What was acknowledged and is not there, what is there twice, and what lacks its rows."""
        database = Database(self.service.database_url)
        with database.read() as session:
            kept = list(session.scalars(select(ProfileRow.fingerprint)))
            names = (ProfileRow, NetworkRow, PlanRow)
            rows = sum(session.scalar(select(func.count()).select_from(table)) or 0 for table in names)
            blobs = session.scalar(select(func.count()).select_from(Blob)) or 0
            found = session.execute(select(Job.state, func.count()).group_by(Job.state))
            ends = {row[0]: row[1] for row in found}
        database.close()
        return {
            "acknowledged": len(self.acknowledged),
            "lost": len(set(self.acknowledged) - set(kept)),
            "doubled": len(kept) - len(set(kept)),
            "torn": abs(rows - blobs),
            "open_jobs": ends.get("queued", 0) + ends.get("running", 0),
            "failed_jobs": ends.get("failed", 0),
        }


def figures(seconds: list[float]) -> dict[str, float]:
    """Median and tails in milliseconds."""
    p50, p95, p99 = np.percentile(seconds or [np.nan], (50, 95, 99)) * 1e3
    return {"n": len(seconds), "p50_ms": round(p50, 1), "p95_ms": round(p95, 1), "p99_ms": round(p99, 1)}


def load(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """64 clients in a closed loop, on each database."""
    for name, url in databases():
        with serving(url, workers=options.workers) as service:
            clients = Load(service, options.clients)
            took = clients.run(options.seconds)
            count = sum(map(len, clients.seconds.values()))
            row = {"what": "load", "database": name, "clients": options.clients, "seconds": round(took, 1)}
            row |= {"requests_per_s": round(count / took, 1), "errors": len(clients.errors)}
            row |= {kind: figures(clients.seconds[kind]) for kind in KINDS} | clients.audit()
            yield row | {"first_errors": clients.errors[:3]}


def databases() -> Iterator[tuple[str, str | None]]:
    """SQLite, and PostgreSQL where a server is installed."""
    yield "sqlite", None
    if find_binaries() is None:
        print("PostgreSQL is left out: no server is installed", file=sys.stderr)
        return
    with running() as server:
        yield "postgresql", server.database("load")


# ---- scale -------------------------------------------------------------------------------------------------------
def scale(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The same questions in turn to a service with one device and network, and to one with all of them."""
    with serving() as empty, serving() as full:
        nets = [NET, *(chain(f"n{number}_", [16, 48, 64, 48, 32, 8]) for number in range(1, options.networks))]
        started = time.perf_counter()
        count = fill(full.database_url, nets, options.devices)
        filled_s = time.perf_counter() - started
        fill(empty.database_url, nets[:1], 1)
        times: dict[str, list[float]] = {"empty": [], "full": []}
        lists: dict[str, list[float]] = {"empty": [], "full": []}
        for number in range(options.questions):
            for name, service in (("empty", empty), ("full", full)):
                with service.client() as client:
                    network = client.networks()[0].fingerprint
                    target = Target(device=device(0).id, budget=f"{0.5 + 0.4 * number / options.questions:.4f}x")
                    times[name].append(clocked(lambda: client.plan(network, [target])))  # noqa: B023
                    lists[name].append(clocked(lambda: client.devices(network)))  # noqa: B023
        size = bytes_of(full.database_url)
        yield {
            "what": "scale",
            "synthetic": True,
            "devices": options.devices,
            "networks": options.networks,
            "profiles": count,
            "filled_s": round(filled_s, 1),
            "push_ms": round(1e3 * filled_s / count, 2),
            "database_bytes": size,
            "bytes_per_profile": round(size / count),
            "search_ms": {name: figures(each) for name, each in times.items()},
            "search_ratio_of_medians": round(float(np.median(times["full"]) / np.median(times["empty"])), 3),
            "list_devices_of_network_ms": {name: figures(each) for name, each in lists.items()},
        }


def fill(url: str, nets: list[Network], devices: int) -> int:
    """Push to the storage itself, as the service would: each profile in a transaction of its own."""
    storage = Storage(Database(url))
    for number, net in enumerate(nets):
        storage.add_network(traced(net, number))
    count = 0
    for net in nets:
        rows = rows_of(net, device(0), seed=0)
        for number in range(devices):
            # One formula, every machine with a speed of its own.
            mine = rows.assign(ms=rows.ms * (1 + number / 1000), layers_ms=rows.layers_ms * (1 + number / 1000))
            document = profile_of(machine(number), device(number), fingerprint(net), mine, synthetic=True)
            storage.add_profile(document)
            count += 1
    storage.database.close()
    return count


def bytes_of(url: str) -> int:
    """Size of a SQLite database, what lies in its log included."""
    database = Database(url)
    with database.read() as session:
        pages, each = (session.execute(text(f"PRAGMA {name}")).scalar_one() for name in ("page_count", "page_size"))
    database.close()
    return pages * each


def clocked(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


# ---- faults ------------------------------------------------------------------------------------------------------
def faults(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What breaks, and what of it was acknowledged and is lost."""
    for name, url in databases():
        with serving(url, workers=2) as service:
            yield killed(service, options.kills) | {"database": name}
    yield two_writers(options)
    if find_binaries() is not None:
        with running() as server:
            yield restarted(server, options.restarts)
    yield full_disk()


def killed(service: Serving, kills: int) -> dict[str, Any]:
    """kill -9 of a worker, again and again, while clients push and ask."""
    clients = Load(service, 8)
    struck = 0

    def kill() -> None:
        nonlocal struck
        for _ in range(kills):
            time.sleep(random.uniform(2.0, 5.0))
            if found := service.workers():
                os.kill(random.choice(found), signal.SIGKILL)
                struck += 1
        clients.stop()

    clients.run(kills * 10, kill)
    return {"what": "kill -9 of a worker", "struck": struck, **settled(clients)}


def two_writers(options: argparse.Namespace) -> dict[str, Any]:
    """Two services over one SQLite file, both written to."""
    with serving() as first, serving(first.database_url) as second:
        loads = [Load(first, 4, seed=1), Load(second, 4, seed=2)]
        threads = [threading.Thread(target=each.run, args=(10.0,)) for each in loads]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        loads[0].acknowledged |= loads[1].acknowledged
        loads[0].errors += loads[1].errors
        return {"what": "two services write one file", **settled(loads[0])}


def restarted(server: Server, restarts: int) -> dict[str, Any]:
    """A PostgreSQL that crashes and comes back under load."""
    with serving(server.database("restarted"), workers=2) as service:
        clients = Load(service, 8)

        def restart() -> None:
            for _ in range(restarts):
                time.sleep(3)
                server.stop("immediate")
                time.sleep(1)
                server.start()
            time.sleep(3)
            clients.stop()

        clients.run(restarts * 20, restart)
        return {"what": "PostgreSQL crashed and restarted", "restarts": restarts, **settled(clients)}


def full_disk() -> dict[str, Any]:
    """SQLite on a file system of 6 MiB: pushes until it is full, then room again."""
    with tempfile.TemporaryDirectory(prefix="narrowgauge-full-") as name:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", name], capture_output=True)
        if mounted.returncode:
            return {"what": "full disk", "left_out": "no file system can be mounted here"}
        try:
            with serving(folder=Path(name)) as service, service.client(patience_s=1.0) as client:
                return pushed_full(service, client, Path(name))
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def pushed_full(service: Serving, client: Client, folder: Path) -> dict[str, Any]:
    """Push until it is refused; then make room, and push on."""
    kept, refusals, number = set(), [], 0
    while len(refusals) < 5:
        try:
            kept.add(client.push_profile(profile(NET, number)).fingerprint)
        except NarrowgaugeError as error:
            refusals.append(str(error))
        number += 1
    readable = len(client.devices())
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    kept.add(client.push_profile(profile(NET, number)).fingerprint)
    database = Database(service.database_url)
    with database.read() as session:
        there = set(session.scalars(select(ProfileRow.fingerprint)))
        whole = session.execute(text("PRAGMA integrity_check")).scalar_one()
    database.close()
    row = {"what": "full disk", "acknowledged": len(kept), "lost": len(kept - there), "refused": refusals[0]}
    return row | {"devices_read_meanwhile": readable, "integrity": whole, "unacknowledged_kept": len(there - kept)}


def settled(clients: Load) -> dict[str, Any]:
    """Wait until every job has ended, then audit."""
    deadline = time.monotonic() + 90
    while (found := clients.audit())["open_jobs"] and time.monotonic() < deadline:
        time.sleep(0.5)
    done = sum(map(len, clients.seconds.values()))
    return {"requests": done, "errors": len(clients.errors), **found, "first_errors": clients.errors[:3]}


# ---- page --------------------------------------------------------------------------------------------------------
def page(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Cold visits by a real browser, each with an empty cache, until the page answers whoever uses it."""
    if find_chromium() is None:
        print("the page is left out: no Chromium is installed", file=sys.stderr)
        return
    for devices in (1, options.devices):
        with serving() as service, chromium() as browser:
            fill(service.database_url, [NET], devices)
            visits, left = [], "1" if devices == 1 else f"1 of {devices:,}"
            for _ in range(options.visits):
                context = browser.new_context(viewport={"width": 1280, "height": 900})
                visits.append(times_of(context.new_page(), f"{service.url}/page/", f"cpu-{devices - 1}-", left))
                context.close()
            row = {"what": "page", "synthetic": True, "devices": devices, "visits": options.visits}
            names = TIMES if devices > 1 else TIMES[:-1]  # one of one is no search
            row |= {name: round(float(np.median([visit[name] for visit in visits])), 1) for name in names}
            yield row | {"interactive_most_ms": round(max(visit["interactive_ms"] for visit in visits), 1)}


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "load": load,
    "scale": scale,
    "faults": faults,
    "page": page,
}


def main(argv: list[str] | None = None) -> int:
    """Run the parts and print a line per row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.service", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load on each database (default: 60)")
    parser.add_argument("--workers", type=int, default=2, help="searching processes under load (default: 2)")
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--questions", type=int, default=30, help="searches of each service at scale (default: 30)")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--visits", type=int, default=9, help="of the page, each with an empty cache (default: 9)")
    parser.add_argument("--out", type=Path, help="a file for the rows, one JSON object a line")
    options = parser.parse_args(argv)
    for part in options.parts or PARTS:
        for row in PARTS[part](options):
            print(json.dumps(row), flush=True)
            add_rows(options.out, [row])
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
