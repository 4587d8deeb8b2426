"""The delivered network as programs that need none of its code, each compared with torch before it is handed over."""

from __future__ import annotations

import copy
import importlib.util
import io
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import network
from compress.batches import forward
from latency.runtimes.inductor import Inductor
from latency.runtimes.onnxruntime import open_session
from latency.runtimes.openvino import Conversion, OpenVino, compiled_model
from latency.runtimes.reuse import tensors_of
from network.errors import StoreError
from network.files import atomic, write_atomically
from network.seeding import seeded

__all__ = ["exported"]

Arrays = list[np.ndarray]
Program = Callable[[Arrays], Arrays]
"""Inputs → outputs, in the network's order."""

TOLERANCE = 1e-3
"""Relative to the largest output: another runtime's order of summation, over a deep network in single precision."""

ROUNDING, AS_FAR = 1e-5, 2.0
"""Networks that simulate integers may be further from torch: on average AS_FAR times as far as torch is from itself
when inputs change by ROUNDING of themselves. A value that rounds to the next level changes all that follow."""


def exported(folder: Path, model: nn.Module, example: tuple[Tensor, ...], runtime: str) -> dict[str, dict[str, Any]]:
    """Write model.pt2 and model.onnx, and for OpenVINO model.xml with model.bin: the very model that was timed.

    For inductor, which compiles where it is served, torch.compile is tried, and among the files where it is not to be
    trusted. Returns what came of each file, for the report: a file that could not be made, or says other things than
    torch, is not there, and its note says why. Files that another run left there are gone.
    """
    for name in ("model.pt2", "model.onnx", "model.xml", "model.bin"):
        (folder / name).unlink(missing_ok=True)
    made = {
        "model.pt2": export_torch(folder, model, example),
        "model.onnx": export_onnx(folder, model, example),
    }
    if runtime == OpenVino.name:
        made["model.xml"] = export_openvino(folder, model, example)
    if runtime == Inductor.name and not Inductor().missing() and (warning := doubted(model, example)):
        made["torch.compile"] = {"file": None, "note": warning}
    return made


def export_torch(folder: Path, model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, Any]:
    """Write model.pt2, which needs torch but not the user's class."""

    def write(path: Path) -> None:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(network.export(model, example), buffer)
        write_atomically(path, buffer.getvalue())

    return _written(folder / "model.pt2", write, in_torch_export, model, example)


def export_onnx(folder: Path, model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, Any]:
    """Write model.onnx, compared with torch where ONNX Runtime is installed."""
    if importlib.util.find_spec("onnxscript") is None:
        return {"file": None, "note": "not written: pip install 'narrowgauge[onnx]'"}

    def write(path: Path) -> None:
        with atomic(path) as temporary:
            temporary.write_bytes(network.to_onnx(network.export(model, example)).model_proto.SerializeToString())

    return _written(folder / "model.onnx", write, in_onnxruntime, model, example)


def export_openvino(folder: Path, model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, Any]:
    """Write model.xml and model.bin, which take as long in OpenVINO as was measured; by way of model.onnx a network
    with instance norms takes a sixth longer (docs/notes/2026-11-28-training.md).
    """
    if missing := OpenVino().missing():
        return {"file": None, "note": f"not written: {missing}"}

    def write(path: Path) -> None:
        import openvino

        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=folder) as beside:
            saved = Path(beside) / path.name
            timed = Conversion(model, example).at(model)
            openvino.save_model(timed, saved, compress_to_fp16=False)
            for each in (path.with_suffix(".bin"), path):
                with atomic(each) as temporary:
                    os.replace(saved.with_suffix(each.suffix), temporary)

    return _written(folder / "model.xml", write, in_openvino, model, example)


