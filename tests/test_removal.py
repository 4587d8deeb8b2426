"""Groups that the network can do without: which they are, what is left of what read them, and that nothing breaks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import compress
import network
from benchmarks.checks import relative_difference
from compress.condense import fading
from compress.repair import repair
from network.__main__ import describe, listing
from network.errors import PlanError
from network.removal import Constant
from search import Imitation, Settings, load_plan, magnitude, search
from search.build import MENDED, PARAMETERS, WEIGHT_BYTES, build_space, worth
from search.importance.data import minibatches
from search.importance.refit import Readers
from search.importance.sensitivity import Damage, sensitivity
from search.space import IMPORTANCE
from search.widths import group_options
from tests.compression import Clock, Photos, case
from tests.helpers import EXACT, FP32, IMAGE, NETWORKS
from tests.staircase import AnalyticTable

REMOVABLE = {
    "residual": {"block1.conv1", "block2.conv1"},
    "unet": {"down2"},
    "mobile": {"expand.0", "squeeze"},
    "classifier": set(),
    "generator": {"blocks.0.conv1", "blocks.1.conv1"},
}


def traced(model: nn.Module, shape: tuple[int, ...] = IMAGE) -> network.Network:
    return network.trace(model, network.example_inputs((shape,)))


def removable(net: network.Network) -> set[str]:
    return {group.name for group in net.groups if group.removable}


def pictures(count: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn((count, *IMAGE[1:]), generator=torch.Generator().manual_seed(1), dtype=dtype)


class Chain(nn.Module):
    """What a test puts between a first and a last convolution, with a shortcut round it."""

    def __init__(self, inside: nn.Module):
        super().__init__()
        self.first, self.inside, self.last = nn.Conv2d(3, 6, 1), inside, nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.inside(x))


def bottleneck() -> nn.Module:
    first, second, third = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 10, 3, padding=1), nn.Conv2d(10, 6, 1)
    return Chain(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third))


class Parallel(nn.Module):
    """Two branches added, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)) for _ in range(2))
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.a(x) + self.b(x))


class AlsoRead(nn.Module):
    """A branch whose inner channels are read by a mean over them too."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(x))
        return self.down(x) * x.mean(1, keepdim=True)


class ByWeight(nn.Module):
    """A branch that reads its second convolution's weight by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(torch.relu(self.up(x)), self.down.weight, self.down.bias)


class Padded(nn.Conv2d):
    """A convolution that pads by itself, as many released networks have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


def branch(*inner: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), *inner)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_can_do_without_is_found(name):
    assert removable(traced(NETWORKS[name]())) == REMOVABLE[name]


@pytest.mark.parametrize("name", [name for name, found in REMOVABLE.items() if found])
def test_a_network_without_groups_is_the_one_in_which_they_are_silent(name):
    model = NETWORKS[name]().double().eval()
    net, x = traced(NETWORKS[name]()), pictures()
    some = sorted(removable(net))
    for count in range(1, len(some) + 1):
        for gone in itertools.combinations(some, count):
            keep = {group: [] for group in gone}
            with torch.no_grad():
                thin, silent = network.narrow(model, net, keep)(x), network.mask(model, net, keep)(x)
            assert relative_difference(thin, silent) < EXACT
            assert not torch.allclose(thin[:1].expand_as(thin), thin)


@pytest.mark.parametrize("name", [name for name, found in REMOVABLE.items() if found])
def test_removal_goes_with_narrowing_the_rest_and_with_other_sizes(name):
    model = NETWORKS[name]().double().eval()
    net = traced(NETWORKS[name]())
    keep = {g.name: [] if g.removable else list(range(0, g.width, 2)) for g in net.groups}
    thin, silent = network.narrow(model, net, keep), network.mask(model, net, keep)
    for side in (16, 24):
        x = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(side))
        with torch.no_grad():
            assert relative_difference(thin(x), silent(x)) < EXACT


def test_the_listing_says_which_may_go():
    net = traced(NETWORKS["mobile"]())
    assert {line.split()[0] for line in listing(net).splitlines() if line.endswith("(may go)")} == removable(net)
    assert {group["name"] for group in describe(net)["groups"] if group["remains"]} == removable(net)


def test_branches_that_cannot_all_go_are_not_all_removable():
    assert len(removable(traced(Parallel()))) == 1


@pytest.mark.parametrize(
    "inside", [AlsoRead, ByWeight, lambda: branch(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 1)))]
)
def test_what_is_read_otherwise_than_by_a_plain_layer_stays(inside):
    assert removable(traced(Chain(inside()))) == set()


@pytest.mark.parametrize(
    "inside", [nn.Sequential(Padded(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1)), branch(Padded(8, 6, 3))]
)
def test_a_layer_of_a_class_of_its_own_says_by_itself_how_large_its_output_is(inside):
    model = Chain(inside).eval()
    net = traced(model)
    assert removable(net) == {"inside.0"}
    same_without(model.double(), net, {"inside.0": []}, pictures())


class Anew(nn.Module):
    """A branch in which every layer changes the picture's size, one after the other, and the last one restores it."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        for layer in self.layers:
            x = F.relu(layer(x), inplace=True)
        return F.interpolate(x, size)


