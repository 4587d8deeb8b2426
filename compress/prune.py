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
    plan.check(net)
    digest = plan.model.weights_sha256
    if digest and digest != weights_sha256(model):
        raise PlanError(
            f"the plan was searched for other weights (sha256 {digest[:12]}…); give the same --weights, or search again"
        )


def prune(plan: Plan, model: nn.Module, net: Network) -> nn.Module:
    """A copy of `model` with each group's most important channels only; `model` is left as it is."""
    return network.narrow(model, net, plan.keep)
