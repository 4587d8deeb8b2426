"""TensorRT, built from the network's ONNX; its own profile of every layer is led back through the names it keeps."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from latency.runtimes.base import Compiled, Counters, Inputs
from latency.runtimes.onnx_export import OnnxExport
from latency.runtimes.owners import WEIGHTED, Owners, by_owner
from latency.runtimes.reuse import reusing
from latency.runtimes.torch_eager import TorchCuda, bound

__all__ = ["TensorRt", "engine_owners"]

ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
KERNEL = re.compile(r"conv|gemm|matmul|attention", re.IGNORECASE)
NEEDED = ("tensorrt", "onnx", "onnxscript")
TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorRt(TorchCuda):
    """TensorRT on the first CUDA device; torch holds its buffers. The types are the ONNX file's, without TF32."""

    name = "tensorrt"
    precisions: tuple[str, ...] = ("fp32", "fp16")

    @property
    def version(self) -> str:
        import tensorrt  # which distribution it came in, tensorrt or tensorrt-cu12, does not matter

        return str(tensorrt.__version__)

    def missing(self) -> str | None:
        if not all(importlib.util.find_spec(name) for name in NEEDED):
            return "runtime tensorrt is not installed; pip install tensorrt 'narrowgauge[onnx]'"
        return super().missing()

    def compile(
        self, module: nn.Module, example: Inputs, *, precision: str, threads: int, like: Compiled | None = None
    ) -> Compiled:
        module, inputs = bound(module, example, self.device, precision, threads)

        def of(source: OnnxExport) -> TensorRtModule:
            return TensorRtModule(source, module, inputs)

        return reusing(OnnxExport, of, module, inputs, like)


class TensorRtModule:
    """An engine with its buffers bound; `counters` runs a context of its own that reports every layer."""

    def __init__(self, source: OnnxExport, module: nn.Module, inputs: Inputs):
        import tensorrt

        self.source = source
        model, origins = source.at(module)
        self._engine = _build(model)
        information = self._engine.create_engine_inspector().get_engine_information(
            tensorrt.LayerInformationFormat.JSON
        )
        self._owners = engine_owners(information, origins, source.reads)
        self._stream = torch.cuda.Stream()
        self._buffers = _buffers(self._engine, inputs)
        self._context = self._bind()
        self._counted: Any = None

    def run(self) -> object:
        self._context.execute_async_v3(self._stream.cuda_stream)
        self._stream.synchronize()
        return self._buffers

    def outputs(self) -> list[torch.Tensor]:
        """The outputs of a run, for checks against torch."""
        self.run()
        return [tensor for name, tensor in self._buffers.items() if _is_output(self._engine, name)]

    def counters(self) -> Counters:
        if self._counted is None:
            self._counted = self._bind()
            self._counted.profiler = _profile()
        times = self._counted.profiler.times
        times.clear()
        self._counted.execute_async_v3(self._stream.cuda_stream)
        self._stream.synchronize()
        return by_owner(times.items(), self._owners)

    def _bind(self) -> Any:
        context = self._engine.create_execution_context()
        for name, tensor in self._buffers.items():
            context.set_tensor_address(name, tensor.data_ptr())
        return context


def _build(model: bytes) -> Any:
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise RuntimeError(f"TensorRT cannot read the network: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError("TensorRT cannot build the network; its own messages above say why")
    return tensorrt.Runtime(logger).deserialize_cuda_engine(engine)


def _is_output(engine: Any, name: str) -> bool:
    return engine.get_tensor_mode(name).name == "OUTPUT"


def _buffers(engine: Any, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Input and output by name, each on the inputs' device and of the engine's type."""
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    types = {name: TYPES[engine.get_tensor_dtype(name).name] for name in names}
    device, waiting = inputs[0].device, iter(inputs)
    return {
        name: torch.empty(tuple(engine.get_tensor_shape(name)), dtype=types[name], device=device)
        if _is_output(engine, name)
        else next(waiting).to(types[name]).contiguous()
        for name in names
    }


def _profile() -> Any:
    import tensorrt

    class Profile(tensorrt.IProfiler):
        """Milliseconds of the last run by layer of the engine."""

        def __init__(self) -> None:
            super().__init__()
            self.times: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times[layer_name] = ms

    return Profile()


def engine_owners(information: str, origins: Mapping[str, str], reads: Mapping[str, list[str]]) -> dict[str, str]:
    """Layer of the engine → layer of the network.

    information: the inspector's JSON, whose layers name the nodes of the ONNX file that they came from; without those
    the layer's own name does, joined by " + " where layers were fused. origins, reads: see `OnnxExport`.
    """
    owners: dict[str, str] = {}
    owning = Owners(reads)
    for layer in json.loads(information)["Layers"]:
        names = ONNX_LAYER.findall(layer.get("Metadata", "")) or layer["Name"].split(" + ")
        known = [origins[name] for name in names if name in origins]
        if known:
            weighted = bool(KERNEL.search(layer.get("LayerType", "")) or any(map(WEIGHTED.search, known)))
            owners[layer["Name"]] = owning.of(known, weighted=weighted)
    return owners
