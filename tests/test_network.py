"""A narrowed network equals the dense one with the same channels silenced, and nothing else about it changes."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import network
from benchmarks.checks import random_keep, relative_difference, worst_difference
from network.errors import TraceError
from network.types import widths_of
from tests.helpers import EXACT, FP32, IMAGE, NETWORKS, residual, unet

PHOTO = torch.randn(2, *IMAGE[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@cache
def traced(name: str) -> tuple[nn.Module, network.Network]:
    """A small network in float64, traced; neither is ever changed."""
    model = NETWORKS[name]().double()
    return model, network.trace(model, (PHOTO,))


def nothing_cut(net: network.Network) -> dict[str, list[int]]:
    """Every channel of every group."""
    return {group.name: list(range(group.width)) for group in net.groups}


# ---- exactness -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_narrowed_network_equals_the_masked_dense_one(name: str, seed: int) -> None:
    model, net = traced(name)
    keep = random_keep(net, seed)
    with torch.no_grad():
        thin, masked = network.narrow(model, net, keep)(PHOTO), network.mask(model, net, keep)(PHOTO)
    assert relative_difference(thin, masked) <= EXACT


@pytest.mark.parametrize("name", NETWORKS)
def test_each_group_can_be_cut_to_one_channel_alone(name: str) -> None:
    model, net = traced(name)
    for group in net.groups:
        keep = {group.name: list(range(group.width - 1, group.width))}
        with torch.no_grad():
            thin, masked = network.narrow(model, net, keep)(PHOTO), network.mask(model, net, keep)(PHOTO)
        assert relative_difference(thin, masked) <= EXACT, group.name


def test_masking_changes_the_output_so_that_the_oracle_can_fail() -> None:
    model, net = traced("residual")
    with torch.no_grad():
        difference = relative_difference(network.mask(model, net, random_keep(net))(PHOTO), model(PHOTO))
    assert difference > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_keeping_every_channel_changes_nothing(name: str) -> None:
    model, net = traced(name)
    thin = network.narrow(model, net, nothing_cut(net))
    assert {k: v.shape for k, v in thin.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(thin(PHOTO), model(PHOTO))


def test_narrowing_twice_equals_narrowing_once() -> None:
    model, net = traced("unet")
    first = random_keep(net, 3, most=0.5)
    thin = network.narrow(model, net, first)
    again = network.trace(thin, (PHOTO,))
    second = random_keep(again, 4, most=0.5)
    assert [group.name for group in again.groups] == [group.name for group in net.groups]
    both = {name: [first[name][i] for i in second[name]] for name in first}
    once = network.narrow(model, net, both).state_dict()
    twice = network.narrow(thin, again, second).state_dict()
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_weights_in_half_precision_narrow_to_the_same_slices() -> None:
    model, net = traced("generator")
    keep = random_keep(net, 5)
    half = network.narrow(copy.deepcopy(model).half(), net, keep).state_dict()
    double = network.narrow(model, net, keep).state_dict()
    assert all(value.dtype == torch.float16 for value in half.values())
    assert all(torch.equal(half[key], double[key].half()) for key in half)


# ---- groups ----------------------------------------------------------------------------------------------------
def test_a_residual_sum_couples_what_it_adds() -> None:
    _, net = traced("residual")
    groups = {group.name: group for group in net.groups}
    assert groups["down"].producers == ("down", "shortcut", "block2.conv2")
    assert groups["down"].consumers == ("block2.conv1", "head")
    assert groups["block1.conv1"].producers == ("block1.conv1",)


def test_concatenated_branches_stay_apart() -> None:
    _, net = traced("unet")
    groups = {group.name: group for group in net.groups}
    assert groups["up2"].consumers == ("up1",)
    assert groups["down1"].consumers == ("down2", "up1")
    layer = next(layer for layer in net.layers if layer.module == "up1" and layer.spec.op == "conv_transpose2d")
    assert dict(layer.c_in.terms) == {"up2": 1, "down1": 1}


def test_flattened_channels_count_once_per_position() -> None:
    _, net = traced("classifier")
    layer = next(layer for layer in net.layers if layer.module == "hidden" and layer.spec.op == "linear")
    assert layer.c_in.terms == (("conv2", 16),)


def test_inputs_and_outputs_are_frozen_with_their_reasons() -> None:
    _, net = traced("unet")
    reasons = {frozen.name: " ".join(frozen.reasons) for frozen in net.frozen}
    assert "the network's input" in reasons["enter (input)"]
    assert "the network's output" in reasons["leave"]


@pytest.mark.parametrize("name", NETWORKS)
def test_members_cover_every_channel_once(name: str) -> None:
    _, net = traced(name)
    for group in net.groups:
        for member in group.members:
            assert member.index.shape[0] == group.width
            assert len(np.unique(member.index)) == member.index.size
            assert member.index.max() < net.parameters[member.parameter][member.dim]


@pytest.mark.parametrize("name", NETWORKS)
def test_scaling_a_channel_where_it_is_read_is_scaling_it_where_it_is_made(name: str) -> None:
    """A gate on the consumers equals one on the activation: doubling producers' outputs is doubling consumers'."""
    model, net = traced(name)
    group = net.groups[-1]
    gated, zeroed = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for member in group.members:
            if member.role == "consumer":
                index = torch.from_numpy(member.index[0])
                gated.get_parameter(member.parameter).index_fill_(member.dim, index, 0.0)
        masked = network.mask(zeroed, net, {group.name: list(range(1, group.width))})
        assert relative_difference(gated(PHOTO), masked(PHOTO)) <= EXACT


# ---- layers ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETWORKS)
def test_macs_at_any_width_are_those_torch_counts(name: str) -> None:
    model, net = traced(name)
    for keep in (nothing_cut(net), random_keep(net, 6, whole=0)):
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network.narrow(model, net, keep)(PHOTO)
        assert net.macs(widths_of(keep)) == counter.get_total_flops() / 2


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_at_any_width_are_counted(name: str) -> None:
    model, net = traced(name)
    keep = random_keep(net, 7, whole=0)
    count = sum(p.numel() for p in network.narrow(model, net, keep).parameters())
    assert net.parameter_count(widths_of(keep)) == count


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_have_the_names_and_the_widths_of_the_narrowed_networks_export(name: str) -> None:
    model, net = traced(name)
    keep = random_keep(net, 8, whole=0)
    program = network.export(network.narrow(model, net, keep), (PHOTO,))
    nodes = {node.name: node for node in program.graph.nodes if node.op == "call_function"}
    complete = net.complete(widths_of(keep))
    for layer in net.layers:
        shape = nodes[layer.name].meta["val"].shape
        extents = [layer.spec.batch, layer.c_out.at(complete), *layer.spec.spatial_out]
        assert sorted(shape) == sorted(extents), layer.name
        assert all(name in nodes for name in layer.inputs)


@pytest.mark.parametrize(("activation", "behind"), [(nn.SiLU, ">batch_norm>silu"), (nn.ReLU, ">batch_norm>relu")])
def test_the_activation_behind_a_norm_is_part_of_a_specification(activation: type[nn.Module], behind: str) -> None:
    """A runtime fuses it into the convolution, whose time it adds to."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation(), nn.Conv2d(8, 3, 3)).eval()
    assert network.trace(model, (torch.randn(IMAGE),)).layers[0].spec.fused_with == (behind,)


