"""Importance against the gates it is defined by, and against what must hold whatever the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import network
from network.errors import InputError
from network.types import Network
from search.importance import MEASURES, importance_of, magnitude, taylor
from search.task import Imitation
from tests import helpers
from tests.helpers import EXACT, IMAGE


class Scores:
    """A task on random images: cross-entropy for scores, mean square for images."""

    def __init__(self, outputs: tuple[int, ...], batch_size: int = 4, count: int = 8):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn((count, *IMAGE[1:]), generator=generator, dtype=torch.float64)
        y = torch.randn((count, *outputs), generator=generator, dtype=torch.float64)
        self.batch_size = batch_size
        self.train: Dataset = TensorDataset(x, y)
        self.heldout: Dataset = self.train

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"closeness": -(output - target).square().flatten(1).mean(1)}


def traced(name: str) -> tuple[nn.Module, Network]:
    model = helpers.NETWORKS[name]().double()
    return model, network.trace(model, (torch.randn(IMAGE, dtype=torch.float64),))


def gate_gradients(model: nn.Module, task: Scores, readers: dict[str, slice], width: int) -> np.ndarray:
    """∂loss/∂gate for a literal gate that multiplies the channels as each reader takes them in."""
    gate = torch.ones(width, dtype=torch.float64, requires_grad=True)
    hooks = []
    for reader, where in readers.items():

        def scale(module: nn.Module, inputs: tuple[Tensor, ...], where: slice = where) -> Tensor:
            x = inputs[0]
            repeats = (x.shape[1] if where == slice(None) else where.stop - where.start) // width
            factor = torch.ones(x.shape[1], dtype=x.dtype)
            factor[where] = gate.repeat_interleave(repeats)
            return x * factor.view(1, -1, *[1] * (x.dim() - 2))

        hooks.append(model.get_submodule(reader).register_forward_pre_hook(scale))
    x, y = task.train.tensors
    (gradient,) = torch.autograd.grad(task.loss(model(x), y), gate)
    for hook in hooks:
        hook.remove()
    return gradient.numpy()


@pytest.mark.parametrize(
    ("name", "group", "readers", "outputs"),
    [
        ("residual", "block1.conv1", {"block1.conv2": slice(None)}, (5,)),
        (
            "residual",
            "stem",
            {"block1.conv1": slice(None), "down": slice(None), "shortcut": slice(None)},
            (5,),
        ),
        ("unet", "enter", {"down1": slice(None), "leave": slice(8, 16)}, (3, 16, 16)),
        ("unet", "down2", {"up2": slice(None)}, (3, 16, 16)),
        ("classifier", "conv2", {"hidden": slice(None)}, (5,)),
        ("generator", "up", {"leave.1": slice(None)}, (3, 16, 16)),
    ],
)
def test_taylor_is_the_squared_derivative_by_a_gate(name: str, group: str, readers: dict, outputs: tuple[int, ...]):
    model, net = traced(name)
    task = Scores(outputs, batch_size=8)
    expected = gate_gradients(model, task, readers, net.group(group).width) ** 2
    found = taylor(model, net, task, batches=1)[group]
    assert found == pytest.approx(expected, rel=EXACT, abs=EXACT * expected.max())


def test_taylor_adds_the_squares_of_the_minibatches():
    model, net = traced("residual")
    task = Scores((5,), batch_size=8)
    once, twice = (taylor(model, net, task, batches=n) for n in (1, 2))
    for group in net.groups:
        assert twice[group.name] == pytest.approx(once[group.name], rel=EXACT)


def test_a_channel_that_nobody_reads_has_no_importance():
    model, net = traced("residual")
    with torch.no_grad():
        model.block1.conv2.weight[:, 3] = 0
    found = taylor(model, net, Scores((5,)), batches=2)["block1.conv1"]
    assert found[3] == 0
    assert (np.delete(found, 3) > 0).all()


def test_the_same_seed_gives_the_same_importance():
    model, net = traced("unet")
    photos = Imitation(Photos(6), batch_size=2)
    model.float()
    first, second = (taylor(model, net, photos, batches=3, seed=5) for _ in range(2))
    assert all((first[g.name] == second[g.name]).all() for g in net.groups)


def test_a_dataset_that_draws_by_numpy_gives_the_same_importance_each_time():
    model, net = traced("residual")

    class Noisy(Scores):
        def __init__(self):
            super().__init__((5,))
            self.train = self

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            x, y = self.heldout[index]
            return x + np.random.standard_normal(), y

    first, second = (importance_of("sensitivity", model, net, Noisy(), batches=2) for _ in range(2))
    assert all((first[g.name] == second[g.name]).all() for g in net.groups)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_callers_model_is_left_as_it_was(measure: str):
    model, net = traced("residual")
    model.train()
    model.stem.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    importance_of(measure, model, net, Scores((5,)), batches=2)
    assert model.training
    assert not model.stem.weight.requires_grad
    assert model.head.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_a_hook_makes_have_importance():
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 2, 3)).double()
    net = network.trace(model, (torch.randn(IMAGE, dtype=torch.float64),))
    found = importance_of("sensitivity", model, net, Scores((2, 12, 12)), batches=1)
    assert {name: len(values) for name, values in found.items()} == net.widths == {"0": 8}
    assert all(values.sum() > 0 for values in found.values())


def test_a_loss_that_is_not_a_number_is_an_error():
    model, net = traced("residual")
    with torch.no_grad():
        model.stem.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="nan"):
        taylor(model, net, Scores((5,)), batches=1)


class Photos(Dataset):
    """Random photos with the face of network.Images."""

    def __init__(self, count: int, seed: int = 0):
        self.pixels = torch.rand((count, *IMAGE[1:]), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]

    def crop(self, index: int, generator: torch.Generator) -> Tensor:
        return self.pixels[index].flip(-1) if torch.rand((), generator=generator) < 0.5 else self.pixels[index]

    def split(self, fraction: float, seed: int = 0) -> tuple[Photos, Photos]:
        if len(self) == 1:
            return self, self
        train, held = Photos(0), Photos(0)
        held.pixels, train.pixels = self.pixels[: max(1, round(fraction * len(self)))], self.pixels[1:]
        return train, held


def test_imitation_estimates_the_gauss_newton_diagonal():
    """Random signs, averaged, against the squared Jacobian of the outputs by the gates, summed over outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 2, 1))
    net = network.trace(model, (torch.randn(1, 3, 4, 4),))
    (group,) = net.groups
    task = Imitation(Photos(1), batch_size=1)
    photo = task.train[0][0][None]

    def gated(gate: Tensor) -> Tensor:
        return model[2](torch.tanh(model[0](photo)) * gate.view(1, -1, 1, 1)).flatten()

    jacobian = torch.autograd.functional.jacobian(gated, torch.ones(4))
    exact = jacobian.square().sum(0).numpy()
    estimate = taylor(model, net, task, batches=800)[group.name]
    # The estimator's relative deviation is at most √2 for one draw, so 5 % of 800 draws' mean.
    assert estimate == pytest.approx(exact, rel=0.2)


def test_magnitude_is_highest_where_all_slices_of_a_channel_are_scaled_up():
    model, net = traced("residual")
    with torch.no_grad():
        model.block1.conv1.weight[5] *= 10
        model.block1.conv2.weight[:, 5] *= 10
    assert magnitude(model, net)["block1.conv1"].argmax() == 5


def test_magnitude_has_a_mean_of_one_in_every_group_whatever_the_scale():
    model, net = traced("unet")
    before = magnitude(model, net)
    with torch.no_grad():
        model.down2.weight.mul_(100)
        model.down2.bias.mul_(100)
        model.up2.weight.mul_(100)
    after = magnitude(model, net)
    assert after["down2"] == pytest.approx(before["down2"], rel=1e-9)
    assert all(scores.mean() == pytest.approx(1) for scores in after.values())
