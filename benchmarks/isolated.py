"""What isolated timing would say of a network: every layer compiled and timed alone, and the times added up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import network
from latency import Device
from latency.measurement import interleave
from latency.profiler import first_channels
from latency.runtimes import get_runtime
from latency.runtimes.replay import Step, steps
from latency.table import spec_text
from network.types import Network

__all__ = ["Alone", "Isolated"]

TOGETHER = 16
ROUNDS = 3


class Alone(nn.Module):
    """One operation of an exported graph; what it reads of the others are its inputs, its weights are buffers."""

    def __init__(self, step: Step):
        super().__init__()
        self._step = step
        for number, weight in step.constants():
            self.register_buffer(f"weight{number}", weight)

    def forward(self, *inputs: torch.Tensor) -> Any:
        assert self._step.function is not None
        weights = {number: getattr(self, f"weight{number}") for number, _ in self._step.constants()}
        args, kwargs = self._step.arguments(dict(zip(self._step.reads, inputs, strict=True)), weights)
        return self._step.function(*args, **kwargs)


class Isolated:
    """Isolated milliseconds of one network's plans; layers of equal specification and widths are timed once."""

    def __init__(self, model: nn.Module, net: Network, example: tuple[torch.Tensor, ...], device: Device):
        self._model, self._net, self._example, self._device = model, net, example, device
        self._known: dict[tuple[str, int, int], float] = {}

    def milliseconds(self, widths: Mapping[str, int]) -> float:
        """The sum over the layers of this plan. What takes or makes no plain tensors costs nothing here."""
        widths = self._net.complete(widths)
        keys = {x.name: (spec_text(x.spec), x.c_in.at(widths), x.c_out.at(widths)) for x in self._net.layers}
        missing = {key: name for name, key in keys.items() if key not in self._known}
        thin = network.narrow(self._model, self._net, first_channels(self._net, widths))
        alone = self._alone(thin, set(missing.values()))
        todo = [(key, *alone[name]) for key, name in missing.items() if name in alone]
        for start in range(0, len(todo), TOGETHER):
            self._time(todo[start : start + TOGETHER])
        return sum(self._known.get(key, 0.0) for key in keys.values())

    def _alone(self, thin: nn.Module, names: set[str]) -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]]:
        """Layer → itself as a module, with its inputs from one pass through the network."""
        found, values = {}, {}
        inputs = iter(self._example)
        with torch.no_grad():
            for step in steps(network.export(thin, self._example)):
                if step.function is None:
                    values[step.name] = next(inputs)
                    continue
                args, kwargs = step.arguments(values)
                values[step.name] = step.function(*args, **kwargs)
                reads = tuple(values[name] for name in step.reads)
                if step.name in names and all(isinstance(x, torch.Tensor) for x in (*reads, values[step.name])):
                    found[step.name] = (Alone(step), reads)
        return found

    def _time(self, todo: list[tuple[tuple[str, int, int], nn.Module, tuple[torch.Tensor, ...]]]) -> None:
        device = self._device
        runtime = get_runtime(device.runtime, device.precision)
        runs = {
            str(number): runtime.compile(module, inputs, precision=device.precision, threads=device.threads).run
            for number, (_, module, inputs) in enumerate(todo)
        }
        taken = interleave(runs, rounds=ROUNDS, threads=device.threads)
        self._known |= {key: taken[str(n)].measurement().median_ms for n, (key, _, _) in enumerate(todo)}
