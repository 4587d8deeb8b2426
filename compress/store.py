"""What is delivered: weights, the few numbers that rebuild the network at its widths, and exported programs."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import network
from compress.batches import forward
from compress.checkpoint import read_json, read_tensors, write_json, write_tensors
from network.errors import NarrowgaugeError, StoreError
from network.files import atomic
from network.types import Network
from search.plan import Plan

__all__ = ["SCHEMA", "check_writable", "export_onnx", "export_torch", "load", "save"]

SCHEMA = 1

Arrays = list[np.ndarray]

ONNX_TOLERANCE = 1e-3
"""Relative to the largest output: another runtime's order of summation, over a deep network in single precision."""

ROUNDING, AS_FAR = 1e-5, 2.0
"""Networks that simulate integers may be further from torch: on average AS_FAR times as far as torch is from itself when
inputs change by ROUNDING of themselves. A value that rounds to the next level changes all that follow."""


def check_writable(folder: Path) -> None:
    """Make the folder if need be and prove that it takes a file, before hours of work. Raises StoreError."""
    with atomic(folder / ".writable") as probe:
        probe.write_bytes(b"1")
    (folder / ".writable").unlink(missing_ok=True)


def save(folder: Path, model: nn.Module, plan: Plan, net: Network) -> None:
    """Write model.safetensors and network.json, all that `load` needs beside the user's own class."""
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    write_tensors(folder / "model.safetensors", state)
    document = {
        "schema": SCHEMA,
        "model": {"ref": plan.model.ref, "args": plan.model.args, "input": [list(s) for s in net.input_shapes]},
        "widths": dict(plan.widths),
        "attributes": [list(patch) for patch in network.attributes(net, plan.widths)],
        "shapes": {name: list(value.shape) for name, value in state.items()},
    }
    write_json(folder / "network.json", document)


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The delivered network, in eval mode: the user's own class at the plan's widths, with its trained weights.

    model: a fresh instance of the original class, where the reference in network.json cannot be imported from here.
    Raises StoreError when the folder is incomplete, ModelReferenceError when the class is not found.
    """
    folder = Path(folder)
    document = read_json(folder / "network.json")
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise StoreError(f"{folder / 'network.json'} has no schema {SCHEMA}; write it again with apply-plan")
    if model is None:
        model = network.load_model(document["model"]["ref"], document["model"]["args"])
    shapes = {name: tuple(shape) for name, shape in document["shapes"].items()}
    network.resize(model, shapes, [(path, name, value) for path, name, value in document["attributes"]])
    state, _ = read_tensors(folder / "model.safetensors")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise StoreError(
            f"{folder}: {str(error).splitlines()[-1].strip()}; is the model's code still the same?"
        ) from error
    return model.eval()


def export_torch(folder: Path, model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, Any]:
    """Write model.pt2, which needs torch but not the user's class. Returns what happened, for the report."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = network.export(model, example)
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
    except (NarrowgaugeError, RuntimeError, ValueError, TypeError) as error:
        return {"file": None, "note": _line(error)}
    with atomic(folder / "model.pt2") as temporary:
        temporary.write_bytes(buffer.getvalue())
    return {"file": "model.pt2"}


def export_onnx(folder: Path, model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, Any]:
    """Write model.onnx and compare its outputs with torch's. Returns what happened, for the report."""
    if importlib.util.find_spec("onnxscript") is None:
        return {"file": None, "note": "not written: pip install 'narrowgauge[onnx]'"}
    path = folder / "model.onnx"
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(network.to_onnx(network.export(model, example)).model_proto.SerializeToString())
        error = _onnx_error(path, model, example, _largest)
        alike = error is None or error <= ONNX_TOLERANCE or rounds_alike(path, model, example)
    except StoreError:
        raise
    except Exception as error:  # exporters raise anything, and the network itself is already safe
        return {"file": None, "note": _line(error)}
    if not alike:
        path.unlink()
        return {"file": None, "note": f"removed: its outputs differ from torch's by {error:.2g} of their largest value"}
    return {"file": "model.onnx", "relative_error": error}


def _onnx_error(
    path: Path, model: nn.Module, example: tuple[Tensor, ...], apart: Callable[[Arrays, Arrays], float]
) -> float | None:
    """How far the file's outputs are from torch's; None where there is nothing to compare.

    On inputs in 0…1, as most pictures are: networks that square what they read overflow on much larger ones.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    inputs = tuple(x.sigmoid() for x in example)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    expected = _outputs(model, inputs)
    if not all(np.isfinite(ours).all() for ours in expected):
        return None
    found = session.run(None, feed)
    return apart(found, expected) if all(np.isfinite(theirs).all() for theirs in found) else float("inf")


def rounds_alike(path: Path, model: nn.Module, example: tuple[Tensor, ...]) -> bool:
    """Whether the file is as far from torch as rounding alone accounts for."""
    error = _onnx_error(path, model, example, _on_average)
    inputs = tuple(x.sigmoid() for x in example)
    expected = _outputs(model, inputs)
    stirred = [_outputs(model, tuple(x * (1 + change) for x in inputs)) for change in (ROUNDING, -ROUNDING)]
    return error is not None and error <= AS_FAR * max(_on_average(each, expected) for each in stirred)


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> Arrays:
    with torch.no_grad():
        return [x.numpy() for x in pytree.tree_leaves(forward(model, inputs)) if isinstance(x, Tensor)]


def _largest(theirs: Arrays, ours: Arrays) -> float:
    """The largest difference, relative to the largest entry of its tensor."""
    pairs = zip(theirs, ours, strict=True)
    return max(float(np.abs(a - b).max()) / max(float(np.abs(b).max()), 1e-12) for a, b in pairs)


def _on_average(theirs: Arrays, ours: Arrays) -> float:
    """The mean difference, relative to the mean entry of its tensor."""
    pairs = zip(theirs, ours, strict=True)
    return max(float(np.abs(a - b).mean()) / max(float(np.abs(b).mean()), 1e-12) for a, b in pairs)


def _line(error: BaseException) -> str:
    return f"not written: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}"
