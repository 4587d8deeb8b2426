"""What isolated timing would say of a network: every layer compiled and timed alone, and the times added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

import network
from latency import Device
from latency.measurement import interleave
from latency.profiler import first_channels
from latency.runtimes import get_runtime
from latency.runtimes.onnx_cut import cut
from latency.runtimes.onnx_export import OnnxExport
from latency.runtimes.onnxruntime import open_session, owners_of
from latency.runtimes.openvino import HINTS, compiled_model
from latency.runtimes.replay import StepModule, steps
from latency.table import spec_text
from network.types import Network

__all__ = ["Isolated"]

TOGETHER = 16
ROUNDS = 3

Run = Callable[[], object]


class Isolated:
    """Isolated milliseconds of one network's plans; layers of equal specification and widths are timed once.

    ONNX Runtime and OpenVINO get each layer as a part cut out of the network's ONNX file (a norm that was folded into
    its convolution is timed with it); the others get it as a module.
    """

    def __init__(self, model: nn.Module, net: Network, example: tuple[torch.Tensor, ...], device: Device):
        self._model, self._net, self._example, self._device = model, net, example, device
        self._known: dict[tuple[str, int, int], float] = {}

    def milliseconds(self, widths: Mapping[str, int]) -> float:
        """The sum over the layers of this plan. What takes or makes no plain tensors costs nothing here."""
        widths = self._net.complete(widths)
        keys = {x.name: (spec_text(x.spec), x.c_in.at(widths), x.c_out.at(widths)) for x in self._net.layers}
        missing = {key: name for name, key in keys.items() if key not in self._known}
        if missing:
            thin = network.narrow(self._model, self._net, first_channels(self._net, widths))
            alone = self._parts if self._device.runtime in ("onnxruntime", "openvino") else self._modules
            times = _timed(alone(thin, set(missing.values())), self._device.threads)
            self._known |= {key: times.get(name, 0.0) for key, name in missing.items()}
        return sum(self._known[key] for key in keys.values())

    def _modules(self, thin: nn.Module, names: set[str]) -> Iterator[tuple[str, Run]]:
        """Layers as modules, each with its inputs from one pass through the network."""
        device, values = self._device, {}
        runtime = get_runtime(device.runtime, device.precision)
        inputs = iter(self._example)
        for step in steps(network.export(thin, self._example)):
            if step.function is None:
                values[step.name] = next(inputs)
                continue
            args, kwargs = step.arguments(values)
            with torch.no_grad():
                values[step.name] = step.function(*args, **kwargs)
            reads = tuple(values[name] for name in step.reads)
            if step.name in names and all(isinstance(x, torch.Tensor) for x in (*reads, values[step.name])):
                compiled = runtime.compile(StepModule(step), reads, precision=device.precision, threads=device.threads)
                yield step.name, compiled.run

    def _parts(self, thin: nn.Module, names: set[str]) -> Iterator[tuple[str, Run]]:
        """Layers as parts of the network's ONNX file."""
        import onnx

        export = OnnxExport(thin, self._example)
        serialised, origins = export.at(thin)
        model = onnx.load_model_from_string(serialised)
        owners = owners_of(model.graph, origins, export.reads)
        for name in names:
            part = cut(model, [node for node in model.graph.node if owners.get(node.name) == name])
            feed = {value.name: _random(value) for value in part.graph.input}
            if part.graph.node and all(x.dtype == np.float32 for x in feed.values()):
                yield name, _ready(part.SerializeToString(), feed, self._device)


def _random(value: Any) -> np.ndarray:
    import onnx

    kind = value.type.tensor_type
    shape = [each.dim_value for each in kind.shape.dim]
    return np.random.default_rng(0).random(shape).astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def _ready(model: bytes, feed: dict[str, np.ndarray], device: Device) -> Run:
    if device.runtime == "onnxruntime":
        session = open_session(model, device.threads)
        return lambda: session.run(None, feed)
    request = compiled_model(model, HINTS[device.precision], device.threads).create_infer_request()
    return lambda: request.infer(feed, share_inputs=True)


def _timed(alone: Iterator[tuple[str, Run]], threads: int) -> dict[str, float]:
    """Milliseconds by layer, some of them compiled and timed in turn at a time."""
    times: dict[str, float] = {}
    while runs := dict(islice(alone, TOGETHER)):
        taken = interleave(runs, rounds=ROUNDS, threads=threads)
        times |= {name: samples.measurement().median_ms for name, samples in taken.items()}
    return times
