"""Measured sensitivity against the damage it stands for, and the oracle against importance that is right or wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import network
from network.command_line import run
from network.errors import InputError
from network.types import Network
from search.importance import taylor
from search.importance.__main__ import main
from search.importance.data import minibatches
from search.importance.oracle import KINDS, Trial, agreement, oracle
from search.importance.refit import Readers
from search.importance.sensitivity import REFIT_BATCHES, TILT, Damage, _increments, sensitivity
from search.task import Imitation
from tests import helpers
from tests.helpers import EXACT, IMAGE
from tests.test_importance import Photos


@pytest.fixture(scope="module")
def unet() -> tuple[nn.Module, Network, Imitation]:
    model = helpers.NETWORKS["unet"]()
    return model, network.trace(model, (torch.randn(IMAGE),)), Imitation(Photos(6), batch_size=2)


def test_damage_is_zero_for_the_original_and_one_for_its_mean(unet: tuple[nn.Module, Network, Imitation]):
    model = unet[0]
    x = torch.rand((2, *IMAGE[1:]))
    damage = Damage(model, [x])
    assert damage.of(model) == 0
    with torch.no_grad():
        mean = float(model(x).mean())

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), *IMAGE[1:]), mean)

    assert damage.of(Constant()) == pytest.approx(1, rel=1e-4)


def test_what_is_kept_adds_up_to_the_damage_that_it_prevents(unet: tuple[nn.Module, Network, Imitation]):
    """At the widths measured, wherever the measured curve is convex; elsewhere its convex hull is below it."""
    model, net, task = unet
    ranking = taylor(model, net, task, batches=2)
    found = sensitivity(model, net, task, ranking, batches=1)
    inputs = [x for x, _ in minibatches(task, 1 + REFIT_BATCHES, 0)]
    damage, readers = Damage(model, inputs[:1]), Readers(model, net, net.groups, inputs[1:])
    for group in net.groups:
        order = np.argsort(-ranking[group.name], kind="stable")
        assert list(np.argsort(-found[group.name], kind="stable")) == list(order)
        half = group.width // 2
        keep = {group.name: sorted(map(int, order[:half]))}
        narrow = network.narrow(model, net, keep)
        readers.refit(narrow, keep)
        lost = found[group.name][order[half:]].sum()
        assert lost <= damage.of(narrow) * (1 + EXACT)
    together = sum(found[group.name].sum() for group in net.groups)
    assert together > 0


READERS = {
    "conv": lambda: nn.Conv2d(4, 2, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 2, 3, stride=2, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1),
    "linear": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_channel_that_others_make_up_for_is_repaired_away(name: str):
    """Channel 3 is the sum of 0 and 1, so whoever reads it can do without it: the cut alone cannot."""
    torch.manual_seed(0)
    make = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        make.weight[3] = make.weight[0] + make.weight[1]
        make.bias[3] = make.bias[0] + make.bias[1]
    model = nn.Sequential(make, READERS[name]()).double().eval()
    net = network.trace(model, (torch.randn(1, 3, 8, 8, dtype=torch.float64),))
    inputs = [torch.randn(64, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
    readers, damage = Readers(model, net, net.groups, inputs[:1]), Damage(model, inputs[1:])
    keep = {"0": [0, 1, 2]}
    narrow = network.narrow(model, net, keep)
    cut = damage.of(narrow)
    readers.refit(narrow, keep)
    assert cut > 1e-3
    assert damage.of(narrow) < 1e-8 * cut


@torch.no_grad()
def test_a_refit_is_the_least_squares_solution():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Tanh(), nn.Conv2d(6, 3, 1)).double().eval()
    net = network.trace(model, (torch.randn(1, 3, 4, 4, dtype=torch.float64),))
    x = torch.randn(256, 3, 4, 4, dtype=torch.float64)
    keep = {"0": [0, 2, 3, 5]}
    narrow = network.narrow(model, net, keep)
    Readers(model, net, net.groups, [x]).refit(narrow, keep)
    read = model[:2](x)[:, keep["0"]].movedim(1, -1).flatten(0, -2)
    wanted = model(x).movedim(1, -1).flatten(0, -2)
    rows = torch.cat([read, torch.ones_like(read[:, :1])], 1)
    best = (rows @ torch.linalg.lstsq(rows, wanted).solution - wanted).square().sum()
    found = (narrow(x).movedim(1, -1).flatten(0, -2) - wanted).square().sum()
    assert float(best) <= float(found) <= 1.05 * float(best)


def test_what_stays_of_a_layer_that_is_called_twice_is_the_mean_of_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for _ in range(2):
                x = x + self.b(self.a(x).relu())
            return x

    torch.manual_seed(0)
    model = Twice().double()
    inputs = [torch.randn((2, *IMAGE[1:]), dtype=torch.float64) for _ in range(2)]
    net = network.trace(model, (inputs[0][:1],))
    group = net.group("a")
    assert group.removable
    seen = []
    hook = model.b.register_forward_hook(lambda module, given, out: seen.append(out.detach()))
    with torch.no_grad():
        for each in inputs:
            model(each)
    hook.remove()
    narrow = network.narrow(model, net, {"a": []})
    Readers(model, net, [group], inputs).refit(narrow, {"a": []})
    expected = torch.stack([out.mean((0, 2, 3)) for out in seen]).mean(0)
    torch.testing.assert_close(narrow.b.bias.detach(), expected, rtol=EXACT, atol=0)


@given(st.data())
def test_increments_descend_and_telescope(data: st.DataObject):
    width = data.draw(st.integers(2, 40))
    counts = sorted(data.draw(st.sets(st.integers(1, width - 1), min_size=1, max_size=4)))
    steps = data.draw(st.lists(st.floats(0, 1), min_size=len(counts), max_size=len(counts)))
    # A convex, descending curve: slopes descend from the first count on.
    slopes = np.sort(steps)[::-1]
    ends = np.array([*counts, width])
    drops = slopes * np.diff(ends)
    damages = np.append(np.cumsum(drops[::-1])[::-1], 0.0)
    weights = np.ones(width)
    found = _increments(ends, damages, weights)
    assert (np.diff(found) <= 0).all()
    assert (found >= 0).all()
    for count, damage in zip(counts, damages, strict=False):
        assert found[count:].sum() == pytest.approx(damage, rel=2 * TILT, abs=1e-12)


def test_a_group_whose_channels_say_nothing_is_worth_nothing():
    model = helpers.residual(width=8)
    with torch.no_grad():
        model.block1.conv2.weight.zero_()
    net = network.trace(model, (torch.randn(IMAGE),))
    task = Imitation(Photos(4), batch_size=2)
    found = sensitivity(model, net, task, {group.name: np.ones(group.width) for group in net.groups})
    assert found["block1.conv1"].sum() == pytest.approx(0, abs=1e-9)
    assert found["block2.conv1"].sum() > 0


def test_importance_that_is_the_truth_agrees_with_it_and_its_opposite_does_not():
    random = np.random.default_rng(0)
    importance = {"a": random.random(16), "b": 3 * random.random(8)}
    trials = [
        Trial(kind, removed, float(sum(importance[group][gone].sum() for group, gone in removed.items())))
        for kind in KINDS
        for name in importance
        for _ in range(6)
        for removed in [
            {group: random.choice(len(importance[group]), 1 if kind == "channel" else 3, replace=False)}
            for group in (importance if kind == "plan" else [name])
        ]
    ]
    for row in agreement(trials, importance):
        assert row["pearson_log"] == pytest.approx(1)
        assert row["spearman"] == pytest.approx(1)
    wrong = {group: 4 - scores for group, scores in importance.items()}
    channel = agreement(trials, wrong)[0]
    assert channel["spearman"] == pytest.approx(-1)
    assert channel["spearman_within_groups"] == pytest.approx(-1)


def test_the_oracle_tries_channels_sets_and_plans(unet: tuple[nn.Module, Network, Imitation]):
    model, net, task = unet
    trials = oracle(model, net, task, each=2, plans=3, batches=1)
    counts = {kind: sum(trial.kind == kind for trial in trials) for kind in KINDS}
    assert counts == {"channel": 2 * len(net.groups), "set": 2 * len(net.groups), "plan": 3}
    assert all(trial.damage > 0 for trial in trials if trial.kind == "plan")
    assert all(len(next(iter(trial.removed.values()))) == 1 for trial in trials if trial.kind == "channel")


def test_the_command_prints_every_measure(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{number}.png")
    model = f"{helpers.__file__}:residual"
    options = ["--oracle", model, "--input", "1x3x16x16", "--each", "4", "--plans", "4", "--batches", "1"]
    assert run(main, [*options, "--images", ".", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["importance"], row["kind"]) for row in rows} == {
        (importance, kind) for importance in ("taylor", "sensitivity", "magnitude") for kind in KINDS
    }
    assert run(main, options) == 2
    assert "--images" in capsys.readouterr().err


def test_an_output_that_is_not_finite_is_an_error():
    model = helpers.residual(width=4)
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        Damage(model, [torch.rand(IMAGE)])
