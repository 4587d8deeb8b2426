"""What `search` says of its plans. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.plan import Plan

if TYPE_CHECKING:
    from network.types import Network

__all__ = ["plans_table", "summary"]

SLOWEST = 8


def summary(plan: Plan, net: Network, output: Path | None) -> str:
    """What a reader wants to know of a plan, in a dozen lines."""
    parameters, macs = net.parameter_count(plan.widths), net.macs(plan.widths)
    ratio, full = plan.predicted_ms / plan.baseline_ms, net.parameter_count()
    lines = [
        f"budget     {plan.budget_ms:.4g} ms ({plan.budget}) on {plan.device}",
        f"predicted  {plan.predicted_ms:.4g} ms, {ratio:.0%} of {plan.baseline_ms:.4g} ms",
        *(
            f"also       {other.predicted_ms:.4g} ms of {other.budget_ms:.4g} ms ({other.budget}) on {other.device} "
            f"{other.runtime} {other.precision}"
            for other in plan.others
        ),
        f"proof      {plan.status}, gap {plan.gap:.1e}",
        f"searched   10^{plan.choices_log10:.0f} plans in {plan.solve_seconds:.1f} s",
        f"parameters {parameters / 1e6:.3g} M of {full / 1e6:.3g} M",
        f"MACs       {macs / 1e9:.3g} G of {net.macs() / 1e9:.3g} G",
        f"frozen     {len(plan.frozen)} of {len(plan.frozen) + len(plan.widths)} channel groups",
        "slowest layers                             ms → ms        c_in → c_out",
    ]
    if plan.budget_ms >= plan.baseline_ms:
        lines.insert(2, "note       the full network is within the budget: nothing has to go")
    for layer in sorted(plan.layers, key=lambda layer: -layer.baseline_ms)[:SLOWEST]:
        name = f"{layer.module} {layer.name}".strip()
        lines.append(f"  {name:36.36} {layer.baseline_ms:8.3f} → {layer.ms:<8.3f} {layer.c_in} → {layer.c_out}")
    return "\n".join([*lines, *([f"plan       {output}"] if output else [])])


def plans_table(document: Mapping[str, Any], folder: Path) -> str:
    """A line for each of several plans; document: as `search.saving.save_plans` returns it."""
    lines = [f"{'plan':>4} {'ms':>9} {'speed-up':>9} {'importance':>10}  proof"]
    for row in document["plans"]:
        lines.append(
            f"{row['plan']:4} {row['predicted_ms']:9.4g} {row['speedup']:8.2f}x {row['importance_kept']:10.2%}  "
            f"{row['status']}, gap {row['gap']:.1e}{'  ← knee' if row['plan'] == document.get('knee') else ''}"
        )
    return "\n".join([*lines, f"in {folder}, each a plan for apply-plan"])
