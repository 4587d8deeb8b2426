"""A runtime whose milliseconds are known exactly, with the clock that it advances."""

import pytest
import torch

import latency.measurement
import latency.runtimes
from latency.runtimes import UNOWNED
from network import export

__all__ = ["KnownModule", "KnownRuntime", "install"]


def staircase_ms(weight: torch.Tensor) -> float:
    """The known truth: convolutions work on blocks of four channels."""
    c_out, c_in = (-(-extent // 4) * 4 for extent in weight.shape[:2])
    return 0.05 + 1e-3 * c_in * c_out


class KnownRuntime:
    """Times are a function of the narrowed weights; the whole takes 0.5 ms more than its layers."""

    name, precisions, accelerator, version = "known", ("fp32",), "", "1"

    def __init__(self):
        self.now, self.compiled, self.slower = 0.0, 0, 1.0

    def missing(self):
        return None

    def supports(self, precision):
        return precision == "fp32"

    def compile(self, module, example, *, precision, threads, like=None):
        self.compiled += 1
        program = export(module, example)
        state = dict(module.named_parameters())
        weights = program.graph_signature.inputs_to_parameters
        times = {
            node.name: staircase_ms(state[weights[node.args[1].name]])
            for node in program.graph.nodes
            if node.op == "call_function" and "conv" in node.name
        }
        return KnownModule(self, times)

    def now_ms(self):
        return self.now

    def stolen_ms(self):
        return 0.0

    def settle(self, threads):
        return False


class KnownModule:
    def __init__(self, runtime, times):
        self.runtime, self.times = runtime, times

    def run(self):
        self.runtime.now += self.runtime.slower * (sum(self.times.values()) + 0.5)

    def counters(self):
        self.run()
        return {name: self.runtime.slower * ms for name, ms in (self.times | {UNOWNED: 0.5}).items()}


def install(monkeypatch: pytest.MonkeyPatch) -> KnownRuntime:
    """Make it `--runtime known`, and its clock the system's."""
    runtime = KnownRuntime()
    monkeypatch.setitem(latency.runtimes.RUNTIMES, "known", runtime)
    monkeypatch.setattr(latency.measurement, "SystemClock", lambda: runtime)
    return runtime
