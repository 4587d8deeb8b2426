"""Every runtime, one file each, behind the protocol in `latency.runtimes.base`."""

from __future__ import annotations

from latency.device import Device, available_cores, this_machine
from latency.runtimes.base import UNOWNED, Compiled, Counters, Runtime
from latency.runtimes.cuda_graphs import CudaGraphs
from latency.runtimes.inductor import Inductor, InductorCuda
from latency.runtimes.onnxruntime import OnnxRuntime
from latency.runtimes.onnxruntime_cuda import OnnxRuntimeCuda
from latency.runtimes.openvino import OpenVino
from latency.runtimes.tensorrt import TensorRt
from latency.runtimes.torch_eager import TorchCpu, TorchCuda
from network.errors import DeviceError

__all__ = ["RUNTIMES", "UNOWNED", "Compiled", "Counters", "Runtime", "get_runtime", "here"]

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        TorchCpu(),
        TorchCuda(),
        CudaGraphs(),
        Inductor(),
        InductorCuda(),
        OpenVino(),
        OnnxRuntime(),
        OnnxRuntimeCuda(),
        TensorRt(),
    )
}


def get_runtime(name: str, precision: str = "fp32") -> Runtime:
    """The runtime of this name, installed and able to run that precision here. Raises DeviceError."""
    if name not in RUNTIMES:
        raise DeviceError(f"unknown runtime '{name}'; choose one of {', '.join(RUNTIMES)}")
    runtime = RUNTIMES[name]
    if reason := runtime.missing():
        raise DeviceError(reason)
    if precision not in runtime.precisions:
        raise DeviceError(
            f"runtime {name} has no precision '{precision}'; choose one of {', '.join(runtime.precisions)}"
        )
    if not runtime.supports(precision):
        raise DeviceError(f"this machine does not run {precision} in {name}; use --precision fp32")
    return runtime


def here(runtime: str, precision: str = "fp32", threads: int | None = None) -> Device:
    """The device that this process would measure with that runtime. Raises DeviceError."""
    chosen = get_runtime(runtime, precision)
    cores = available_cores()
    if threads is not None and not 1 <= threads <= cores:
        raise DeviceError(f"{threads} threads on {cores} cores; give --threads {cores} or fewer")
    machine = this_machine(chosen.accelerator)
    return Device(machine.id, runtime, precision, threads or cores, chosen.version)
