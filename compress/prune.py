"""Second stage: the cut. Channels outside the plan go; what their loss costs is measured by the pipeline."""

from __future__ import annotations

from torch import nn

import network
from network.errors import PlanError
from network.types import Network
from search.plan import Plan
from search.weights import weights_sha256

__all__ = ["check_plan", "prune"]


def check_plan(plan: Plan, model: nn.Module, net: Network) -> None:
    """Raises PlanError unless the plan was made for this network and, where it says so, for these weights."""
    if plan.widths.keys() != net.widths.keys():
        odd = sorted(plan.widths.keys() ^ net.widths.keys())[0]
        owner = "the plan" if odd in plan.widths else "the network"
        raise PlanError(f"only {owner} has a channel group {odd!r}: the plan is of another network; search again")
    for group, scores in plan.importance.items():
        if len(scores) != net.widths[group]:
            raise PlanError(
                f"group {group!r} has {net.widths[group]} channels and {len(scores)} in the plan: "
                "the plan is of another network; search again"
            )
    digest = plan.model.weights_sha256
    if digest and digest != weights_sha256(model):
        raise PlanError(
            f"the plan was searched for other weights (sha256 {digest[:12]}…); give the same --weights, or search again"
        )


def prune(plan: Plan, model: nn.Module, net: Network) -> nn.Module:
    """A copy of `model` with each group's most important channels only; `model` is left as it is."""
    return network.narrow(model, net, plan.keep)
