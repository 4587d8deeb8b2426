"""What `search --server` and `--push` need: the problem of `search.planner`, solved in a service's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from network.types import Network
from search.budget import Budget
from search.plan import Feed, ModelReference, Plan, Settings
from search.service.client import Client, reach
from search.service.replies import JobStatus
from search.service.schemas import DeviceChoice, Target
from search.service.traced import describe

__all__ = ["RemoteProblem", "choose_devices", "push_network", "reach"]


def push_network(
    url: str, net: Network, importance: Mapping[str, np.ndarray], reference: ModelReference, feed: Feed
) -> str:
    """Push a network with its importance to a service; returns its fingerprint there. Raises ServiceError."""
    with Client(url) as client:
        return client.push_network(describe(net, importance, reference, feed))


def choose_devices(
    url: str, machines: Sequence[str | None], runtime: str, precision: str, threads: int | None
) -> list[DeviceChoice]:
    """The devices of a service that `search` would choose; None is this machine. Raises ServiceError, DeviceError."""
    with Client(url) as client:
        return [client.choose(machine, runtime, precision, threads) for machine in machines]


class RemoteProblem:
    """A network of a service on devices that it knows; answers as `search.planner.Problem` does.

    others: the budgets of all devices but the first. Raises ServiceError, and what the search raises.
    """

    def __init__(
        self, url: str, network: str, devices: Sequence[DeviceChoice], others: Sequence[Budget], settings: Settings
    ):
        self._client, self._name, self._settings = Client(url), network, settings
        self.network = self._client.network(network).to_network()
        self._device, *rest = devices
        self._others = [Target(**dict(each), budget=budget.text) for each, budget in zip(rest, others, strict=True)]

    def top(self, budget: Budget, count: int) -> list[Plan]:
        """At most `count` plans that are well apart, the best first."""
        targets = [Target(**dict(self._device), budget=budget.text), *self._others]
        if count == 1:
            return [self._client.plan(self._name, targets, self._settings)]
        return self._client.top(self._name, targets, count, self._settings)

    def front(self, count: int) -> list[Plan]:
        """Plans from the fastest to the full network, with a progress bar."""
        with tqdm(total=count, desc="front", unit="plan", leave=False) as bar:

            def seen(status: JobStatus) -> None:
                bar.update(status.done - bar.n)

            return self._client.front(self._name, self._device, count, self._settings, self._others, seen)