@pytest.mark.parametrize(
    "reader",
    [
        nn.Conv2d(8, 6, (3, 5), stride=(2, 3), padding=(1, 0), dilation=(2, 1)),
        nn.Conv2d(8, 6, (3, 2), padding="same", padding_mode="reflect"),
        nn.Conv2d(8, 6, 3, padding="valid", bias=False),
        nn.ConvTranspose2d(8, 6, (3, 4), stride=(2, 3), padding=(1, 2), output_padding=(1, 0), dilation=(1, 2)),
    ],
)
def test_constants_have_the_shape_of_their_layers_output_and_what_follows_may_work_in_place(reader):
    makers = [nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=8)]
    model = Chain(Anew([*makers, reader])).double().eval()
    net = network.trace(model, (pictures(),))
    assert dict(net.group("inside.layers.0").remains) == {
        "inside.layers.0": "idle", "inside.layers.1": "idle", "inside.layers.2": "idle", "inside.layers.3": "bias",
    }  # fmt: skip
    same_without(model, net, {"inside.layers.0": []}, pictures())
    same_without(model.to(memory_format=torch.channels_last), net, {"inside.layers.0": []}, pictures())


def same_without(model: nn.Module, net: network.Network, keep: network.Keep, x: Tensor) -> None:
    with torch.no_grad():
        assert relative_difference(network.narrow(model, net, keep)(x), network.mask(model, net, keep)(x)) < EXACT


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [nn.Identity, nn.InstanceNorm2d])
def test_what_is_left_of_a_removed_group_is_counted(bias, norm):
    reader = nn.Conv2d(8, 6, 3, padding=2, bias=bias)
    model = Chain(branch(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8, bias=bias), reader, norm(6)))
    net = traced(model)
    thin, without = network.narrow(model, net, {"inside.0": []}), {"inside.0": 0}
    unlearnt = 6 if bias and norm is nn.InstanceNorm2d else 0  # before a norm zeros take the bias's place
    assert sum(p.numel() for p in thin.parameters()) == net.parameter_count(without) - unlearnt
    counters = 1  # of batches, by the norm that falls away
    assert 4 * sum(x.numel() for x in thin.state_dict().values()) == net.weight_bytes(without) - 4 * counters
    settings = Settings(max_params=1, max_bytes=1)
    space = build_space(net, AnalyticTable(), {g.name: np.ones(g.width) for g in net.groups}, settings)
    choice = {v.name: 0 if v.name == "inside.0" else len(v.labels) - 1 for v in space.variables}
    assert space.total(PARAMETERS, choice) == net.parameter_count(without)
    assert space.total(WEIGHT_BYTES, choice) == net.weight_bytes(without)


