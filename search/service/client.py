"""The service from Python: pushes, plans, fronts and explanations, as the commands ask for them.

client = Client("http://127.0.0.1:8765")
network = client.push_network(describe(net, importance, reference))
plan = client.plan(network, [Target(device="amd-epyc-2c-1f3a9c", budget="20ms")])
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

import network.errors
from latency.device import Device, choose_device, this_machine
from latency.store import Store, installed
from network.errors import BudgetError, InfeasibleBudgetError, NarrowgaugeError, ServiceError
from search.plan import Plan, Settings, plan_of
from search.service.profiles import profiles_of
from search.service.replies import DeviceSummary, JobStatus, Kept, NetworkSummary, Problem
from search.service.schemas import (
    DeviceChoice,
    Document,
    ExplanationQuestion,
    FrontQuestion,
    PlanDocument,
    PlanQuestion,
    Profile,
    SettingsFields,
    SweepQuestion,
    Target,
    TopQuestion,
)
from search.service.traced import TracedNetwork

__all__ = ["Client", "push_profiles", "reach"]

TOKEN = "NARROWGAUGE_TOKEN"
WAIT_S = 20
PATIENCE_S = 30.0
AGAIN_S = 0.5

Seen = Callable[[JobStatus], None]
"""Called with how far a long question is."""


class Client:
    """One service. Every call may raise ServiceError; a question also what `search` raises for it.

    url: such as http://127.0.0.1:8765. token: default $NARROWGAUGE_TOKEN. A service that is away, or busy, is asked
    again for half a minute: every push and question may be sent twice.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        patience_s: float = PATIENCE_S,
    ):
        token = token or os.environ.get(TOKEN)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ServiceError(f"{url!r} is no URL of a service; write http://127.0.0.1:8765")
        timeout = httpx.Timeout(60.0, connect=5.0)
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)
        self.url, self._patience_s = url, patience_s

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def healthy(self) -> None:
        """Raises ServiceError unless the service answers."""
        self._send("GET", "/healthz")

    # ---- pushes ------------------------------------------------------------------------------------------------------
    def push_profile(self, profile: Profile) -> Kept:
        """Push what a device measured in one network."""
        return self._push("/profiles", profile)

    def push_network(self, traced: TracedNetwork) -> str:
        """Push a network with its importance; returns its fingerprint."""
        return self._push("/networks", traced).fingerprint

    def push_plan(self, plan: Plan) -> str:
        """Push a plan; returns its fingerprint."""
        return self._push("/plans/import", PlanDocument.model_validate_json(plan.to_json())).fingerprint

    # ---- what is there -----------------------------------------------------------------------------------------------
    def devices(self, network: str | None = None) -> list[DeviceSummary]:
        """Every device that was measured; `network`: that it can be searched for."""
        return [DeviceSummary.model_validate(row) for row in self._pages("/devices", {"network": network})]

    def networks(self) -> list[NetworkSummary]:
        """Every network that was pushed."""
        return [NetworkSummary.model_validate(row) for row in self._pages("/networks", {})]

    def network(self, fingerprint: str) -> TracedNetwork:
        """A network as it was pushed."""
        return TracedNetwork.model_validate_json(self._send("GET", f"/networks/{fingerprint}").content)

    def choose(self, machine: str | None, runtime: str, precision: str, threads: int | None) -> DeviceChoice:
        """The device that `search` would choose from these: this machine unless one is named. Raises DeviceError."""
        known = [Device(d.machine, d.runtime, d.precision, d.threads, d.version) for d in self.devices()]
        asked, here = (machine, runtime, precision, threads), this_machine()
        found = choose_device(known, *asked, mine=here.id, cores=here.cores, installed=installed, where=self.url)
        return DeviceChoice(
            device=found.machine,
            runtime=found.runtime,
            precision=found.precision,
            threads=found.threads,
            version=found.version,
        )

    # ---- questions ---------------------------------------------------------------------------------------------------
    def plan(self, network: str, targets: Sequence[Target], settings: Settings | None = None) -> Plan:
        """The best plan that keeps the budget of every target."""
        question = PlanQuestion(network=network, devices=tuple(targets), settings=_fields(settings))
        return plan_of(self._ask("/plans", question))

    def top(self, network: str, targets: Sequence[Target], count: int, settings: Settings | None = None) -> list[Plan]:
        """At most `count` plans of one budget that are well apart, the best first."""
        question = TopQuestion(network=network, devices=tuple(targets), count=count, settings=_fields(settings))
        return self._several(self._ask("/tops", question))

    def front(
        self,
        network: str,
        device: DeviceChoice,
        count: int,
        settings: Settings | None = None,
        others: Sequence[Target] = (),
        seen: Seen | None = None,
    ) -> list[Plan]:
        """At most `count` plans from the fastest to the full network."""
        question = FrontQuestion(
            network=network, device=device, others=tuple(others), count=count, settings=_fields(settings)
        )
        return self._several(self._ask("/fronts", question, seen))

    def explain(self, plan: str) -> dict[str, Any]:
        """What `search --explain --json` says of a stored plan, by its fingerprint."""
        return self._ask("/explanations", ExplanationQuestion(plan=plan))

    def sweep(
        self,
        network: str,
        devices: Sequence[DeviceChoice],
        budgets: Sequence[str],
        settings: Settings | None = None,
        seen: Seen | None = None,
    ) -> list[dict[str, Any]]:
        """A row for every device and budget: the plan's fingerprint and figures, or why there is none."""
        question = SweepQuestion(
            network=network, devices=tuple(devices), budgets=tuple(budgets), settings=_fields(settings)
        )
        return self._ask("/sweeps", question, seen)["rows"]

    def job(self, id: str, wait_s: float = 0.0) -> JobStatus:
        """How far a job is."""
        return JobStatus.model_validate_json(self._send("GET", f"/jobs/{id}", params={"wait": wait_s}).content)

    def cancel(self, id: str) -> JobStatus:
        """Stop a job."""
        return JobStatus.model_validate_json(self._send("POST", f"/jobs/{id}/cancel").content)

    # ---- parts -------------------------------------------------------------------------------------------------------
    def _push(self, path: str, document: Document) -> Kept:
        return Kept.model_validate_json(self._send("POST", path, content=document.model_dump_json()).content)

    def _ask(self, path: str, question: Document, seen: Seen | None = None) -> Any:
        """The answer to a question, however long it takes."""
        wait = 1 if seen else WAIT_S
        response = self._send("POST", path, content=question.model_dump_json(), params={"wait": wait})
        if response.status_code != 202:
            return response.json()
        status = JobStatus.model_validate_json(response.content)
        while status.state in ("queued", "running"):
            if seen:
                seen(status)
            status = self.job(status.id, wait)
        if status.state != "done" or status.answer is None:
            raise _error(status.error or Problem(detail=f"job {status.id} was {status.state}"), 422)
        answer = status.answer
        return self._send("GET", f"/plans/{answer['plan']}").json() if path == "/plans" else answer

    def _several(self, document: Mapping[str, Any]) -> list[Plan]:
        return [plan_of(self._send("GET", f"/plans/{row['fingerprint']}").json()) for row in document["plans"]]

    def _pages(self, path: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        after, limit = 0, 1000
        named = {key: value for key, value in params.items() if value is not None}
        while True:
            rows = self._send("GET", path, params={**named, "after": after, "limit": limit}).json()
            yield from rows
            if len(rows) < limit:
                return
            after = rows[-1]["cursor"]

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Raises what the service says, as `search` would have said it."""
        deadline = time.monotonic() + self._patience_s
        if "content" in request:
            request["headers"] = {"content-type": "application/json"}
        while True:
            try:
                response = self._http.request(method, path, **request)
            except httpx.TransportError as error:
                response, reason = None, f"{type(error).__name__}: {error}"
            if response is not None and response.status_code not in (429, 503):
                break
            if time.monotonic() >= deadline:
                if response is not None:
                    break
                raise ServiceError(f"cannot reach {self.url} ({reason}); is it running? narrowgauge serve") from None
            time.sleep(AGAIN_S)
        if response.is_success:
            return response
        raise _error(_problem(response), response.status_code)


def reach(url: str) -> None:
    """Raises ServiceError if no service answers there: better said before an hour of measuring than after it."""
    with Client(url, patience_s=0.0) as client:
        client.healthy()


def push_profiles(
    folder: Any, url: str, devices: Sequence[Device] | None = None, patience_s: float = PATIENCE_S
) -> str:
    """Push what a store holds, of these devices or of all; says what was new. `profile-device --push` calls it.

    Raises ServiceError if no service answers there, also where there is nothing to push.
    """
    with Client(url, patience_s=patience_s) as client:
        client.healthy()
        kept = [client.push_profile(profile) for profile in profiles_of(Store(folder), devices)]
    return f"{sum(each.created for each in kept)} of {len(kept)} profiles are new at {url}"


def _fields(settings: Settings | None) -> SettingsFields:
    names = SettingsFields.model_fields
    return SettingsFields(**{name: getattr(settings or Settings(), name) for name in names})


def _problem(response: httpx.Response) -> Problem:
    try:
        return Problem.model_validate(response.json())
    except ValueError:
        return Problem(detail=f"{response.request.url} answered {response.status_code}, and is no Narrowgauge service")


def _error(problem: Problem, status: int) -> NarrowgaugeError:
    """The error that `search` raises here, where the question was at fault; else a ServiceError."""
    kind = getattr(network.errors, problem.type or "", None)
    if kind is InfeasibleBudgetError:
        return BudgetError(problem.detail)
    if isinstance(kind, type) and issubclass(kind, NarrowgaugeError):
        return kind(problem.detail)
    if status == 401:
        return ServiceError(f"{problem.detail}; here it is read from ${TOKEN}")
    return ServiceError(problem.detail)
