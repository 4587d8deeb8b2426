"""torch eager on the CPU, and on CUDA where there is one: the user's own forward, op by op."""

from __future__ import annotations

import copy
import os
import time
from typing import Any

import torch
from torch import nn

from latency.runtimes.base import UNOWNED, Counters
from latency.runtimes.replay import Step, steps
from network import export

__all__ = ["TorchCpu", "TorchCuda"]

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
        self, module: nn.Module, example: tuple[torch.Tensor, ...], *, precision: str, threads: int
    ) -> EagerModule:
        if self.device == "cpu" and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        dtype = DTYPES[precision]
        inputs = tuple(x.to(self.device, dtype) if x.is_floating_point() else x.to(self.device) for x in example)
        return EagerModule(copy.deepcopy(module).eval().to(self.device, dtype), inputs, _timer(self.device))


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

    def __init__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], timer: type[WallTimer]):
        self._module, self._inputs, self._timer = module, inputs, timer
        self._program: list[Step] | None = None

    def run(self) -> object:
        with torch.inference_mode():
            output = self._module(*self._inputs)
            self._timer.synchronise()
        return output

    def counters(self) -> Counters:
        if self._program is None:
            self._program = steps(export(self._module, self._inputs))
        with torch.inference_mode():
            values: dict[str, Any] = {}
            inputs = iter(self._inputs)
            timer = self._timer()
            timer.mark(UNOWNED)
            for step in self._program:
                if step.function is None:
                    values[step.name] = next(inputs)
                    continue
                args, kwargs = step.arguments(values)
                values[step.name] = step.function(*args, **kwargs)
                del args, kwargs
                for name in step.dying:
                    del values[name]
                timer.mark(step.name)
            return timer.milliseconds()


class WallTimer:
    """Marks on the CPU, where every operation is done when it returns."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._times: list[float] = []

    def mark(self, name: str) -> None:
        self._times.append(time.perf_counter())
        self._names.append(name)

    def milliseconds(self) -> Counters:
        spans = zip(self._names[1:], self._times, self._times[1:], strict=False)
        return {name: (end - start) * 1e3 for name, start, end in spans}

    @staticmethod
    def synchronise() -> None:
        """Nothing is pending on the CPU."""


class EventTimer(WallTimer):
    """Marks in the CUDA stream."""

    def __init__(self) -> None:
        self._names = []
        self._events: list[torch.cuda.Event] = []

    def mark(self, name: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)
        self._names.append(name)

    def milliseconds(self) -> Counters:
        torch.cuda.synchronize()
        spans = zip(self._names[1:], self._events, self._events[1:], strict=False)
        return {name: start.elapsed_time(end) for name, start, end in spans}

    @staticmethod
    def synchronise() -> None:
        torch.cuda.synchronize()


def _timer(device: str) -> type[WallTimer]:
    return EventTimer if device == "cuda" else WallTimer
