"""A network in ONNX, exported once for all its widths; and how its nodes and values lead back to the exported graph."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from latency.runtimes.base import Inputs
from latency.runtimes.owners import root_of
from latency.runtimes.reuse import Export, lifted
from network import to_onnx

__all__ = ["OnnxExport"]

FX_NODE = re.compile(r"%(\w+)")


class OnnxExport(Export):
    """A network exported to ONNX.

    reads: operation of the exported graph → the operations and inputs that it reads.
    """

    def __init__(self, module: nn.Module, example: Inputs):
        super().__init__(module, example)
        found = to_onnx(self.program, optimize=False)
        assert found.exported_program is not None
        self._roots: dict[str, str] = {}
        self.reads: dict[str, list[str]] = {}
        for node in found.exported_program.graph.nodes:
            self._roots[node.name] = root_of(node) or node.name
            if node.op == "call_function":
                used = [self._roots[other.name] for other in node.all_input_nodes]
                self.reads.setdefault(self._roots[node.name], []).extend(used)
        self._model = found.model_proto
        del self._model.graph.value_info[:]  # shapes at these widths
        self._free_flattened()

    def at(self, module: nn.Module) -> tuple[bytes, dict[str, str]]:
        """The optimised model with this module's tensors, which may be narrower; and ONNX node or value → node."""
        import onnx
        from onnxscript import optimizer

        bound = self.bound(module)
        tensors = {target: bound.tensors[node] for node, target in lifted(self.program).items()}
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for weight in model.graph.initializer:
            if weight.name in tensors:
                weight.CopyFrom(onnx.numpy_helper.from_array(tensors[weight.name].numpy(force=True), weight.name))
        for node in model.graph.node:
            root = self._root(node)
            for attribute in node.attribute:
                if attribute.name == "group" and root in bound.groups:
                    attribute.i = bound.groups[root]
        model = optimizer.optimize(model)
        return model.SerializeToString(), self._origins(model)

    def _free_flattened(self) -> None:
        """Let the length of what was flattened follow from its input."""
        import onnx

        flattened = {
            node.name: [-1 if dim == _flattened(node) else size for dim, size in enumerate(node.meta["val"].shape)]
            for node in self.program.graph.nodes
            if node.target is torch.ops.aten.flatten.using_ints
        }
        for node in self._model.graph.node:
            shape = flattened.get(self._root(node) or "")
            if node.op_type == "Reshape" and shape:
                free = onnx.numpy_helper.from_array(np.array(shape, np.int64), f"{node.name}_shape")
                self._model.graph.initializer.append(free)
                node.input[1] = free.name

    def _origins(self, model: Any) -> dict[str, str]:
        origins = dict(self._roots)
        for node in model.graph.node:
            root = self._root(node)
            if root is not None:
                origins |= dict.fromkeys((node.name, *node.output), root)
        return origins

    def _root(self, node: Any) -> str | None:
        """The node of the exported graph that an ONNX node came from."""
        texts = [entry.value for entry in node.metadata_props if entry.key.endswith("fx_node")]
        match = FX_NODE.match(texts[0]) if texts else None
        if match:
            return self._roots.get(match[1])
        return next((self._roots[value] for value in node.output if value in self._roots), None)


def _flattened(node: fx.Node) -> int:
    """The dimension that a flatten makes of several: its second argument, which is left out where it is 0."""
    x, *rest = node.args
    assert isinstance(x, fx.Node)
    return int(rest[0] if rest else 0) % max(x.meta["val"].dim(), 1)  # type: ignore[arg-type]
