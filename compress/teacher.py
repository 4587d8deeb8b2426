"""What a teacher says of a batch: in the runtime that is quickest at it here, and once where an input comes again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compress.batches import forward
from compress.precision import WORTH
from latency.runtimes.openvino import HINTS, OpenVino, compiled_model, converted

__all__ = ["RUNTIMES", "Teacher", "quickest_runtime"]

RUNTIMES = ("torch", "openvino")
CACHE_BYTES = 2**30
PATIENCE = 4096
"""Items after which, when none has come again, nothing more is remembered: random crops never do."""

LAPS = 4
TOLERANCE = 0.05
"""Largest difference from torch, relative to the largest output, that bf16 may make."""


class Teacher:
    """A network that is asked for its outputs, without gradients.

    runtime: "torch", or "openvino" for a network of one output on the CPU. What it said of an input is kept, within
    CACHE_BYTES, for as long as inputs come again.
    """

    def __init__(self, network: nn.Module, runtime: str = "torch", *, bf16: bool = False):
        self.network = network.eval()
        self._run = _openvino(network, bf16=bf16) if runtime == "openvino" else None
        self._known: dict[bytes, Tensor] = {}
        self._room, self._asked, self.found = CACHE_BYTES, 0, 0

    def __call__(self, inputs: tuple[Tensor, ...]) -> Any:
        """The network's output for a batch."""
        if len(inputs) != 1 or (self._asked >= PATIENCE and not self.found):
            self._known.clear()
            return self._said(inputs)
        keys = [hashlib.blake2b(x.detach().cpu().contiguous().numpy().tobytes()).digest() for x in inputs[0]]
        self._asked += len(keys)
        if all(key in self._known for key in keys):
            self.found += len(keys)
            return torch.stack([self._known[key] for key in keys]).to(inputs[0].device)
        output = self._said(inputs)
        if isinstance(output, Tensor) and len(output) == len(keys):
            self._keep(keys, output)
        return output

    def _said(self, inputs: tuple[Tensor, ...]) -> Any:
        """Contiguous as what is kept comes back: a loss sums in the order that its inputs lie in."""
        if self._run is not None:
            return self._run(inputs)
        with torch.no_grad():
            output = forward(self.network, inputs)
        return output.contiguous() if isinstance(output, Tensor) else output

    def _keep(self, keys: list[bytes], output: Tensor) -> None:
        for key, each in zip(keys, output.detach().cpu(), strict=True):
            size = each.numel() * each.element_size()
            if key not in self._known and size <= self._room:
                self._known[key] = each.clone()
                self._room -= size


def quickest_runtime(
    network: nn.Module, inputs: tuple[Tensor, ...], *, bf16: bool, clock: Callable[[], float] = time.perf_counter
) -> str:
    """ "openvino" where it can run this network and is worth it, both timed in turn; else "torch"."""
    if inputs[0].device.type != "cpu" or OpenVino().missing():
        return "torch"
    try:
        served = _openvino(network, bf16=bf16)
        said, expected = served(inputs), _eager(network, inputs, bf16=bf16)
    except Exception:  # whatever the other runtime does not take, torch does
        return "torch"
    if not isinstance(expected, Tensor) or said.shape != expected.shape:
        return "torch"
    if float((said - expected).abs().max()) > TOLERANCE * float(expected.abs().max()):
        return "torch"
    laps: dict[str, list[float]] = {name: [] for name in RUNTIMES}
    for _ in range(LAPS):
        for name, run in (("torch", lambda: _eager(network, inputs, bf16=bf16)), ("openvino", lambda: served(inputs))):
            start = clock()
            run()
            laps[name].append(clock() - start)
    return "openvino" if min(laps["openvino"]) * WORTH < min(laps["torch"]) else "torch"


def _eager(network: nn.Module, inputs: tuple[Tensor, ...], *, bf16: bool) -> Any:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = forward(network, inputs)
    return output.float() if isinstance(output, Tensor) else output


def _openvino(network: nn.Module, *, bf16: bool) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """The network as OpenVINO runs it; compiled for each shape of inputs when it first comes."""
    hint, threads = HINTS["bf16" if bf16 else "fp32"], torch.get_num_threads()
    requests: dict[tuple[torch.Size, ...], Any] = {}

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        shapes = tuple(x.shape for x in inputs)
        if shapes not in requests:
            with torch.autocast("cpu", enabled=False):  # its casts have no counterpart there
                model = converted(network.eval(), inputs)
            requests[shapes] = compiled_model(model, hint, threads).create_infer_request()
        requests[shapes].infer([x.contiguous().numpy() for x in inputs])
        return torch.from_numpy(requests[shapes].get_output_tensor(0).data.copy())

    return run