def test_what_follows_a_sum_is_part_of_both_its_sides() -> None:
    net = network.trace(residual(), (torch.randn(IMAGE),))
    sides = [layer for layer in net.layers if layer.module in ("down", "shortcut")]
    assert [side.spec.fused_with for side in sides] == [("<relu", ">add>relu")] * 2


def test_two_layers_that_differ_only_in_width_share_a_specification() -> None:
    narrow_net = network.trace(residual(8), (torch.randn(IMAGE),))
    wide_net = network.trace(residual(16), (torch.randn(IMAGE),))
    assert [layer.spec for layer in narrow_net.layers] == [layer.spec for layer in wide_net.layers]


# ---- the caller's model ----------------------------------------------------------------------------------------
def test_tracing_and_narrowing_leave_the_callers_model_alone() -> None:
    model = residual().train()
    model.head.requires_grad_(False)
    model(torch.randn(2, *IMAGE[1:])).sum().backward()
    model.block1.register_forward_hook(lambda module, args, output: output)
    before = copy.deepcopy(model.state_dict())
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    net = network.trace(model, (torch.randn(IMAGE),))
    network.narrow(model, net, random_keep(net))
    network.mask(model, net, random_keep(net))
    assert model.training
    assert all(module.training for module in model.modules())
    assert len(model.block1._forward_hooks) == 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grads[name]) for name, p in model.named_parameters() if p.grad is not None)


class Counting(torch.nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 3, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.outer(self.inner(x))


def test_what_a_forward_writes_into_buffers_is_not_written_by_tracing_it() -> None:
    model = Counting()
    assert network.trace(model, (torch.randn(IMAGE),)).groups
    assert model.calls == 0


def test_hooks_mode_gradients_and_memory_format_survive() -> None:
    model = residual().to(memory_format=torch.channels_last).train()
    model.head.requires_grad_(False)
    seen: list[int] = []
    model.stem.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    net = network.trace(model, (torch.randn(IMAGE),))
    seen.clear()
    thin = network.narrow(model, net, {"stem": [0, 3, 5]})
    thin(torch.randn(2, *IMAGE[1:]))
    assert seen == [3]
    assert thin.training
    assert not thin.head.weight.requires_grad
    assert thin.block1.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(thin, type(model))


def test_the_memory_format_of_volumes_survives() -> None:
    model = torch.nn.Sequential(torch.nn.Conv3d(3, 8, 3), torch.nn.Conv3d(8, 4, 3))
    model.to(memory_format=torch.channels_last_3d)
    net = network.trace(model, (torch.randn(1, 3, 6, 6, 6),))
    thin = network.narrow(model, net, {"0": [0, 3, 5]})
    for conv in thin:
        assert conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
        assert not conv.weight.is_contiguous()


def test_attributes_follow_the_widths() -> None:
    model, net = traced("mobile")
    thin = network.narrow(model, net, {"expand.0": list(range(10)), "squeeze": [1]})
    depthwise = thin.depthwise
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (10, 10, 10)
    assert thin.expand[1].num_features == 10
    assert (thin.squeeze.in_channels, thin.squeeze.out_channels) == (10, 1)
    assert ("depthwise", "groups", 10) in network.attributes(net, {"expand.0": 10})


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
            self.third, self.last = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 3, 1)
            self.third.weight = self.second.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.third(functional.relu(self.second(functional.relu(self.first(x))))))

    model = Tied().double().eval()
    net = network.trace(model, (PHOTO,))
    (group,) = net.groups
    thin = network.narrow(model, net, {group.name: [1, 4]})
    assert thin.third.weight is thin.second.weight
    assert thin.second.weight.shape == (2, 2, 1, 1)
    with torch.no_grad():
        masked = network.mask(model, net, {group.name: [1, 4]})
        assert relative_difference(thin(PHOTO), masked(PHOTO)) <= EXACT


