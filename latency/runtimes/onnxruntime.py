"""ONNX Runtime on the CPU, its profile of every operation led back to the layers through names and fusion."""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from latency.runtimes.base import UNOWNED, Compiled, Counters, Inputs
from latency.runtimes.onnx_export import OnnxExport
from latency.runtimes.owners import Owners, by_owner
from latency.runtimes.reuse import reusing

__all__ = ["OnnxRuntime", "open_session", "owners_of"]

WEIGHTED = re.compile(r"Conv|Gemm|MatMul|Attention")
PASS = "model_run"
"""The profile's name for a pass as a whole."""

LAYOUT = {"ReorderInput", "ReorderOutput", "Transpose"}
UNCOUNTED = 2
"""A session's first runs: the second lays its memory out anew, by what the first asked for, and fetches all of it."""

RUNS = 3
ENOUGH_MS = 30.0
"""Runs of one profile after those, fewer where they take this long; the median of each operation counts."""

ERRORS_ONLY = 3
NEEDED = ("onnxruntime", "onnx", "onnxscript")
CPU = ("CPUExecutionProvider",)


class OnnxRuntime:
    """ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    precisions: tuple[str, ...] = ("fp32",)

    @property
    def accelerator(self) -> str:
        return ""

    @property
    def version(self) -> str:
        import onnxruntime  # which distribution it came in, the CPU's or the GPU's, does not matter

        return onnxruntime.__version__

    def missing(self) -> str | None:
        if all(importlib.util.find_spec(name) for name in NEEDED):
            return None
        return "runtime onnxruntime is not installed; pip install 'narrowgauge[onnx]'"

    def supports(self, precision: str) -> bool:
        return precision in self.precisions

    def compile(
        self, module: nn.Module, example: Inputs, *, precision: str, threads: int, like: Compiled | None = None
    ) -> OnnxModule:
        def of(source: OnnxExport) -> OnnxModule:
            return OnnxModule(source, module, example, threads)

        return reusing(OnnxExport, of, module, example, like)


class OnnxModule:
    """A network in a session; `counters` profiles the same optimised graph in a session of its own.

    A profile is only written when its session ends, so each call makes one, without optimising anew.
    """

    def __init__(self, source: OnnxExport, module: nn.Module, example: Inputs, threads: int):
        self.source, self._threads = source, threads
        self._model, self._origins = source.at(module)
        self._session = open_session(self._model, threads)
        self._feed = {value.name: x.numpy() for value, x in zip(self._session.get_inputs(), example, strict=True)}
        self._optimised = b""
        self._owners: dict[str, str] = {}

    def run(self) -> object:
        return self._session.run(None, self._feed)

    def outputs(self) -> list[torch.Tensor]:
        """The outputs of a run, for checks against torch."""
        return [torch.from_numpy(output) for output in self._session.run(None, self._feed)]

    def counters(self) -> Counters:
        with tempfile.TemporaryDirectory() as folder:
            if not self._optimised:
                self._optimise(Path(folder) / "optimised.onnx")
            session = open_session(
                self._optimised, self._threads, profile=str(Path(folder) / "profile"), level="ORT_DISABLE_ALL"
            )
            for _ in range(UNCOUNTED):
                session.run(None, self._feed)
            start = time.perf_counter()
            for _ in range(RUNS):
                session.run(None, self._feed)
                if (time.perf_counter() - start) * 1e3 > ENOUGH_MS:
                    break
            events = json.loads(Path(session.end_profiling()).read_text())
        samples: dict[str, list[float]] = {}
        for event in events:
            name = event["name"].removesuffix("_kernel_time")
            if event["name"] == PASS or (event["cat"] == "Node" and name != event["name"]):
                samples.setdefault(name, []).append(event["dur"] / 1e3)
        medians = {name: float(np.median(each[UNCOUNTED:])) for name, each in samples.items()}
        rest = max(0.0, medians.pop(PASS) - sum(medians.values()))
        return by_owner([*medians.items(), (UNOWNED, rest)], self._owners)

    def _optimise(self, path: Path) -> None:
        """Keep the optimised graph, and find what each of its operations came from."""
        import onnx

        open_session(self._model, self._threads, keep=str(path))
        self._optimised = path.read_bytes()
        self._owners = owners_of(onnx.load_model_from_string(self._optimised).graph, self._origins, self.source.reads)


def open_session(
    model: bytes, threads: int, providers: Sequence[Any] = CPU, *, profile: str = "", keep: str = "", level: str = ""
) -> Any:
    """A session; `profile`: its file's prefix; `keep`: where the optimised graph goes; `level`: of optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS_ONLY
    # Idle threads of one session must not spin while another is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if level:
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if keep:
        options.optimized_model_filepath = keep
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


def owners_of(graph: Any, origins: Mapping[str, str], reads: Mapping[str, list[str]]) -> dict[str, str]:
    """Operation of an ONNX graph, optimised or not, → layer; origins, reads: see `OnnxExport`.

    Values keep their names through optimisation, but where the layout changes: then the operation bears its output's
    name. A conversion between layouts belongs to the operation that reads it.
    """
    found: dict[str, str] = {}
    owning = Owners(reads)
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
        names = [re.sub(r"_nchwc(_token_\d+)?$", "", node.name), node.name, *node.output]
        known = [origins[name] for name in names if name in origins]
        if known and node.op_type not in LAYOUT:
            found[node.name] = owning.of(known, weighted=bool(WEIGHTED.search(node.op_type)))
    for node in reversed(graph.node):
        if node.name not in found:
            after = [reader.name for value in node.output for reader in readers.get(value, [])]
            owner = next((found[name] for name in after if name in found), None)
            if owner is not None:
                found[node.name] = owner
    return found
