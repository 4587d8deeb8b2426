"""What inductor writes while it compiles: the source of its program, and where each kernel in it comes from."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import fx

from latency.runtimes.base import UNOWNED
from latency.runtimes.owners import root_of

if TYPE_CHECKING:
    from torch._inductor.pattern_matcher import PatternMatcherPass

__all__ = ["Origin", "Written", "watched"]

KERNEL = re.compile(r"^( *)# \[Provenance debug handles\] (\S+)$", re.MULTILINE)

PROVENANCE_ONLY = 2

TRANSPOSED = 6
"""Where aten.convolution's arguments say so."""

CONFIG: dict[str, Any] = {
    "freezing": True,
    "fx_graph_cache": False,
    "trace.provenance_tracking_level": PROVENANCE_ONLY,
}
QUICKER = {"aot_inductor.enable_line_tables": False}
"""What not every torch has: a third of the C++ compiler's time, and nothing of the kernels'."""

Origin = tuple[str, int]
"""A node of the exported graph, and the elements of its result."""


@dataclass(slots=True)
class Written:
    """What inductor wrote: its program's module and source, and what each kernel came from in its graph, by node.

    `nodes` are those of its graph, each with the nodes of the exported graph behind it and their elements.
    """

    source: str = ""
    module: ModuleType | None = None
    kernels: dict[str, list[str]] = field(default_factory=dict)
    nodes: dict[str, list[Origin]] = field(default_factory=dict)

    def with_marks(self) -> dict[str, Any]:
        """The program's names, with a `call` that does `mark(<kernel before>)` where a kernel begins."""
        assert self.module is not None
        body = self.source.partition("del async_compile\n")[2]
        before = UNOWNED

        def marked(match: re.Match[str]) -> str:
            nonlocal before
            ended, before = before, match[2]
            return f"{match[1]}mark({ended!r})"

        program = dict(vars(self.module))
        exec(compile(KERNEL.sub(marked, body), "<inductor>", "exec"), program)
        program["last"] = before
        return program


class Folding:
    """inductor's pass that folds a batch norm into the convolution before it, but for transposed ones.

    It takes their inputs for their outputs (torch 2.13): of as many inputs as outputs it scales the wrong axis, and of
    one output it fails (docs/notes/2026-11-30-inductor.md).
    """

    def __init__(self, folding: PatternMatcherPass):
        self._folding = folding

    def apply(self, graph: fx.Graph) -> int:
        """How many were folded."""
        convolution, other = torch.ops.aten.convolution.default, torch.ops.aten.convolution_overrideable.default
        found = graph.find_nodes(op="call_function", target=convolution)
        transposed = [node for node in found if node.args[TRANSPOSED]]
        for node in transposed:
            node.target = other  # the same arguments, and no pattern knows it
        try:
            return self._folding.apply(graph)
        finally:
            for node in transposed:
                node.target = convolution


@contextlib.contextmanager
def right_folding() -> Iterator[None]:
    """What is compiled with frozen weights here says what torch says."""
    from torch._inductor.fx_passes import freezing_patterns

    freezing_patterns.lazy_init()
    with mock.patch.object(freezing_patterns, "binary_folding_pass", Folding(freezing_patterns.binary_folding_pass)):
        yield


@contextlib.contextmanager
def watched() -> Iterator[Written]:
    """Compile in a folder of its own, and see what inductor writes."""
    from torch._functorch import config as autograd_config
    from torch._inductor import config, debug
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.graph import GraphLowering

    written = Written()
    options = CONFIG | {name: value for name, value in QUICKER.items() if name in config.get_config_copy()}
    trace_kernel = debug.set_kernel_post_grad_provenance_tracing

    def see_nodes(graph: fx.Graph) -> None:
        written.nodes |= {node.name: _origins(node) for node in graph.nodes}

    def see_kernel(scheduled: Any, name: str, is_extern: bool = False) -> int | None:
        handle = trace_kernel(scheduled, name, is_extern)
        if is_extern:  # torch names the node whose buffer it ends in, which another may have written by then
            written.kernels[f"{name}:{handle}"] = [node.name for node in scheduled.origins]
        return handle

    def see_source(source: str) -> None:
        written.source = source
        written.kernels = debug._inductor_triton_kernel_to_post_grad_node_info | written.kernels

    with (
        tempfile.TemporaryDirectory(prefix="narrowgauge-") as folder,
        mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder, TRITON_CACHE_DIR=f"{folder}/triton"),
        mock.patch.object(GraphLowering, "save_output_code", see_source),
        mock.patch.object(debug, "set_kernel_post_grad_provenance_tracing", see_kernel),
        config.patch(options | {"post_grad_custom_post_pass": see_nodes}),
        autograd_config.patch(enable_autograd_cache=False),
        right_folding(),
    ):
        yield written
        written.module = PyCodeCache.modules[-1]
    # The weights are attributes of that module, which would else be kept as long as the process lives.
    sys.modules.pop(written.module.__name__, None)
    PyCodeCache.cache_clear()
    PyCodeCache.linemaps.clear()


def _origins(node: fx.Node) -> list[Origin]:
    """The nodes of the exported graph that this one came from; several where a pattern replaced them by one."""
    from torch._inductor.pattern_matcher import Match

    match = next((x for x in getattr(node.target, "args", ()) if isinstance(x, Match)), None)
    found = [(root_of(each), _elements(each)) for each in (match.nodes if match else [node])]
    return [(root, elements) for root, elements in found if root]


def _elements(node: fx.Node) -> int:
    """The elements of the node's largest result."""
    made = node.meta.get("val")
    values = made if isinstance(made, tuple | list) else [made]
    return max((value.numel() for value in values if isinstance(value, torch.Tensor)), default=0)