def test_a_fresh_model_takes_the_shapes_of_a_narrowed_one() -> None:
    model, net = traced("mobile")
    keep = random_keep(net, 9)
    thin = network.narrow(model, net, keep)
    fresh = NETWORKS["mobile"](seed=5).double()
    shapes = {name: tuple(value.shape) for name, value in thin.state_dict().items()}
    network.resize(fresh, shapes, network.attributes(net, widths_of(keep)))
    fresh.load_state_dict(thin.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(PHOTO), thin(PHOTO))


def test_a_narrowed_network_trains() -> None:
    model = unet()
    net = network.trace(model, (torch.randn(IMAGE),))
    thin = network.narrow(model, net, random_keep(net, 10)).train()
    x = torch.randn(2, *IMAGE[1:])
    thin(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in thin.parameters())


def test_float32_agrees_to_rounding() -> None:
    model = unet()
    net = network.trace(model, (PHOTO.float(),))
    keep = random_keep(net, 11)
    with torch.no_grad():
        thin, masked = network.narrow(model, net, keep), network.mask(model, net, keep)
        assert relative_difference(thin(PHOTO.float()), masked(PHOTO.float())) <= FP32


# ---- bad input -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"nowhere": [0]}, "no channel group is called 'nowhere'"),
        ({"stem": []}, "'stem' must be a list of at least one index"),
        ({"stem": [3, 1]}, "'stem' must be sorted"),
        ({"stem": [1, 1]}, "'stem' must be sorted, distinct"),
        ({"stem": [0, 8]}, "within 0…7"),
        ({"stem": [-1, 2]}, "within 0…7"),
        ({"stem": [0.5]}, "must be integers"),
    ],
)
def test_channels_that_cannot_be_kept_are_named(keep: dict[str, list[int]], message: str) -> None:
    model, net = traced("residual")
    for cut in (network.narrow, network.mask):
        with pytest.raises(ValueError, match=message):
            cut(model, net, keep)


def test_a_model_that_branches_on_values_is_a_trace_error_with_its_line() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) if float(x.sum()) > 0 else x

    with pytest.raises(TraceError, match=r"test_network\.py:\d+") as caught:
        network.trace(Branching(), (torch.randn(IMAGE),))
    assert "\n" not in str(caught.value)


def test_a_wrong_input_shape_is_a_trace_error() -> None:
    with pytest.raises(TraceError, match="1x4x16x16"):
        network.trace(residual(), (torch.randn(1, 4, 16, 16),))


def test_a_network_with_nothing_to_narrow_says_why() -> None:
    with pytest.raises(TraceError, match="the network's output"):
        network.trace(nn.Conv2d(3, 8, 1), (torch.randn(IMAGE),))


class Conditioned(nn.Module):
    """Two inputs, a keyword, a dict within a tuple as output."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.label = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(5, 8)
        self.deep, self.leave, self.judge = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 3, 1), nn.Linear(12, 2)

    def forward(
        self, photo: torch.Tensor, label: torch.Tensor, *, gain: torch.Tensor, flip: bool = False
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        y = functional.relu(self.image(photo) + self.label(label)[:, :, None, None]) * gain
        y = functional.relu(self.deep(y.flip(-1) if flip else y))
        return self.leave(y), {"judged": self.judge(y.mean((2, 3)))}


def test_several_inputs_keywords_and_nested_outputs_are_traced() -> None:
    model = Conditioned().double()
    inputs = (PHOTO, torch.randn(2, 5, dtype=torch.float64))
    keywords = {"gain": torch.tensor(0.7, dtype=torch.float64), "flip": True}
    net = network.trace(model, inputs, keywords)
    assert {group.name: group.width for group in net.groups} == {"image": 8, "deep": 12}
    assert net.group("image").producers == ("image", "label")
    keep = random_keep(net, 9)
    with torch.no_grad():
        thin = network.narrow(model, net, keep)(*inputs, **keywords)
        masked = network.mask(model, net, keep)(*inputs, **keywords)
    assert worst_difference(thin, masked) <= EXACT


def test_types_and_errors_need_no_torch() -> None:
    code = "import sys, network, network.types, network.errors; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
