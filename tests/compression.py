"""What the tests of compress/ share: photos without files, an analytic latency table, and a clock that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import network
from latency import Device, Measurement
from network.removal import Constant
from network.types import IDLE, Network
from search import Imitation, Plan, Settings, magnitude, search
from tests.helpers import IMAGE, NETWORKS
from tests.staircase import AnalyticTable


class Photos:
    """Smooth random pictures that behave as `network.Images` does."""

    def __init__(self, count: int = 24, first: int = 0):
        self.count, self.first = count, first
        self.names = [f"{first + i}.png" for i in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.first + index)
        coarse = torch.rand((1, 3, 4, 4), generator=generator)
        return nn.functional.interpolate(coarse, size=IMAGE[2:], mode="bilinear")[0]

    def crop(self, index: int, generator: torch.Generator) -> Tensor:
        flip = bool(torch.randint(2, (), generator=generator))
        return self[index].flip(-1) if flip else self[index]

    def split(self, fraction: float, seed: int = 0) -> tuple[Photos, Photos]:
        held = max(1, round(fraction * self.count))
        return Photos(self.count - held, self.first), Photos(held, self.first + self.count - held)

    def to_rgb(self, x: Tensor) -> np.ndarray:
        return x.clamp(0, 1).mul(255).byte().movedim(0, -1).numpy()


class Labelled:
    """A task with labels: five classes of pictures, told apart by their mean brightness."""

    def __init__(self) -> None:
        self.batch_size = 8
        photos = Photos(48)
        items = [(photos[i], min(4, int(5 * float(photos[i].mean())))) for i in range(len(photos))]
        self.train, self.heldout = items[:40], items[40:]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target)

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (output.argmax(1) == target).float()}


class Clock:
    """A `measure` whose truth is the table, `optimism` times slower for narrow networks than it says."""

    def __init__(self, net: Network, optimism: float = 1.0):
        self.net, self.optimism, self.calls = net, optimism, 0

    def __call__(
        self, modules: Mapping[str, nn.Module], example: tuple[Tensor, ...], device: Device, *, rounds: int = 15
    ) -> dict[str, Measurement]:
        self.calls += 1
        return {name: Measurement(self.truth(module), 0.0, rounds, 0.0) for name, module in modules.items()}

    def truth(self, module: nn.Module) -> float:
        shapes = {name: p.shape for name, p in module.named_parameters(remove_duplicate=False)}
        widths = {}
        for group in self.net.groups:
            if any(isinstance(module.get_submodule(path), Constant) for path, word in group.remains if word != IDLE):
                widths[group.name] = 0
                continue
            member = next(m for m in group.members if m.parameter in shapes)
            spare = self.net.parameters[member.parameter][member.dim] - group.width * member.index.shape[1]
            widths[group.name] = (shapes[member.parameter][member.dim] - spare) // member.index.shape[1]
        slower = 1.0 if widths == self.net.widths else self.optimism
        return slower * AnalyticTable().predict_ms(self.net, widths)


@dataclass(frozen=True)
class Case:
    """A network with a plan for it and everything that applying the plan takes."""

    plan: Plan
    model: nn.Module
    net: Network
    task: Any

    def arguments(self) -> tuple[Any, ...]:
        return self.plan, self.model, self.net, AnalyticTable(), self.task


def case(
    name: str = "generator", budget: str = "0.6x", task: Any = None, settings: Settings | None = None, **arguments: Any
) -> Case:
    """One of the small networks, planned for a budget."""
    model = NETWORKS[name](**arguments)
    net = network.trace(model, network.example_inputs((IMAGE,)))
    from search import ModelReference

    reference = ModelReference(f"tests/helpers.py:{name}", "{}", (IMAGE,))
    plan = search(model, net, AnalyticTable(), budget, magnitude(model, net), reference=reference, settings=settings)
    return Case(plan, model, net, task or Imitation(Photos(), heldout=0.25))
