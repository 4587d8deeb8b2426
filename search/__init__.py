"""Third room of the spine: what to keep, what a budget allows, and the plan that proves it.

Nothing here imports torch until a name that needs it is used, so that a plan can be searched from a table alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from network.lazy import lazily

if TYPE_CHECKING:
    from search.budget import Budget, parse_budget
    from search.importance import importance_of, magnitude, sensitivity, taylor
    from search.plan import Feed, ModelReference, Plan, PlanLayer, Settings, load_plan
    from search.planner import resolve, search
    from search.space import Factor, SearchSpace, SumVariable, Variable
    from search.task import Imitation, Task, load_task, task_of
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
    "importance_of",
    "load_plan",
    "load_task",
    "magnitude",
    "parse_budget",
    "resolve",
    "search",
    "sensitivity",
    "task_of",
    "taylor",
    "weights_sha256",
]

__getattr__ = lazily(
    __name__,
    {
        "budget": ("Budget", "parse_budget"),
        "importance": ("importance_of", "magnitude", "sensitivity", "taylor"),
        "plan": ("Feed", "ModelReference", "Plan", "PlanLayer", "Settings", "load_plan"),
        "planner": ("resolve", "search"),
        "space": ("Factor", "SearchSpace", "SumVariable", "Variable"),
        "task": ("Imitation", "Task", "load_task", "task_of"),
        "weights": ("weights_sha256",),
    },
)
