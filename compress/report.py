"""report.json: what was promised, what was delivered, and what each stage did; plain numbers, every one measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from compress.delivery import Delivery, Round
from compress.recipe import Recipe
from network.types import Network
from search.plan import Plan

__all__ = ["SCHEMA", "STAGES", "Stage", "build_report"]

SCHEMA = 1

STAGES = ("original", "condensed", "pruned", "repaired", "distilled")
"""In the order of the work; a stage that was left out is absent from the report."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage's outcome: held-out quality, the error it was judged by, its seconds, and details of its own.

    interval: the 95 % bootstrap interval of each metric that is a mean over items.
    """

    quality: Mapping[str, float]
    error: float
    seconds: float
    detail: Mapping[str, Any] = field(default_factory=dict)
    interval: Mapping[str, Sequence[float]] = field(default_factory=dict)


def build_report(
    plan: Plan,
    net: Network,
    found: Delivery,
    last: Round,
    stages: Mapping[str, Stage],
    recipe: Recipe,
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """The report as one JSON document; `last` is the final measurement, `notes` what the pipeline adds as it is."""
    present = [name for name in STAGES if name in stages]
    return {
        "schema": SCHEMA,
        "model": asdict(plan.model),
        "feed": asdict(plan.feed),
        "device": plan.device,
        "runtime": plan.runtime,
        "precision": plan.precision,
        "threads": plan.threads,
        "budget": plan.budget,
        "baseline_ms": last.baseline_ms,
        "budget_ms": last.budget_ms,
        "predicted_ms": plan.predicted_ms,
        "delivered_ms": last.delivered_ms,
        "speedup": last.baseline_ms / last.delivered_ms,
        "met": last.ratio <= 1,
        "rounds": [_round(each) for each in found.rounds],
        "quality": {name: dict(stages[name].quality) for name in present},
        "interval": {name: {metric: list(ends) for metric, ends in stages[name].interval.items()} for name in present},
        "error": {name: stages[name].error for name in present},
        "seconds": {name: stages[name].seconds for name in present},
        "parameters": {"original": net.parameter_count(), "delivered": net.parameter_count(plan.widths)},
        "macs": {"original": net.macs(), "delivered": net.macs(plan.widths)},
        "others": [asdict(other) for other in plan.others],
        "widths": dict(plan.widths),
        "full_widths": net.widths,
        "layers": [asdict(layer) for layer in plan.layers],
        "frozen": [asdict(frozen) for frozen in plan.frozen],
        "proof": {key: getattr(plan, key) for key in ("status", "objective", "bound", "gap", "choices_log10")},
        "stages": {name: dict(stages[name].detail) for name in present if stages[name].detail},
        "recipe": recipe.as_dict(),
    } | dict(notes)


def _round(found: Round) -> dict[str, float]:
    return {
        "predicted_ms": found.predicted_ms,
        "delivered_ms": found.delivered_ms,
        "budget_ms": found.budget_ms,
        "baseline_ms": found.baseline_ms,
    }