def test_a_constant_has_the_layers_bias_or_one_that_can_be_learnt():
    for bias in (True, False):
        model = Chain(branch(nn.Conv2d(8, 6, 1, bias=bias), nn.BatchNorm2d(6)))
        thin = network.narrow(model, traced(model), {"inside.0": []})
        constant = thin.get_submodule("inside.2")
        assert isinstance(constant, Constant)
        wanted = model.inside[2].bias if bias else torch.zeros(6)
        assert torch.equal(constant.bias, wanted)
        assert [name for name, p in constant.named_parameters() if p.requires_grad] == ["bias"]


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(1, 6)])
def test_before_a_norm_over_places_a_constant_is_zero_and_gradients_are_numbers(norm):
    model = Chain(branch(nn.Conv2d(8, 6, 1), norm))
    thin = network.narrow(model, traced(model), {"inside.0": []})
    assert torch.equal(thin.get_submodule("inside.2").bias, torch.zeros(6))
    assert not [p for p in thin.get_submodule("inside.2").parameters() if p.requires_grad]
    thin(pictures(dtype=torch.float32)).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in thin.parameters())


def test_the_exported_graph_holds_nothing_of_what_went():
    model = NETWORKS["residual"]().eval()
    thin = network.narrow(model, traced(model), {"block1.conv1": [], "block2.conv1": []})
    targets = [str(node.target) for node in network.export(thin, network.example_inputs((IMAGE,))).graph.nodes]
    assert sum("conv2d" in target for target in targets) == 3
    assert "aten.mean.dim" in targets


def test_a_group_that_is_needed_cannot_be_emptied():
    model = NETWORKS["residual"]()
    with pytest.raises(ValueError, match=r"'stem'.*at least one index"):
        network.narrow(model, traced(model), {"stem": []})


def test_constants_are_repaired_to_what_their_layers_gave_on_average():
    model = Chain(branch(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6))).eval()
    net = traced(model)
    keep = {"inside.0": []}
    batches = [((pictures(4, torch.float32) + 1 + i / 10,), None) for i in range(6)]
    thin = network.narrow(model, net, keep)
    repair(thin, model, net, keep, batches)
    with torch.no_grad():
        given = torch.cat([model.inside[2](model.inside[1](model.inside[0](model.first(x)))) for (x,), _ in batches])
    assert relative_difference(thin.get_submodule("inside.2").bias.detach(), given.mean((0, 2, 3))) < FP32


def test_importance_of_a_removable_group_is_the_measured_damage_of_removing_it():
    model = NETWORKS["residual"]().eval()
    net, task = traced(model), Imitation(Photos(), heldout=0.25)
    ranking = {group.name: np.arange(group.width, 0.0, -1.0) for group in net.groups}
    found = sensitivity(model, net, task, ranking)
    inputs = [each for each, _ in minibatches(task, 3, 0)]
    group = net.group("block1.conv1")
    thin = network.narrow(model, net, {group.name: []})
    Readers(model, net, [group], inputs[1:]).refit(thin, {group.name: []})
    assert found[group.name].sum() == pytest.approx(Damage(model, inputs[:1]).of(thin), rel=2e-3)


def test_the_search_may_remove_unless_it_is_told_not_to():
    net = traced(NETWORKS["mobile"]())
    assert {name for name, widths in group_options(net, Settings()).items() if 0 in widths} == removable(net)
    assert not any(0 in widths for widths in group_options(net, Settings(removal=False)).values())
    half = group_options(net, Settings(min_width={"*": 0.1, "squeeze": 0.5}))
    assert 0 in half["expand.0"]
    assert min(half["squeeze"]) == net.widths["squeeze"] // 2
    kept = group_options(net, Settings(keep=("squeeze",)))
    assert kept["squeeze"] == (net.widths["squeeze"],)
    assert 0 in kept["expand.0"]


def test_of_a_removed_groups_worth_a_share_is_mended_and_of_a_narrower_ones_none():
    assert worth(np.array([1.0, 4.0, 2.0])).tolist() == [MENDED * 7, 4, 6, 7]


