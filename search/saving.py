"""Several plans as files: one per plan, which apply-plan takes, and a table of them as JSON and CSV. No torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from network.errors import StoreError
from network.files import write_atomically
from search.plan import Plan

__all__ = ["SCHEMA", "plans_document", "save_plans"]

SCHEMA = 1
COLUMNS = ("plan", "budget_ms", "predicted_ms", "speedup", "importance_kept", "status", "gap", "file")


def save_plans(folder: Path, name: str, plans: Sequence[Plan], **facts: Any) -> dict[str, Any]:
    """Write name.json, name.csv and plan-*.json to the folder, and return what name.json says, `facts` included.

    Plans of an earlier run in the same folder go. Raises StoreError.
    """
    document = plans_document(plans, **facts)
    try:
        folder.mkdir(exist_ok=True)
        for old in folder.glob("plan-*.json"):
            old.unlink()
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror}; give another -o") from None
    for row, plan in zip(document["plans"], plans, strict=True):
        plan.save(folder / row["file"])
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(document["plans"])
    write_atomically(folder / f"{name}.csv", table.getvalue().encode())
    write_atomically(folder / f"{name}.json", (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    return document


def plans_document(plans: Sequence[Plan], **facts: Any) -> dict[str, Any]:
    """Several plans of one network as plain JSON data: a row and the widths of each, `facts` beside them."""
    return {
        "schema": SCHEMA,
        "device": plans[0].device,
        "runtime": plans[0].runtime,
        "precision": plans[0].precision,
        "baseline_ms": plans[0].baseline_ms,
        **facts,
        "plans": [_row(number, plan) | {"widths": dict(plan.widths)} for number, plan in enumerate(plans, 1)],
    }


def _row(number: int, plan: Plan) -> dict[str, Any]:
    return {
        "plan": number,
        "budget_ms": plan.budget_ms,
        "predicted_ms": plan.predicted_ms,
        "speedup": plan.baseline_ms / plan.predicted_ms,
        "importance_kept": plan.importance_kept,
        "status": plan.status,
        "gap": plan.gap,
        "file": f"plan-{number:03d}.json",
    }
