"""OpenVINO on the CPU, with its own per-operation counters mapped back to the layers they came from."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from latency.runtimes.base import UNOWNED, Compiled, Counters, Inputs
from latency.runtimes.owners import Owners, by_owner
from latency.runtimes.replay import StepModule, output_names, steps
from latency.runtimes.reuse import Export, reusing
from network.errors import DeviceError
from network.quantisers import quantises

__all__ = ["HINTS", "Conversion", "OpenVino", "compiled_model", "converted"]

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""The precision of all that a network does not quantise itself."""
WEIGHTED_KINDS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


class OpenVino:
    """OpenVINO's CPU plugin.

    A network that simulates integers (fake_quantize) is run in int8 where it does so, whatever the precision: so it is
    int8's, and no other network is.
    """

    name = "openvino"
    precisions: tuple[str, ...] = tuple(HINTS)

    @property
    def accelerator(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return importlib.metadata.version("openvino")

    def missing(self) -> str | None:
        if importlib.util.find_spec("openvino"):
            return None
        return "runtime openvino is not installed; pip install 'narrowgauge[openvino]'"

    def supports(self, precision: str) -> bool:
        return precision in HINTS and precision.upper() in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def compile(
        self, module: nn.Module, example: Inputs, *, precision: str, threads: int, like: Compiled | None = None
    ) -> OpenVinoModule:
        def of(source: Conversion) -> OpenVinoModule:
            if source.quantised != (precision == "int8"):
                what, use = ("quantised", "int8") if source.quantised else ("not quantised", "fp32")
                raise DeviceError(f"the network is {what}, and {precision} is not for it; use --precision {use}")
            made = OpenVinoModule(source, module, example, HINTS[precision], threads)
            if source.quantised and not made.in_integers():
                raise DeviceError(
                    "OpenVINO runs none of the quantised layers in int8; let its quantisers have 256 levels "
                    "(torch.ao's default for x86 has 128, reduce_range) and symmetric weights"
                )
            return made

        return reusing(Conversion, of, module, example, like)


class Replay(nn.Module):
    """The exported program with every operation a submodule that bears its node's name, so that names survive."""

    def __init__(self, program: torch.export.ExportedProgram):
        super().__init__()
        self._steps, self._outputs = steps(program), output_names(program)
        for step in self._steps:
            if step.function is not None:
                self.add_module(f"at_{step.name}", StepModule(step))

    def reads(self) -> dict[str, list[str]]:
        """Operation → the operations and inputs that it reads."""
        return {step.name: step.reads for step in self._steps if step.function is not None}

    def forward(self, *inputs: torch.Tensor) -> Any:
        values: dict[str, Any] = {}
        waiting = iter(inputs)
        for step in self._steps:
            if step.function is None:
                values[step.name] = next(waiting)
            else:
                values[step.name] = self.get_submodule(f"at_{step.name}")(*(values[name] for name in step.reads))
        outputs = tuple(values[name] for name in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs


class Conversion(Export):
    """A network converted for OpenVINO, under the names of its exported graph.

    reads: operation → the operations and inputs that it reads. quantised: whether it quantises what it reads.
    """

    def __init__(self, module: nn.Module, example: Inputs):
        super().__init__(module, example)
        replay = Replay(self.program)
        self.reads = replay.reads()
        self.quantised = any(read and quantises(name) for name, read in self.reads.items())
        self.tolerance = 0.3 if self.quantised else self.tolerance  # what is rounded twice may be two levels apart
        self._model, self._shapes = _of_any_shape(replay, example), _shapes(example)
        _name_norms(self._model)

    def at(self, module: nn.Module) -> Any:
        """The model with this module's tensors, which may be narrower. Raises what OpenVINO raises."""
        from openvino import Type, op

        bound = self.bound(module)
        groups = {f"{_scope(name)}/aten::_convolution/Constant": number for name, number in bound.groups.items()}
        model = self._model.clone()
        for old in model.get_ops():
            if old.get_type_name() == "Constant":
                name = old.get_friendly_name()
                tensor = bound.tensors.get(name.rpartition(".")[2])
                if tensor is not None:
                    new = op.Constant(tensor.numpy(force=True))
                elif name in groups and old.get_element_type() in (Type.i32, Type.i64):
                    new = op.Constant(np.full(old.data.shape, groups[name], old.data.dtype))
                else:
                    continue
                new.set_friendly_name(name)
                old.output(0).replace(new.output(0))
        model.validate_nodes_and_infer_types()  # else reshape goes by sizes that it worked out at the old widths
        model.reshape(self._shapes)
        if self.quantised:
            _keep_quantised(model)
        return model


class OpenVinoModule:
    """A network compiled by OpenVINO; `counters` uses a second compilation that has them switched on."""

    def __init__(self, source: Conversion, module: nn.Module, example: Inputs, hint: str, threads: int):
        self.source = source
        self._model = source.at(module)
        self._hint, self._threads = hint, threads
        self._inputs = [x.numpy() for x in example]
        self._request = compiled_model(self._model, hint, threads).create_infer_request()
        self._counted: Any = None
        self._owner: dict[str, str] = {}
        self._passes, self._passes_ms = 0, 0.0
        self._first: dict[str, float] = {}

    def run(self) -> object:
        self._request.infer(self._inputs, share_inputs=True)
        return self._request

    def in_integers(self) -> bool:
        """Whether any layer with weights is run in int8."""
        nodes = [
            node.get_rt_info() for node in self._request.get_compiled_model().get_runtime_model().get_ordered_ops()
        ]
        heavy = [node for node in nodes if node["layerType"].astype(str) in WEIGHTED_KINDS]
        return any(node["runtimePrecision"].astype(str) in ("i8", "u8") for node in heavy)

    def outputs(self) -> list[torch.Tensor]:
        """The outputs of a run, for checks against torch."""
        self.run()
        return [torch.from_numpy(tensor.data.copy()) for tensor in self._request.output_tensors]

    def counters(self) -> Counters:
        """Means over the passes since the first: what OpenVINO reports is an average over every pass there was.

        The n-th report times n is the sum of n passes; the first one, which finds its memory cold, is taken off.
        """
        if self._counted is None:
            compiled = compiled_model(self._model, self._hint, self._threads, count=True)
            self._owner = self._owners(compiled.get_runtime_model())
            self._counted = compiled.create_infer_request()
            self._counted.infer(self._inputs, share_inputs=True)
            self._first = self._averages()
        start = time.perf_counter()
        self._counted.infer(self._inputs, share_inputs=True)
        self._passes_ms += (time.perf_counter() - start) * 1e3
        self._passes += 1
        n, first = self._passes, self._first
        means = {name: max(0.0, ((n + 1) * ms - first[name]) / n) for name, ms in self._averages().items()}
        rest = max(0.0, self._passes_ms / n - sum(means.values()))
        return by_owner([*means.items(), (UNOWNED, rest)], self._owner)

    def _averages(self) -> dict[str, float]:
        return {info.node_name: info.real_time.total_seconds() * 1e3 for info in self._counted.get_profiling_info()}

    def _owners(self, runtime_model: Any) -> dict[str, str]:
        """Executed node → layer: the layer with weights among its origins, else the first origin.

        A conversion between layouts or precisions belongs to the layer that reads it, which is where it would be
        saved.
        """
        owners: dict[str, str] = {}
        owning = Owners(self.source.reads)
        later: list[Any] = []
        for node in runtime_model.get_ordered_ops():
            info = node.get_rt_info()
            kind = info["layerType"].astype(str) if "layerType" in info else ""
            origins = info["originalLayersNames"].astype(str).split(",") if "originalLayersNames" in info else []
            names = [name for name in map(_node_name, origins) if name in self.source.reads]
            if names:
                owners[node.get_friendly_name()] = owning.of(names, weighted=kind in WEIGHTED_KINDS)
            elif kind not in ("Input", "Const", "Output"):
                later.append(node)
        for node in reversed(later):
            readers = [target.get_node() for output in node.outputs() for target in output.get_target_inputs()]
            reader = next((r.get_friendly_name() for r in readers if r.get_friendly_name() in owners), None)
            if reader is not None:
                owners[node.get_friendly_name()] = owners[reader]
        return owners


def compiled_model(model: Any, hint: str, threads: int, *, count: bool = False) -> Any:
    """OpenVINO's model, the bytes of an ONNX one or a file's path, compiled for the CPU; `count`: with counters on."""
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": count,
    }
    if isinstance(model, bytes):
        model = _core().read_model(model)
    return _core().compile_model(model, "CPU", options)


def converted(module: nn.Module, example: Inputs) -> Any:
    """OpenVINO's model of a module, for inputs of these shapes."""
    model = _of_any_shape(module, example)
    model.reshape(_shapes(example))
    return model


def _shapes(example: Inputs) -> dict[int, list[int]]:
    return {number: list(x.shape) for number, x in enumerate(example)}


def _of_any_shape(module: nn.Module, example: Inputs) -> Any:
    """What `openvino.convert_model` gives before its transformations, which the compiler makes too.

    That is a third of the time. torch.jit's check of its own trace is left out as well.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        decoder = TorchScriptPythonDecoder(module, example_input=example, trace_kwargs={"check_trace": False})
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def _name_norms(model: Any) -> None:
    """Put a product and a sum that bear its name in the place of every batch norm.

    The compiler does so as well, but without a name, and the convolution that takes them in loses its own.
    """
    from openvino import opset8 as op

    for norm in [node for node in model.get_ops() if node.get_type_name() == "BatchNormInference"]:
        x, gamma, beta, mean, variance = (each.get_source_output() for each in norm.inputs())
        name, epsilon = norm.get_friendly_name(), np.float32(norm.get_attributes()["epsilon"])
        scale = op.divide(gamma, op.sqrt(op.add(variance, epsilon)))
        shift = op.subtract(beta, op.multiply(mean, scale))
        shape = [1, -1] + [1] * (x.get_partial_shape().rank.get_length() - 2)
        scaled = op.multiply(x, op.reshape(scale, shape, False))
        shifted = op.add(scaled, op.reshape(shift, shape, False))
        for number, node in enumerate((scaled, shifted)):
            node.set_friendly_name(f"{name}/{number}")
        norm.output(0).replace(shifted.output(0))


def _keep_quantised(model: Any) -> None:
    """Integer weights and their scales in the place of quantised weights, which the compiler would fold to floats."""
    from openvino._offline_transformations import apply_moc_transformations  # openvino.convert_model calls it too

    apply_moc_transformations(model, cf=False)


def _scope(node: str) -> str:
    """The scope of a node's operations: `conv2d_1` → `__module.at_conv2d_1`."""
    return f"__module.at_{node}"


def _node_name(friendly: str) -> str:
    """`__module.at_conv2d_1/aten::_convolution/Convolution` → `conv2d_1`."""
    scope = friendly.split("/")[0]
    return scope.rpartition(".at_")[2] if ".at_" in scope else ""
