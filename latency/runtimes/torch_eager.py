"""torch eager on the CPU, and on CUDA where there is one: the user's own forward, op by op."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from latency.runtimes.base import UNOWNED, Compiled, Counters, Inputs
from latency.runtimes.replay import output_names, steps
from latency.runtimes.reuse import Export, reusing
from latency.runtimes.timers import WallTimer, timer_of
from network.exporting import stand_in

__all__ = ["EagerModule", "TorchCpu", "TorchCuda", "bound", "usual_threads"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchCpu:
    """torch eager on the CPU."""

    name = "torch"
    precisions: tuple[str, ...] = ("fp32", "bf16")
    device = "cpu"

    @property
    def accelerator(self) -> str:
        return ""

    @property
    def version(self) -> str:
        pages = "+hugepages" if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1" and self.device == "cpu" else ""
        return torch.__version__ + pages

    def missing(self) -> str | None:
        return None

    def supports(self, precision: str) -> bool:
        if precision == "bf16":
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if torch.backends.mkldnn.is_available() else False
        return precision in self.precisions

    def compile(
        self, module: nn.Module, example: Inputs, *, precision: str, threads: int, like: Compiled | None = None
    ) -> Compiled:
        return EagerModule(*bound(module, example, self.device, precision, threads), timer_of(self.device), like)


def bound(module: nn.Module, example: Inputs, device: str, precision: str, threads: int) -> tuple[nn.Module, Inputs]:
    """A copy of the module and its inputs on a torch device, in a precision; on the CPU torch's threads are set too.

    Whoever times it puts those back (`usual_threads`).
    """
    if device == "cpu" and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    dtype = DTYPES[precision]
    inputs = tuple(x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in example)
    return stand_in(module, share=False).eval().to(device, dtype), inputs


@contextmanager
def usual_threads() -> Iterator[None]:
    """torch has as many threads afterwards as before: what is trained next is not to run on those of a device."""
    usual = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != usual:
            torch.set_num_threads(usual)


class TorchCuda(TorchCpu):
    """torch eager on the first CUDA device."""

    name = "torch-cuda"
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    device = "cuda"

    @property
    def accelerator(self) -> str:
        return torch.cuda.get_device_name() if torch.cuda.is_available() else ""

    def missing(self) -> str | None:
        return (
            None if torch.cuda.is_available() else "no CUDA device is visible to torch; install a CUDA build of torch"
        )

    def supports(self, precision: str) -> bool:
        return precision in self.precisions and (precision != "bf16" or torch.cuda.is_bf16_supported())


class EagerModule:
    """A module with its inputs bound; `counters` walks the exported graph node by node, as eager executes it."""

    def __init__(
        self,
        module: nn.Module,
        inputs: Inputs,
        timer: type[WallTimer],
        like: Compiled | None = None,
    ):
        self._module, self._inputs, self._timer = module, inputs, timer
        self._like = like if isinstance(like, EagerModule) else None

    @property
    def source(self) -> Export:
        """The export that is walked."""
        return self._walk.source

    @cached_property
    def _walk(self) -> Walk:
        def of(source: Export) -> Walk:
            return Walk(source, self._module, self._inputs)

        return reusing(Export, of, self._module, self._inputs, self._like)

    def forward(self) -> object:
        """One forward pass, which on a GPU may not be finished."""
        with torch.inference_mode():
            return self._module(*self._inputs)

    def run(self) -> object:
        output = self.forward()
        self._timer.synchronise()
        return output

    def outputs(self) -> list[torch.Tensor]:
        """The outputs of the walk that `counters` takes, for checks against the module."""
        return self._walk.outputs()

    def counters(self) -> Counters:
        return self.walk(self._timer()).milliseconds()

    def walk(self, timer: WallTimer) -> WallTimer:
        """One pass over the exported graph, with a mark after every node."""
        self._walk(timer)
        return timer


class Walk:
    """An exported graph with a module's tensors, executed node by node."""

    def __init__(self, source: Export, module: nn.Module, inputs: Inputs):
        self.source = source
        self._steps = steps(source.program, source.bound(module))
        self._outputs, self._inputs = output_names(source.program), inputs

    def __call__(self, timer: WallTimer) -> dict[str, Any]:
        """One pass, with a mark after every node. Returns what no later node has read."""
        with torch.inference_mode():
            values: dict[str, Any] = {}
            inputs = iter(self._inputs)
            timer.mark(UNOWNED)
            for step in self._steps:
                if step.function is None:
                    values[step.name] = next(inputs)
                    continue
                args, kwargs = step.arguments(values)
                values[step.name] = step.function(*args, **kwargs)
                del args, kwargs
                for name in step.dying:
                    del values[name]
                timer.mark(step.name)
        return values

    def outputs(self) -> list[torch.Tensor]:
        """The outputs of a pass, for checks against the module."""
        values = self(WallTimer())
        return [values[name] for name in self._outputs]
