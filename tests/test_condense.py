"""Condensation: what the plan gives up reaches nothing, and the cut then changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import network
from benchmarks.checks import random_keep, relative_difference
from compress.condense import Condenser, Slices, costs_per_channel, threshold
from network.types import Group, Keep, Network
from tests.helpers import FP32, IMAGE, NETWORKS


def traced(name: str) -> tuple[torch.nn.Module, network.Network]:
    model = NETWORKS[name]()
    return model, network.trace(model, (torch.randn(IMAGE),))


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 10)), min_size=1, max_size=20),
    st.floats(0, 1.2),
)
@settings(max_examples=200, deadline=None)
def test_the_threshold_is_the_least_that_brings_the_weighted_mass_into_the_budget(pairs, share):
    sizes, costs = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    budget = share * float((sizes * costs).sum())
    found = threshold(sizes, costs, budget)
    mass = float((costs * (sizes - found * costs).clamp_min(0)).sum())
    assert mass <= budget + 1e-9 * (1 + budget)
    if found > 0:
        assert mass >= budget - 1e-9 * (1 + budget)


def condenser_of(model: nn.Module, net: Network, keep: Keep, **options: Any) -> Condenser:
    """A condenser for which a survivor counts, and all else counts for nothing, so that none comes back."""
    importance = {
        g.name: np.isin(np.arange(g.width), keep.get(g.name, range(g.width))).astype(float) for g in net.groups
    }
    widths = {group: int(scores.sum()) for group, scores in importance.items()}
    return Condenser(model, copy.deepcopy(model), net, widths, importance, **{"costs": {}} | options)


@pytest.mark.parametrize("kind", ["group-l2", "l1"])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_condensed_network_loses_nothing_at_the_cut(name, kind):
    model, net = traced(name)
    keep = random_keep(net, whole=0)
    condenser = condenser_of(model, net, keep, entries=kind == "l1")
    for progress in np.linspace(0, 1, 7):
        condenser.after_step(float(progress))
    report = condenser.report()
    assert report.reached
    assert report.returned == 0
    x = torch.randn(4, *IMAGE[1:])
    with torch.no_grad():
        assert relative_difference(network.narrow(model, net, keep)(x), model(x)) < FP32


def test_the_mass_falls_with_progress_and_survivors_stay_untouched():
    model, net = traced("generator")
    group = max(net.groups, key=lambda g: g.width)
    keep = {group.name: list(range(group.width // 2))}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    condenser = condenser_of(model, net, keep)
    masses = []
    for progress in (0.1, 0.3, 0.5, 0.7, 0.9):
        condenser.after_step(progress)
        masses.append(condenser.report().mass_left)
    assert masses == sorted(masses, reverse=True)
    assert masses[0] < 1
    kept = network.narrowing.positions(net, keep)
    for name, p in model.named_parameters():
        then = before[name]
        for dim, places in kept.get(name, {}).items():
            p, then = (t.index_select(dim, torch.from_numpy(places)) for t in (p, then))
        assert torch.equal(p, then)


def test_a_group_that_costs_more_is_emptied_first():
    model, net = traced("classifier")
    keep = {group.name: list(range(group.width // 2)) for group in net.groups}
    dear, cheap = net.groups[0].name, net.groups[1].name
    start = masses(model, net, keep)
    condenser_of(model, net, keep, costs={dear: 4.0, cheap: 0.25}).after_step(0.4)
    left = masses(model, net, keep)
    assert left[dear] / start[dear] < left[cheap] / start[cheap]


def masses(model: nn.Module, net: Network, keep: Keep) -> dict[str, float]:
    """The norms of what each group gives up, added."""
    parameters = dict(model.named_parameters())
    gone = {g.name: torch.from_numpy(np.setdiff1d(np.arange(g.width), keep[g.name])) for g in net.groups}
    return {group.name: float(Slices(group, parameters).norms()[gone[group.name]].sum()) for group in net.groups}


def grown(model: nn.Module, group: Group, channel: int, factor: float) -> None:
    Slices(group, dict(model.named_parameters())).scale(torch.tensor([channel]), torch.tensor([factor]))


def test_a_channel_that_training_makes_grow_comes_back_for_one_that_fades():
    model, net = traced("classifier")
    group = net.groups[0]
    importance = {group.name: np.linspace(2, 1, group.width)}
    widths = {group.name: group.width // 2}
    original = copy.deepcopy(model)
    condenser = Condenser(model, original, net, widths, importance, costs={})
    assert condenser.keep[group.name] == tuple(range(widths[group.name]))
    grown(model, group, group.width - 1, 2.0)
    grown(model, group, 0, 0.1)
    condenser.after_step(0.1)
    assert set(condenser.keep[group.name]) == {*range(1, widths[group.name]), group.width - 1}
    anew = Condenser(model, original, net, widths, importance, costs={})
    assert anew.keep == condenser.keep
    anew.after_step(1.0)
    assert anew.report().returned == 1
    assert anew.report().reached
    x = torch.randn(IMAGE)
    with torch.no_grad():
        assert relative_difference(network.narrow(model, net, anew.keep)(x), model(x)) < FP32


def test_a_channel_costs_what_its_layers_take_shared_among_its_group():
    _, net = traced("classifier")
    costs = costs_per_channel({layer.name: 1.0 for layer in net.layers}, net)
    assert costs.keys() == net.widths.keys()
    assert all(0.25 <= cost <= 4 for cost in costs.values())
    assert costs_per_channel({}, net) == dict.fromkeys(net.widths, 1.0)
