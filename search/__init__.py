"""Third room of the spine: what to keep, what a budget allows, and the plan that proves it.

Nothing here imports torch until a name that needs it is used, so that a plan can be searched from a table alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.budget import Budget, parse_budget
    from search.importance import magnitude, taylor
    from search.plan import Feed, ModelReference, Plan, PlanLayer, Settings, load_plan
    from search.planner import resolve, search
    from search.space import Factor, SearchSpace, SumVariable, Variable
    from search.task import Imitation, Task, load_task
    from search.weights import weights_sha256

__all__ = [
    "Budget",
    "Factor",
    "Feed",
    "Imitation",
    "ModelReference",
    "Plan",
    "PlanLayer",
    "SearchSpace",
    "Settings",
    "SumVariable",
    "Task",
    "Variable",
    "load_plan",
    "load_task",
    "magnitude",
    "parse_budget",
    "resolve",
    "search",
    "taylor",
    "weights_sha256",
]

_MODULES = {
    "search.budget": ("Budget", "parse_budget"),
    "search.importance": ("magnitude", "taylor"),
    "search.plan": ("Feed", "ModelReference", "Plan", "PlanLayer", "Settings", "load_plan"),
    "search.planner": ("resolve", "search"),
    "search.space": ("Factor", "SearchSpace", "SumVariable", "Variable"),
    "search.task": ("Imitation", "Task", "load_task"),
    "search.weights": ("weights_sha256",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'search' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
