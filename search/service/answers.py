"""From a question to its answer: the stored network and tables are opened, and `search.planner` does the rest.

Devices and their tables are settled when the question is asked (`settle`), so that a job which is taken up again, or
asked again while devices push, gives the same plan. A sweep may name a thousand devices, and takes their tables as they
are then.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Protocol

from latency import LatencyTable
from latency.device import Device
from latency.table import table_of
from network.errors import NarrowgaugeError
from network.types import Network
from search.budget import Budget, parse_budget
from search.explain import explain
from search.front import front, knee
from search.plan import Plan, Settings
from search.planner import Problem
from search.saving import plans_document
from search.service.profiles import from_parquet
from search.service.replies import Problem as Refusal
from search.service.schemas import (
    DeviceChoice,
    Document,
    ExplanationQuestion,
    FrontQuestion,
    PlanQuestion,
    Question,
    SettingsFields,
    SweepQuestion,
    Target,
    TopQuestion,
    fingerprint_of,
)
from search.service.storage import Storage
from search.service.traced import TracedNetwork

__all__ = ["QUESTIONS", "Library", "Watch", "answer", "refusal", "settle"]

QUESTIONS: dict[str, type[Document]] = {
    "plan": PlanQuestion,
    "top": TopQuestion,
    "front": FrontQuestion,
    "explanation": ExplanationQuestion,
    "sweep": SweepQuestion,
}

Table = Mapping[str, Any]
"""`device`: the fields of one; `profiles`: the fingerprints of those that make its table."""


class Watch(Protocol):
    """Who sees how far an answer is, and may stop it by raising."""

    def progress(self, done: int, total: int, partial: Mapping[str, Any] | None = None) -> None: ...


class Library:
    """The networks and tables of a storage, the last few kept open."""

    def __init__(self, storage: Storage):
        self.storage = storage
        self.network = lru_cache(maxsize=8)(self._network)
        self._table = lru_cache(maxsize=16)(self._open)

    def table(self, network: str, table: Table) -> LatencyTable:
        """The latency table of one device for one network. Raises TableError, NotFound."""
        return self._table(network, Device(**table["device"]), tuple(table["profiles"]))

    def _network(self, fingerprint: str) -> tuple[TracedNetwork, Network]:
        traced = self.storage.network(fingerprint)
        return traced, traced.to_network()

    def _open(self, network: str, device: Device, profiles: tuple[str, ...]) -> LatencyTable:
        return table_of(from_parquet(self.storage.blobs(profiles)), self.network(network)[1], device)


def settle(storage: Storage, kind: str, question: Any) -> tuple[str, dict[str, Any]]:
    """The key of a question on the tables of this moment and by this version, and what a worker is told.

    Raises NotFound for a network or plan that is not here, DeviceError for a device, BudgetError for a budget.
    """
    for text in _budgets(question):
        parse_budget(text)
    if isinstance(question, ExplanationQuestion):
        plan, _ = storage.plan(question.plan)
        choices = [_choice(promise) for promise in (plan, *plan.others)]
    else:
        storage.check_network(question.network)
        choices = [] if kind == "sweep" else _choices(question)
    tables = [_table_now(storage, choice) for choice in choices]
    settled = {"question": question.model_dump(mode="json"), "tables": tables}
    asked = {"kind": kind, "version": version("narrowgauge"), **settled}
    return uuid.uuid4().hex if kind == "sweep" else fingerprint_of(asked), settled


def answer(
    library: Library, kind: str, settled: Mapping[str, Any], watch: Watch, partial: Any = None
) -> dict[str, Any]:
    """What a job finds, as plain JSON data; plans are kept, and named by fingerprint."""
    question = QUESTIONS[kind].model_validate(settled["question"])
    find: Callable[..., dict[str, Any]] = ANSWERS[kind]
    return find(library, question, settled["tables"], watch, partial)


def refusal(error: NarrowgaugeError) -> Refusal:
    """A question's own fault, as it is told to whoever asked."""
    detail = " ".join(str(error).split())
    return Refusal(detail=detail, type=type(error).__name__, smallest_ms=getattr(error, "smallest_ms", None))


# ---- one answer per kind of question -----------------------------------------------------------------------------
def _plan(library: Library, question: PlanQuestion, tables: Sequence[Table], watch: Watch, _: Any) -> dict[str, Any]:
    problem, budget = _problem(library, question, question.devices, tables)
    plan = problem.plan(budget)
    return {"plan": _keep(library, plan, question.network)}


def _top(library: Library, question: TopQuestion, tables: Sequence[Table], watch: Watch, _: Any) -> dict[str, Any]:
    problem, budget = _problem(library, question, question.devices, tables)
    return _several(library, problem.top(budget, question.count), question.network)