def test_what_only_makes_a_removed_group_is_not_lost_a_second_time():
    net = traced(bottleneck())
    first, second = "inside.0", "inside.2"
    assert {first, second} <= removable(net)
    importance = {group.name: np.arange(1.0, group.width + 1) for group in net.groups}
    space = build_space(net, AnalyticTable(), importance)
    sizes = {variable.name: len(variable.labels) for variable in space.variables}
    whole = {name: size - 1 for name, size in sizes.items()}
    total = sum(values.sum() for values in importance.values())

    def loss(options: dict[str, int]) -> float:
        return total - space.total(IMPORTANCE, whole | options)

    assert loss({}) == pytest.approx(0)
    assert loss({first: 0}) == pytest.approx(MENDED * importance[first].sum())
    for option in range(sizes[first]):
        assert loss({first: option, second: 0}) == pytest.approx(MENDED * importance[second].sum())
        assert loss({first: option, second: 1}) == pytest.approx(loss({first: option}) + loss({second: 1}))


@pytest.mark.parametrize("model", [bottleneck, NETWORKS["mobile"]], ids=["bottleneck", "mobile"])
def test_of_a_group_that_is_not_lost_a_second_time_the_output_does_not_depend(model):
    model = model().eval()
    net = traced(model)
    ((group, removed),) = lost_together(model, net)
    x = pictures(dtype=torch.float32)
    with torch.no_grad():
        without = network.narrow(model, net, {removed: []})(x)
        assert torch.equal(network.narrow(model, net, {removed: [], group: [0]})(x), without)
        assert relative_difference(model(x), without) > FP32


def test_a_group_that_a_shortcut_reads_too_is_lost_by_itself():
    model = NETWORKS["unet"]()
    net = traced(model)
    assert removable(net) == {"down2"}
    assert lost_together(model, net) == []


def lost_together(model: nn.Module, net: network.Network) -> list[tuple[str, ...]]:
    factors = build_space(net, AnalyticTable(), magnitude(model, net)).factors
    return [factor.scope for factor in factors if factor.resource == IMPORTANCE and len(factor.scope) == 2]


def worthless(net: network.Network) -> dict[str, np.ndarray]:
    """Importance by which removable groups are worth next to nothing."""
    return {g.name: np.full(g.width, 1e-9 if g.removable else 1.0) for g in net.groups}


def test_a_plan_removes_what_is_worth_nothing_and_says_so_in_its_file(tmp_path):
    model = NETWORKS["residual"]()
    net = traced(model)
    plan = search(model, net, AnalyticTable(), "0.7x", worthless(net))
    assert {name for name, width in plan.widths.items() if width == 0} == removable(net)
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    assert plan.predicted_ms == pytest.approx(AnalyticTable().predict_ms(net, plan.widths))
    needed = dataclasses.replace(plan, widths={**plan.widths, "stem": 0})
    with pytest.raises(PlanError, match=r"'stem' has width 0, and this network needs it"):
        needed.check(net)


@pytest.mark.parametrize("name", ["residual", "generator", "mobile"])
def test_a_network_without_groups_is_trained_written_and_loaded_again(name, tmp_path):
    found = case(name)
    net = found.net
    plan = search(found.model, net, AnalyticTable(), "0.7x", worthless(net), reference=found.plan.model)
    assert any(width == 0 for width in plan.widths.values())
    made = compress.apply_plan(
        plan, found.model, net, AnalyticTable(), found.task, tmp_path / "out", steps=6, measure=Clock(net)
    )
    again = compress.load(tmp_path / "out", NETWORKS[name]())
    x = pictures(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(x), made.model(x))
    assert made.report["widths"] == dict(plan.widths)
    assert made.report["met"]


@pytest.mark.parametrize("name", ["residual", "generator"])
@pytest.mark.parametrize("condense", ["group-l2", "hard-concrete"])
def test_what_goes_whole_is_condensed_unless_an_instance_norm_would_scale_up_what_is_left(name, condense, tmp_path):
    found = case(name)
    plan = search(found.model, found.net, AnalyticTable(), "0.7x", worthless(found.net), reference=found.plan.model)
    gone = {group for group, width in plan.widths.items() if width == 0}
    assert {group.name for group in fading(found.net, plan.widths)} & gone == (gone if name == "residual" else set())
    made = compress.apply_plan(
        plan, found.model, found.net, AnalyticTable(), found.task, tmp_path / "out",
        steps=10, condense=condense, measure=Clock(found.net),
    )  # fmt: skip
    condensed = made.report["stages"]["condensed"]
    assert condensed["mass_left"] <= 1e-6
    assert made.plan.widths == plan.widths
