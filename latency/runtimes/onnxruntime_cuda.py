"""ONNX Runtime on CUDA: torch holds its buffers, and its optimised graph is run in parts with an event between any two.

Its own profile times launches, not kernels (`docs/notes/2026-11-22-onnxruntime-cuda.md`).
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latency.runtimes.base import UNOWNED, Compiled, Counters, Inputs
from latency.runtimes.onnx_cut import cut
from latency.runtimes.onnx_export import OnnxExport
from latency.runtimes.onnxruntime import NEEDED, open_session, owners_of
from latency.runtimes.owners import by_owner
from latency.runtimes.reuse import reusing
from latency.runtimes.timers import WallTimer, timer_of
from latency.runtimes.torch_eager import TorchCuda, bound
from network.errors import DeviceError

__all__ = ["BoundModule", "OnnxRuntimeCuda"]

PROVIDER = "CUDAExecutionProvider"
TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}


class OnnxRuntimeCuda(TorchCuda):
    """ONNX Runtime's CUDA provider, on torch's first device. The types are the ONNX file's, without TF32."""

    name = "onnxruntime-cuda"
    precisions: tuple[str, ...] = ("fp32", "fp16")

    @property
    def version(self) -> str:
        import onnxruntime

        return onnxruntime.__version__

    def missing(self) -> str | None:
        if not all(importlib.util.find_spec(name) for name in NEEDED):
            return "runtime onnxruntime-cuda is not installed; pip install onnxruntime-gpu onnx onnxscript"
        import onnxruntime

        if PROVIDER not in onnxruntime.get_available_providers():
            return f"this onnxruntime has no {PROVIDER}; pip uninstall onnxruntime, pip install onnxruntime-gpu"
        return super().missing()

    def compile(
        self, module: nn.Module, example: Inputs, *, precision: str, threads: int, like: Compiled | None = None
    ) -> Compiled:
        module, inputs = bound(module, example, self.device, precision, threads)
        stream = torch.cuda.Stream()
        options = {
            "device_id": str(torch.cuda.current_device()),
            "user_compute_stream": str(stream.cuda_stream),
            "use_tf32": "0",
        }

        def of(source: OnnxExport) -> BoundModule:
            providers = [(PROVIDER, options), "CPUExecutionProvider"]
            return BoundModule(source, module, inputs, threads, providers, stream)

        return reusing(OnnxExport, of, module, inputs, like)


class BoundModule:
    """A network in a session whose inputs and outputs are torch tensors; `counters` runs it part by part.

    A part is what follows each other and belongs to one layer. All of them are queued before any is waited for, as in
    the whole; where launching a part takes longer than the part, its time is the launch's.
    """

    def __init__(
        self,
        source: OnnxExport,
        module: nn.Module,
        inputs: Inputs,
        threads: int,
        providers: Sequence[Any],
        stream: torch.cuda.Stream | None = None,
    ):
        self.source = source
        model, origins = source.at(module)
        self._open = partial(open_session, threads=threads, providers=providers, level="ORT_DISABLE_ALL")
        self._graph = _optimised(model, threads, providers)
        self._owners = owners_of(self._graph.graph, origins, source.reads)
        self._stream, self._timer = stream, timer_of(inputs[0].device.type)
        names = [value.name for value in self._graph.graph.input]
        self._inputs = dict(zip(names, (x.contiguous() for x in inputs), strict=True))
        self._whole = _Session(self._open(self._graph.SerializeToString()), self._inputs)
        self._timer.synchronise()
        self._parts: list[tuple[str, _Session]] = []

    def run(self) -> object:
        self._whole.run()
        self._timer.synchronise()
        return self._whole

    def outputs(self) -> list[torch.Tensor]:
        """The outputs of a run, for checks against torch."""
        self.run()
        return list(self._whole.outputs.values())

    def counters(self) -> Counters:
        if not self._parts:
            self._parts = self._cut()
            self._walk()  # the provider tries its algorithms
        return self._walk()

    def _walk(self) -> Counters:
        timer: WallTimer = self._timer()
        with torch.cuda.stream(self._stream):
            timer.mark(UNOWNED)
            for number, (_, part) in enumerate(self._parts):
                part.run(wait=False)
                timer.mark(str(number))
            times = timer.milliseconds()
        return by_owner(times.items(), {str(number): owner for number, (owner, _) in enumerate(self._parts)})

    def _cut(self) -> list[tuple[str, _Session]]:
        values, parts = dict(self._inputs), []
        for owner, nodes in groupby(self._graph.graph.node, lambda node: self._owners.get(node.name, UNOWNED)):
            part = _Session(self._open(cut(self._graph, list(nodes)).SerializeToString()), values)
            values |= part.outputs
            parts.append((owner, part))
        self._timer.synchronise()
        return parts


class _Session:
    """A session bound to torch tensors: it reads those of `values` that it needs and has its own outputs."""

    def __init__(self, session: Any, values: dict[str, torch.Tensor]):
        import onnxruntime

        self._session, self._binding = session, session.io_binding()
        self._queued = onnxruntime.RunOptions()
        self._queued.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._reads = {value.name: values[value.name] for value in session.get_inputs()}
        device = next(iter(values.values())).device
        self.outputs = {
            value.name: torch.empty(value.shape, dtype=TYPES[value.type], device=device)
            for value in session.get_outputs()
        }
        for bind, tensors in ((self._binding.bind_input, self._reads), (self._binding.bind_output, self.outputs)):
            for name, tensor in tensors.items():
                kind = torch.empty(0, dtype=tensor.dtype).numpy().dtype
                place = (tensor.device.type, tensor.device.index or 0)
                bind(name, *place, kind, tuple(tensor.shape), tensor.data_ptr())

    def run(self, *, wait: bool = True) -> None:
        self._session.run_with_iobinding(self._binding, None if wait else self._queued)


def _optimised(model: bytes, threads: int, providers: Sequence[Any]) -> Any:
    """The graph that the providers make of it, in ONNX's own layouts. Raises DeviceError if the first cannot be had."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        session = open_session(model, threads, providers, keep=str(path), level="ORT_ENABLE_EXTENDED")
        first = providers[0] if isinstance(providers[0], str) else providers[0][0]
        if first not in session.get_providers():
            raise DeviceError(f"onnxruntime cannot load its {first}; install the CUDA and cuDNN that it was built for")
        return onnx.load(str(path))