def _front(library: Library, question: FrontQuestion, tables: Sequence[Table], watch: Watch, _: Any) -> dict[str, Any]:
    first = Target(**dict(question.device), budget="1x")
    problem, _budget = _problem(library, question, (first, *question.others), tables)

    def steps(ratios: Sequence[float]) -> Iterator[float]:
        for done, ratio in enumerate(ratios):
            watch.progress(done, len(ratios))
            yield ratio

    plans = front(problem, question.count, steps)
    return _several(library, plans, question.network, knee=knee(plans) + 1)


def _explanation(
    library: Library, question: ExplanationQuestion, tables: Sequence[Table], watch: Watch, _: Any
) -> dict[str, Any]:
    plan, network = library.storage.plan(question.plan)
    table, *others = (library.table(network, each) for each in tables)
    found = explain(plan, library.network(network)[1], table, others)
    return found.as_dict() | {"table_changed": table.fingerprint != plan.table_fingerprint}


def _sweep(library: Library, question: SweepQuestion, _: Sequence[Table], watch: Watch, partial: Any) -> dict[str, Any]:
    """What an earlier worker found is not searched again."""
    rows: list[dict[str, Any]] = list((partial or {}).get("rows", ()))
    cells = [Target(**dict(device), budget=budget) for device in question.devices for budget in question.budgets]
    for target in cells[len(rows) :]:
        watch.progress(len(rows), len(cells), {"rows": rows})
        rows.append(_cell(library, question, target))
    return {"rows": rows}


ANSWERS: dict[str, Callable[..., dict[str, Any]]] = {
    "plan": _plan,
    "top": _top,
    "front": _front,
    "explanation": _explanation,
    "sweep": _sweep,
}


# ---- parts -------------------------------------------------------------------------------------------------------
def _problem(
    library: Library, question: Question, targets: Sequence[Target], tables: Sequence[Table]
) -> tuple[Problem, Budget]:
    """The problem of one network on its devices, the first of which is the one that plans are searched for."""
    traced, net = library.network(question.network)
    table, *others = (library.table(question.network, each) for each in tables)
    budget, *limits = (parse_budget(target.budget) for target in targets)
    problem = Problem(
        net,
        table,
        traced.importance,
        reference=traced.to_reference(),
        feed=traced.to_feed(),
        settings=_settings(question.settings),
        others=list(zip(others, limits, strict=True)),
    )
    return problem, budget


def _settings(fields: SettingsFields) -> Settings:
    return Settings(**dict(fields))


def _keep(library: Library, plan: Plan, network: str) -> str:
    fingerprint, _ = library.storage.add_plan(plan, network)
    return fingerprint


def _several(library: Library, plans: Sequence[Plan], network: str, **facts: Any) -> dict[str, Any]:
    document = plans_document(plans, **facts)
    kept = [_keep(library, plan, network) for plan in plans]
    rows = [row | {"fingerprint": name} for row, name in zip(document["plans"], kept, strict=True)]
    return document | {"plans": rows}


CELL = ("budget_ms", "baseline_ms", "predicted_ms", "importance_kept", "status")


def _cell(library: Library, question: SweepQuestion, target: Target) -> dict[str, Any]:
    """One plan of a sweep, or why there is none: a device that cannot keep the budget ends no sweep."""
    asked = {"device": target.device, "budget": target.budget}
    try:
        problem, budget = _problem(library, question, (target,), [_table_now(library.storage, target)])
        plan = problem.plan(budget)
    except NarrowgaugeError as error:
        return asked | {"error": refusal(error).model_dump()}
    kept = _keep(library, plan, question.network)
    return asked | {"plan": kept} | {name: getattr(plan, name) for name in CELL}


def _table_now(storage: Storage, choice: DeviceChoice) -> dict[str, Any]:
    """The device that is meant, whatever is pushed later, and what makes its table at this moment."""
    device = storage.choose(choice)
    return {"device": asdict(device), "profiles": storage.newest(device)}


def _choices(question: Any) -> list[DeviceChoice]:
    if isinstance(question, FrontQuestion):
        return [question.device, *question.others]
    return list(question.devices)


def _choice(promise: Any) -> DeviceChoice:
    names = ("device", "runtime", "precision", "threads")
    return DeviceChoice(**{name: getattr(promise, name) for name in names})


def _budgets(question: Any) -> list[str]:
    targets = getattr(question, "others", getattr(question, "devices", ()))
    return [*getattr(question, "budgets", ()), *(each.budget for each in targets if isinstance(each, Target))]
