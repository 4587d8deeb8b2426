"""torch.compile on the CPU and on CUDA: inductor's own program with a mark at every kernel, and each kernel's layer.

That program is a Python function that calls one kernel after the other and says, in a comment, where each begins.
`counters` runs the same function with a mark in place of every comment. Weights are frozen
(`torch._inductor.config.freezing`), as one serves: convolutions take their norms in, and are packed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from latency.runtimes.base import UNOWNED, Compiled, Counters, Inputs
from latency.runtimes.inductor_program import Origin, watched
from latency.runtimes.owners import WEIGHTED, Owners, by_owner
from latency.runtimes.replay import steps
from latency.runtimes.reuse import tensors_of
from latency.runtimes.timers import WallTimer, timer_of
from latency.runtimes.torch_eager import TorchCpu, TorchCuda, bound
from network import export

__all__ = ["Inductor", "InductorCuda"]

GENERATED = re.compile(r"^(cpp|triton)_")


class Inductor(TorchCpu):
    """torch.compile with its default mode, on the CPU."""

    name = "inductor"

    def missing(self) -> str | None:
        if not shutil.which(os.environ.get("CXX", "g++")):
            return "runtime inductor needs a C++ compiler; install g++, or name yours in the variable CXX"
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            return "runtime inductor needs Python's headers; install python3-dev"
        return None

    def compile(
        self, module: nn.Module, example: Inputs, *, precision: str, threads: int, like: Compiled | None = None
    ) -> Compiled:
        return InductorModule(*bound(module, example, self.device, precision, threads), timer_of(self.device))


class InductorCuda(TorchCuda):
    """torch.compile with its default mode, on the first CUDA device."""

    name = "inductor-cuda"

    def missing(self) -> str | None:
        if reason := super().missing():
            return reason
        return None if importlib.util.find_spec("triton") else "runtime inductor-cuda needs triton; pip install triton"

    compile = Inductor.compile


class InductorModule:
    """A module compiled by inductor, with its inputs bound."""

    def __init__(self, module: nn.Module, inputs: Inputs, timer: type[WallTimer]):
        program = export(module, inputs)
        self._inputs, self._timer = inputs, timer
        with torch.no_grad(), watched() as written:
            self._compiled = torch.compile(program.module(), fullgraph=True)
            self._compiled(*inputs)
        reads = {step.name: step.reads for step in steps(program)}
        self._owners = _owners(written.kernels, written.nodes, reads)
        self._program = written.with_marks()

    def run(self) -> object:
        with torch.no_grad():
            output = self._compiled(*self._inputs)
            self._timer.synchronise()
        return output

    def outputs(self) -> list[torch.Tensor]:
        """The outputs of a run, for checks against torch."""
        return tensors_of(self.run())

    def counters(self) -> Counters:
        timer = self._timer()
        self._program["mark"] = timer.mark
        with torch.no_grad():
            timer.mark(UNOWNED)
            self._program["call"](list(self._inputs))
            timer.mark(self._program["last"])
        return by_owner(timer.milliseconds().items(), self._owners)


def _owners(
    kernels: Mapping[str, list[str]], nodes: Mapping[str, list[Origin]], reads: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Kernel → layer: of one with weights the nearest such node, of others the largest.

    A fused loop over pictures also holds the indices and statistics of its neighbours, which are small.
    """
    order = {name: number for number, name in enumerate(reads)}
    owners: dict[str, str] = {}
    owning = Owners(reads)
    for kernel, made in kernels.items():
        origins = [origin for name in made for origin in nodes.get(name, ()) if origin[0] in order]
        if origins:
            origins.sort(key=lambda origin: (-origin[1], order[origin[0]]))
            weighted = bool(WEIGHTED.search(kernel)) and not GENERATED.match(kernel)
            owners[kernel] = owning.of([name for name, _ in origins], weighted=weighted)
    return owners
