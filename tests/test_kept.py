"""Importance that is kept: found again when nothing changed, measured anew when anything did, never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import network
from network.types import Network
from search.importance import importance_of, kept, sensitivity, taylor
from search.importance.kept import Kept, identity
from tests import helpers
from tests.helpers import IMAGE


class Labels:
    """Four labelled pictures."""

    batch_size = 2

    def __init__(self, brightness: float = 1.0, count: int = 4):
        pictures = brightness * torch.rand((count, *IMAGE[1:]), generator=torch.Generator().manual_seed(0))
        self.train = self.heldout = TensorDataset(pictures, torch.zeros(count).long())

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target)

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {}


class Smoothed(Labels):
    """Labels whose loss has a number of its own."""

    def __init__(self, smoothing: float):
        super().__init__()
        self.smoothing = smoothing

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target, label_smoothing=self.smoothing)


FILE = """import torch
from torch import nn

def squashed(x):
    return torch.SQUASHED(x)

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3, padding=1))

    def forward(self, x):
        return squashed(super().forward(x)).mean((2, 3))
"""


def traced(model: nn.Module) -> tuple[nn.Module, Network]:
    return model, network.trace(model, (torch.randn(IMAGE),))


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, Network]:
    return traced(helpers.residual())


def test_the_identity_is_of_weights_network_data_loss_kind_and_batches(residual: tuple[nn.Module, Network]):
    model, net = residual
    told = ("taylor", model, net, Labels(), 2)
    assert identity(*told) == identity("taylor", *traced(helpers.residual()), Labels(), 2)
    others = [
        identity("sensitivity", *told[1:]),
        identity("taylor", *traced(helpers.residual(seed=1)), Labels(), 2),
        identity("taylor", *traced(helpers.residual(width=16)), Labels(), 2),
        *(
            identity("taylor", model, net, task, 2)
            for task in (Labels(0.5), Labels(count=6), Smoothed(0.1), Smoothed(0.2))
        ),
        identity("taylor", model, net, Labels(), 3),
        identity(*told, ["by another command"]),
    ]
    assert len({identity(*told), *others}) == 1 + len(others)


def test_the_identity_is_of_the_code_around_the_class_too(tmp_path: Path):
    found = set()
    for name in ("tanh", "sigmoid"):
        path = tmp_path / name / "net.py"
        path.parent.mkdir()
        path.write_text(FILE.replace("SQUASHED", name))
        found.add(identity("taylor", *traced(network.load_model(f"{path}:Net")), Labels(), 2))
    assert len(found) == 2


def test_what_was_measured_is_found_again_and_is_the_same(residual: tuple[nn.Module, Network], tmp_path: Path):
    model, net = residual
    plain = importance_of("sensitivity", model, net, Labels(), 2)
    first, second = (importance_of("sensitivity", model, net, Labels(), 2, keep_in=tmp_path) for _ in range(2))
    for name, values in plain.items():
        np.testing.assert_array_equal(first[name], values)
        np.testing.assert_array_equal(second[name], values)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_measurement_that_was_cut_off_goes_on_and_comes_to_the_same(
    residual: tuple[nn.Module, Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, net = residual
    ranking = taylor(model, net, Labels(), 2)
    whole = sensitivity(model, net, Labels(), ranking)
    measured: list[str] = []
    scores = sensitivity.__globals__["_scores"]

    def mortal(model, net, group, *rest):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(group.name)
        return scores(model, net, group, *rest)

    monkeypatch.setitem(sensitivity.__globals__, "_scores", mortal)
    with pytest.raises(KeyboardInterrupt):
        sensitivity(model, net, Labels(), ranking, kept=Kept(tmp_path, "a"))
    first = list(measured)
    measured.clear()
    monkeypatch.setitem(
        sensitivity.__globals__, "_scores", lambda *given: measured.append(given[2].name) or scores(*given)
    )
    again = sensitivity(model, net, Labels(), ranking, kept=Kept(tmp_path, "a"))
    assert len(first) == 2
    assert sorted([*first, *measured]) == sorted(net.widths)
    for name, values in whole.items():
        np.testing.assert_array_equal(again[name], values)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"a": "b"}', '{"a": null, "b": {}}'])
def test_a_damaged_file_counts_as_empty(tmp_path: Path, text: str):
    (tmp_path / "a.json").write_text(text)
    assert Kept(tmp_path, "a").found == {}
    Kept(tmp_path, "a").add({"c": np.array([1.0, 0.5])})
    assert Kept(tmp_path, "a").found["c"].tolist() == [1.0, 0.5]


def test_where_nothing_can_be_written_nothing_fails(tmp_path: Path):
    (tmp_path / "file").write_text("")
    store = Kept(tmp_path / "file" / "folder", "a")
    store.add({"c": np.ones(2)})
    assert store.found["c"].tolist() == [1.0, 1.0]
    assert Kept(tmp_path / "file" / "folder", "a").found == {}


def test_the_files_that_were_used_longest_ago_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept, "MOST_FILES", 2)
    for age, key in ((30, "a"), (20, "b"), (10, "c")):
        Kept(tmp_path, key).add({key: np.ones(1)})
        os.utime(tmp_path / f"{key}.json", (1e9 - age, 1e9 - age))
        if key == "b":
            Kept(tmp_path, "a")  # used again
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "c"}