def doubted(model: nn.Module, example: tuple[Tensor, ...]) -> str | None:
    """Why torch.compile with frozen weights is not to be trusted with this network; None where it says what torch says.

    Norms are folded wrongly into transposed convolutions of as many outputs as inputs
    (docs/notes/2026-11-30-inductor.md).
    """
    from torch._inductor import config

    compiled = cast(nn.Module, torch.compile(copy.deepcopy(model)))
    try:
        with config.patch(freezing=True):
            error, alike = compared(in_torch(compiled), model, example)
    except Exception as problem:  # compilers raise anything
        return f"fails with frozen weights, serve it without: {_said(problem)}"
    if alike:
        return None
    return f"differs from torch by {error:.2g} of the largest value with frozen weights; serve it without freezing"


def in_torch(model: nn.Module) -> Program:
    """A module as a program."""
    return lambda inputs: _outputs(model, tuple(map(torch.from_numpy, inputs)))


def in_torch_export(path: Path) -> Program:
    """A file that torch.export saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return in_torch(torch.export.load(path).module())


def in_onnxruntime(path: Path) -> Program | None:
    """A file in ONNX Runtime, where that is installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    session = open_session(path.read_bytes(), torch.get_num_threads())
    names = [value.name for value in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def in_openvino(path: Path) -> Program:
    """A file in OpenVINO, in single precision."""
    request = compiled_model(str(path), "f32", torch.get_num_threads()).create_infer_request()

    def run(inputs: Arrays) -> Arrays:
        request.infer(inputs)
        return [tensor.data.copy() for tensor in request.output_tensors]

    return run


# ---- comparing ---------------------------------------------------------------------------------------------------
def _written(
    path: Path,
    write: Callable[[Path], None],
    opened: Callable[[Path], Program | None],
    model: nn.Module,
    example: tuple[Tensor, ...],
) -> dict[str, Any]:
    """Write a file, and remove it again where it says other things than torch."""
    try:
        write(path)
        program = opened(path)
        error, alike = (None, True) if program is None else compared(program, model, example)
    except StoreError:
        raise
    except Exception as problem:  # exporters raise anything, and the network itself is already safe
        _removed(path)
        return {"file": None, "note": f"not written: {_said(problem)}"}
    if not alike:
        _removed(path)
        return {"file": None, "note": f"removed: its outputs differ from torch's by {error:.2g} of their largest value"}
    return {"file": path.name, "relative_error": error}


def _removed(path: Path) -> None:
    for each in (path, path.with_suffix(".bin")):
        each.unlink(missing_ok=True)


def compared(program: Program, model: nn.Module, example: tuple[Tensor, ...]) -> tuple[float | None, bool]:
    """The largest difference to torch, relative to the largest output, and whether rounding accounts for it.

    None, and True, where torch's own outputs are not finite. On inputs in 0…1, as most pictures are: networks that
    square what they read overflow on much larger ones.
    """
    inputs = tuple(x.sigmoid() for x in example)
    expected = _outputs(model, inputs)
    if not _finite(expected):
        return None, True
    found = program([x.numpy() for x in inputs])
    if not _finite(found):
        return float("inf"), False
    error = largest(found, expected)
    if error <= TOLERANCE:
        return error, True
    stirred = [_outputs(model, tuple(x * (1 + change) for x in inputs)) for change in (ROUNDING, -ROUNDING)]
    return error, on_average(found, expected) <= AS_FAR * max(on_average(each, expected) for each in stirred)


def largest(theirs: Arrays, ours: Arrays) -> float:
    """The largest difference, relative to the largest entry of its tensor."""
    pairs = zip(theirs, ours, strict=True)
    return max(float(np.abs(a - b).max()) / max(float(np.abs(b).max()), 1e-12) for a, b in pairs)


def on_average(theirs: Arrays, ours: Arrays) -> float:
    """The mean difference, relative to the mean entry of its tensor."""
    pairs = zip(theirs, ours, strict=True)
    return max(float(np.abs(a - b).mean()) / max(float(np.abs(b).mean()), 1e-12) for a, b in pairs)


def _finite(arrays: Arrays) -> bool:
    return all(bool(np.isfinite(each).all()) for each in arrays)


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> Arrays:
    with torch.no_grad(), seeded(0):  # some networks draw noise
        found = tensors_of(forward(model, inputs))
        return [(x.float() if x.dtype == torch.bfloat16 else x).numpy() for x in found]  # which numpy lacks


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
