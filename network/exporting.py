"""torch.export, made safe for the caller's model and plain in its complaints."""

from __future__ import annotations

import contextlib
import copy
import io
import traceback
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from network.errors import TraceError
from network.modes import forgetful_eval
from network.quantisers import decide_quantisers

__all__ = ["blame", "export", "stand_in", "to_onnx"]


def export(
    model: nn.Module, example_inputs: tuple[Tensor, ...], kwargs: Mapping[str, object] | None = None
) -> torch.export.ExportedProgram:
    """The model's graph in eval mode, non-strict, without gradients or dead nodes. The caller's model is not touched.

    The call_function nodes of a narrowed model's export have the names of the dense one's.
    Raises TraceError with torch's reason and the user's file and line.
    """
    clone = forgetful_eval(stand_in(model))
    decide_quantisers(clone)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(clone, tuple(example_inputs), dict(kwargs or {}), strict=False)
            _inline_regions(program.graph_module, program.graph, program.graph_signature.user_outputs)
            program.graph.eliminate_dead_code()
            program.graph_module.recompile()
            return program
    except Exception as error:
        shapes = ", ".join("x".join(map(str, t.shape)) for t in example_inputs if isinstance(t, Tensor))
        raise TraceError(
            f"torch.export cannot follow {type(model).__name__} on input {shapes}: {blame(error)}; "
            "check --input, or rewrite that line without control flow on values"
        ) from error


REGIONS = ("wrap_with_autocast", "wrap_with_set_grad_enabled")
"""What torch.export makes of a block under `torch.autocast` or `torch.no_grad`: one node that calls a graph."""


def _inline_regions(owner: nn.Module, graph: Any, outputs: Collection[str]) -> None:
    """Put the nodes of such blocks in their place: to an inference without autocast they are like any other.

    outputs: names that the graph's signature knows; the nodes that now make them take them over.
    """
    for node in [node for node in graph.nodes if getattr(node.target, "__name__", "") in REGIONS]:
        at = next(i for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr")
        called = node.args[at]
        body = getattr(owner, called.target)
        _inline_regions(body, body.graph, ())
        made = dict(zip(body.graph.find_nodes(op="placeholder"), node.args[at + 1 :], strict=True))
        with graph.inserting_before(node):
            for inner in body.graph.nodes:
                if inner.op not in ("placeholder", "output"):
                    made[inner] = graph.node_copy(inner, made.__getitem__)
        results = [made[inner] for inner in body.graph.output_node().args[0]]
        for user in list(node.users):  # each takes one of the results
            result = results[user.args[1]]
            user.replace_all_uses_with(result)
            graph.erase_node(user)
            if user.name in outputs:
                result._rename(user.name)
        graph.erase_node(node)
        if not called.users:
            graph.erase_node(called)


def to_onnx(program: torch.export.ExportedProgram, *, optimize: bool = True) -> torch.onnx.ONNXProgram:
    """The exported program in ONNX, weights within; needs the extra `onnx`. Raises what torch's exporter raises.

    optimize: fold constants and norms; without it every parameter and buffer is there under its own name.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the exporter prints its progress
        warnings.simplefilter("ignore")
        found = torch.onnx.export(program, dynamo=True, verbose=False, optimize=optimize)
    assert found is not None
    return found


def stand_in(model: nn.Module, tensors: Mapping[int, Tensor] | None = None, *, share: bool = True) -> nn.Module:
    """A copy of the module tree in which `tensors` (by id of the original) take the place of some.

    The other parameters and buffers are the caller's own (`share`) or copies. Tensors that modules hold as plain
    attributes are shared or copied without their history, which deepcopy would refuse.
    """
    memo: dict[int, object] = dict(tensors or {})
    for module in model.modules():
        plain = [value for value in vars(module).values() if isinstance(value, Tensor)]
        for tensor in plain if not share else [*module._parameters.values(), *module._buffers.values(), *plain]:
            if tensor is not None:
                memo.setdefault(id(tensor), tensor if share else tensor.detach().clone())
    return copy.deepcopy(model, memo)


def blame(error: BaseException) -> str:
    """One line: the exception and the innermost line of code that belongs to neither torch nor this package."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    frames = [f for f in frames if not f.filename.startswith("<") and "contextlib" not in f.filename]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{reason[:300]}{where}"
