"""Repair: consumers of removed channels give again what they gave."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import network
from benchmarks.checks import random_keep, relative_difference
from compress.norms import recalibrate
from compress.repair import repair
from network.observing import Observer, Sum, sample_rows
from tests.helpers import EXACT, FP64, IMAGE, NETWORKS


def batches(count: int = 8, size: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    shape = (size, *IMAGE[1:])
    return [((torch.randn(shape, generator=generator, dtype=dtype),), None) for _ in range(count)]


def watched(module: nn.Module, x: torch.Tensor):
    found = []
    with torch.no_grad(), Observer({"w": module.weight}, lambda name, call: found.append(call)):
        y = module(x)
    return found[0], y


def applied(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """The layer as the linear map that sampled rows are meant for."""
    weight = module.weight.movedim(1, 0) if type(module).__name__.startswith("ConvT") else module.weight
    return (rows @ weight.reshape(len(module.bias), -1).T + module.bias).detach()


CONVOLUTIONS = [
    (nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3),
    (nn.ConvTranspose1d, 1), (nn.ConvTranspose2d, 2), (nn.ConvTranspose3d, 3),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spatial"), CONVOLUTIONS)
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), itertools.product((1, 3), (1, 2), (0, 1), (1, 2)))
def test_sampled_rows_times_the_weight_are_the_layers_output(kind, spatial, kernel, stride, padding, dilation):
    torch.manual_seed(0)
    module = kind(3, 4, kernel, stride=stride, padding=padding, dilation=dilation).double()
    call, y = watched(module, torch.randn(2, 3, *(7, 6, 5)[:spatial], dtype=torch.float64))
    rows, out = sample_rows(call, torch.arange(y.numel() // y.shape[1]))
    assert relative_difference(applied(module, rows), out) < EXACT
    assert torch.equal(out, y.movedim(1, -1).reshape(-1, 4))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_paddings_by_name_are_understood(padding):
    module = nn.Conv2d(3, 4, (3, 2), padding=padding, dilation=2).double()
    call, y = watched(module, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    rows, out = sample_rows(call, torch.arange(y.numel() // 4))
    assert relative_difference(applied(module, rows), out) < EXACT


class ByHand(nn.Conv2d):
    """Pads in its own forward, and calls the functional form."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, stride=2)


