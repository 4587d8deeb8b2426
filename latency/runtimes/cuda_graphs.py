"""torch eager captured in a CUDA graph and launched as one, so that short kernels do not wait for Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from latency.runtimes.base import Compiled, Counters, Inputs
from latency.runtimes.reuse import tensors_of
from latency.runtimes.timers import EventTimer
from latency.runtimes.torch_eager import EagerModule, TorchCuda, bound

__all__ = ["CudaGraphs"]

WARMUPS = 3
"""Runs before the capture, in which libraries choose their algorithms and allocate."""


class CudaGraphs(TorchCuda):
    """CUDA graphs of the eager module, on the first CUDA device."""

    name = "cuda-graphs"

    def compile(
        self, module: nn.Module, example: Inputs, *, precision: str, threads: int, like: Compiled | None = None
    ) -> Compiled:
        eager = like.eager if isinstance(like, CapturedModule) else None
        return CapturedModule(EagerModule(*bound(module, example, self.device, precision, threads), EventTimer, eager))


class CapturedModule:
    """A module in a graph; `counters` replays a second one that has an event between any two operations."""

    def __init__(self, eager: EagerModule):
        self.eager = eager
        self._graph, self._output = _captured(eager.forward)
        self._counted: tuple[torch.cuda.CUDAGraph, EventTimer] | None = None

    def run(self) -> object:
        self._graph.replay()
        torch.cuda.synchronize()
        return self._output

    def outputs(self) -> list[torch.Tensor]:
        """The outputs of a run, for checks against torch."""
        return tensors_of(self.run())

    def counters(self) -> Counters:
        if self._counted is None:
            self._counted = _captured(lambda: self.eager.walk(EventTimer(external=True)))
        graph, timer = self._counted
        graph.replay()
        return timer.milliseconds()


def _captured(work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The graph of one call, and what that call returned."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph, result
