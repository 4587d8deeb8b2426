"""Hard-concrete gates: as often open as the ramp allows, trained with the network, in the end nothing but weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import network
from benchmarks.checks import relative_difference
from compress.condense import Condenser
from compress.gates import CLOSED, Gated, chance_open, shifted
from tests.helpers import FP32, IMAGE, NETWORKS


def gated_of(name: str) -> tuple[Gated, network.Network, dict[str, np.ndarray]]:
    model = NETWORKS[name]().eval()
    net = network.trace(model, (torch.randn(IMAGE),))
    importance = {g.name: np.random.default_rng(0).permutation(g.width).astype(float) for g in net.groups}
    widths = {g.name: max(1, g.width // 2) for g in net.groups}
    return Gated(copy.deepcopy(model), net, widths, importance), net, importance


def folded_keep(
    gated: Gated, original: torch.nn.Module, net: network.Network, importance
) -> dict[str, tuple[int, ...]]:
    widths = {g.name: max(1, g.width // 2) for g in net.groups}
    return Condenser(gated.fold(), original, net, widths, importance, costs={}).keep


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.floats(0.05, 1))
def test_a_shift_brings_the_expected_number_of_open_gates_to_what_is_allowed(values, share):
    log_alpha = torch.tensor(values, dtype=torch.float64)
    allowed = share * len(values)
    after = shifted(log_alpha, allowed)
    assert float(chance_open(after).sum()) <= allowed + 1e-9
    moved = log_alpha - after
    assert torch.allclose(moved, moved[0].expand_as(moved), atol=1e-9)
    if float(moved[0]) > 0:
        assert float(chance_open(after).sum()) == pytest.approx(allowed, rel=1e-6)


def test_a_gate_is_open_as_often_as_its_formula_says():
    gated, _, _ = gated_of("classifier")
    gated.train()
    torch.manual_seed(0)
    for value in (-2.0, 0.0, 1.5):
        log_alpha = torch.full((20000,), value)
        share = float((gated._drawn(log_alpha) > 0).float().mean())
        assert share == pytest.approx(float(chance_open(log_alpha[:1])), abs=0.015)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_folded_gates_give_the_same_outputs_and_the_cut_then_loses_nothing(name):
    gated, net, importance = gated_of(name)
    original = copy.deepcopy(gated.model)
    gated.eval().after_step(1.0)
    x = torch.randn(4, *IMAGE[1:])
    with torch.no_grad():
        before = gated(x)
        keep = folded_keep(gated, original, net, importance)
        after = gated.model(x)
        narrow = network.narrow(gated.model, net, keep)(x)
    assert {group: len(kept) for group, kept in keep.items()} == {g.name: max(1, g.width // 2) for g in net.groups}
    assert relative_difference(narrow, after) < FP32
    assert relative_difference(after, before) < 1e-3


def test_training_decides_which_gates_close():
    gated, net, importance = gated_of("classifier")
    original = copy.deepcopy(gated.model)
    group = net.groups[0]
    least = int(np.argmin(importance[group.name]))
    gated.log_alpha[0].data[least] += 10
    keep = folded_keep(gated, original, net, importance)
    assert least in keep[group.name]
    others = np.argsort(-importance[group.name])[: len(keep[group.name]) - 1].tolist()
    assert sorted([*others, least]) == list(keep[group.name])


def test_gates_learn_with_the_weights_and_survive_a_checkpoint():
    gated, net, _ = gated_of("generator")
    gated.train()
    gated.after_step(0.4)
    output = gated(torch.randn(IMAGE))
    output = output if isinstance(output, torch.Tensor) else output[0]
    output.square().mean().backward()
    assert all(log_alpha.grad is not None and bool(log_alpha.grad.abs().sum() > 0) for log_alpha in gated.log_alpha)
    assert any(p.grad is not None for p in gated.model.parameters())
    gated.after_step(1.0)
    again, _, _ = gated_of("generator")
    again.load_state_dict(gated.state_dict())
    assert bool(again.settled)
    closed = [int((each == CLOSED).sum()) for each in again.log_alpha]
    assert closed == [g.width - max(1, g.width // 2) for g in net.groups if g.width > 1]