def test_a_layer_that_pads_by_hand_is_seen_as_it_was_really_called():
    module = ByHand(3, 4, 3).double()
    call, y = watched(module, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    rows, out = sample_rows(call, torch.arange(y.numel() // 4))
    assert relative_difference(applied(module, rows), out) < EXACT


def mixed(model: nn.Module, first: str, last: str) -> None:
    """Make the second half of a convolution's channels linear combinations of the first, as far as a ReLU lets them."""
    weight, bias = model.get_parameter(f"{first}.weight"), model.get_parameter(f"{first}.bias")
    half = len(weight) // 2
    with torch.no_grad():
        scale = torch.rand(half, dtype=weight.dtype) + 0.5
        weight[half:] = weight[:half] * scale.reshape(-1, *[1] * (weight.dim() - 1))
        bias[half:] = bias[:half] * scale


def test_repair_is_exact_when_the_removed_channels_are_combinations_of_the_kept():
    torch.manual_seed(0)
    model = NETWORKS["classifier"]().double()
    mixed(model, "conv1", "conv2")
    net = network.trace(model, (torch.randn(IMAGE, dtype=torch.float64),))
    group = next(g for g in net.groups if "conv1" in g.producers)
    keep = {group.name: list(range(group.width // 2))}
    thin = network.narrow(model, net, keep)
    x = torch.randn(4, *IMAGE[1:], dtype=torch.float64)
    with torch.no_grad():
        assert relative_difference(thin(x), model(x)) > 0.01
        refits = repair(thin, model, net, keep, batches())
        assert relative_difference(thin(x), model(x)) < FP64
    assert [r.layer for r in refits] == ["conv2.weight"]
    assert refits[0].after < EXACT


class Grouped(nn.Module):
    """A grouped layer between two others, behind a scale."""

    def __init__(self, kind: type[nn.Module], c_out: int, groups: int, *, bias: bool):
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.middle = kind(8, c_out, 3, stride=2, padding=1, groups=groups, bias=bias)
        self.leave = nn.Conv2d(c_out, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(self.middle(torch.relu(self.enter(x)) * self.scale))


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize(("c_out", "groups"), [(12, 4), (8, 8), (16, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_grouped_layers_are_refitted_group_by_group(kind, c_out, groups, bias):
    torch.manual_seed(0)
    model = Grouped(kind, c_out, groups, bias=bias).double()
    net = network.trace(model, (torch.randn(IMAGE, dtype=torch.float64),))
    keep = {group.name: list(range(group.width // 2, group.width)) for group in net.groups}
    with torch.no_grad():  # what is removed is heard by nobody
        for group in net.groups:
            for member in group.members:
                if member.role == "consumer" or member.parameter == "scale":
                    gone = torch.from_numpy(member.index[: group.width // 2].flatten())
                    model.get_parameter(member.parameter).index_fill_(member.dim, gone, 0)
    thin = network.narrow(model, net, keep)
    x = torch.randn(4, *IMAGE[1:], dtype=torch.float64)
    with torch.no_grad():
        assert relative_difference(thin(x), model(x)) < FP64
        thin.scale *= torch.rand(len(thin.scale), 1, 1) + 0.5
        assert relative_difference(thin(x), model(x)) > 0.01
        refits = repair(thin, model, net, keep, batches())
        assert relative_difference(thin(x), model(x)) < FP64
    assert [r.layer for r in refits if r.before > FP64] == ["middle.weight"]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_repair_never_raises_a_layers_held_out_error(name):
    model = NETWORKS[name]().double()
    net = network.trace(model, (torch.randn(IMAGE, dtype=torch.float64),))
    keep = random_keep(net, most=0.5)
    thin = network.narrow(model, net, keep)
    dense = {key: value.clone() for key, value in model.state_dict().items()}
    refits = repair(thin, model, net, keep, batches())
    assert refits
    assert all(refit.after <= refit.before for refit in refits)
    assert any(refit.after < 0.9 * refit.before for refit in refits)
    assert all(torch.equal(value, dense[key]) for key, value in model.state_dict().items())


def test_repair_lowers_the_error_of_the_whole_network():
    model = NETWORKS["unet"]().double()
    net = network.trace(model, (torch.randn(IMAGE, dtype=torch.float64),))
    keep = {group.name: list(range(0, group.width, 2)) for group in net.groups}
    thin = network.narrow(model, net, keep)
    (x,), _ = batches(1, 16, seed=5)[0]
    with torch.no_grad():
        before = (thin(x) - model(x)).square().mean()
        repair(thin, model, net, keep, batches(16))
        after = (thin(x) - model(x)).square().mean()
    assert after < before


class Branches(nn.Module):
    """Two linear branches on a shortcut of four channels; between the last layer of each and the sum lies `between`."""

    def __init__(self, between: Callable[[], nn.Module], *, linear: bool = False, in_place: bool = False):
        super().__init__()
        self.in_place = in_place
        layer = nn.Linear if linear else partial(nn.Conv2d, kernel_size=1)
        self.enter = layer(3, 4)
        self.branches = nn.ModuleList(nn.Sequential(layer(4, 12), layer(12, 4), between()) for _ in range(2))
        self.leave = layer(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for branch in self.branches:
            if self.in_place:
                x += branch(x)
            else:
                x = branch(x) + x
        return self.leave(x)


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x - 1


def norm() -> nn.Module:
    made = nn.BatchNorm2d(4)
    for tensor in (made.weight, made.bias, made.running_mean, made.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    return made


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    ("between", "linear"), [(nn.Identity, True), (nn.Identity, False), (Scaled, True), (norm, False)]
)
def test_what_a_branch_lost_is_mended_by_the_next_that_is_added(between, linear, in_place):
    """The first branch loses what it cannot make again; the second could make it, and is refitted to."""
    torch.manual_seed(0)
    model = Branches(between, linear=linear, in_place=in_place).double().eval()
    shape = (2, 7, 3) if linear else IMAGE
    net = network.trace(model, (torch.randn(shape, dtype=torch.float64),))
    keep = {f"branches.{k}.0": list(range(width)) for k, width in enumerate((2, 8))}
    thin = network.narrow(model, net, keep)
    data = [((torch.randn(64, *shape[1:], dtype=torch.float64),), None) for _ in range(4)]
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        assert relative_difference(thin(x), model(x)) > 0.01
        refits = repair(thin, model, net, keep, data)
        assert relative_difference(thin(x), model(x)) < FP64
    first, second = (next(r for r in refits if r.layer == f"branches.{k}.1.weight") for k in range(2))
    assert first.after > 0.01 > FP64 > second.after


def summed(module: nn.Module, watched: list[nn.Module]) -> list[Sum]:
    """What the outputs of these layers are added to, by their places in the list."""
    found: list[Sum] = []
    weights = {str(place): layer.weight for place, layer in enumerate(watched)}
    with torch.no_grad(), Observer(weights, lambda name, call: int(name), found.append):
        module(torch.randn(2, *IMAGE[1:]))
    return found


def test_a_sum_says_what_is_added_and_how_the_layer_reaches_it():
    torch.manual_seed(0)
    model = Branches(norm).eval()
    one, two = summed(model, [branch[1] for branch in model.branches])
    assert (one.taken, two.taken) == (0, 1)
    for found, branch in ((one, model.branches[0]), (two, model.branches[1])):
        scale = branch[2].weight / (branch[2].running_var + branch[2].eps).sqrt()
        assert torch.allclose(found.slope, scale, rtol=1e-4)
        assert found.other.shape == (2, *IMAGE[2:], 4)


class Two(nn.Module):
    """The outputs of two layers are added: as they are, or after `after`."""

    def __init__(self, after: Callable[[torch.Tensor], torch.Tensor] = lambda x: x):
        super().__init__()
        self.one, self.two, self.after = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        two = self.two(x)
        return self.after(self.one(x)) + self.after(two)


def test_of_two_layers_that_are_added_the_one_that_is_called_last_mends():
    model = Two()
    assert [found.taken for found in summed(model, [model.one, model.two])] == [0]
    assert [found.taken for found in summed(model, [model.two])] == [0]


def overwritten(x: torch.Tensor) -> torch.Tensor:
    x[:, 0] = 0
    return x


NO_LINES = {
    "relu": torch.relu,
    "relu, in place": lambda x: F.relu(x, inplace=True),
    "a gate": lambda x: x * x.mean((2, 3), keepdim=True),
    "an instance norm": F.instance_norm,
    "written over": overwritten,
}


@pytest.mark.parametrize("after", NO_LINES.values(), ids=NO_LINES)
def test_what_is_not_the_same_line_for_every_item_does_not_reach_a_sum(after):
    model = Two(after)
    assert summed(model, [model.one, model.two]) == []


def test_recalibrated_statistics_are_those_of_the_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.01)).eval()
    data = batches(4, dtype=torch.float32)
    recalibrate(model, data)
    with torch.no_grad():
        seen = torch.cat([model[0](x) for (x,), _ in data])
    assert relative_difference(model[1].running_mean, seen.mean((0, 2, 3))) < 1e-5
    assert model[1].momentum == 0.01
    assert not model[1].training
