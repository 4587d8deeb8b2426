"""The oracle for tests: the dense network with the same channels silenced, which a narrowed one must equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from network.narrowing import check_keep, narrow, positions
from network.removal import remains_of
from network.types import ZERO, Keep, Network, widths_of

__all__ = ["mask", "silenced"]

SILENCE = {torch.float64: 1e-60, torch.float32: 1e-12, torch.bfloat16: 1e-12, torch.float16: 1e-7}
"""Next to nothing, but not zero: a direction of length zero has no norm, and weight norm would divide by it."""


def mask(model: nn.Module, net: Network, keep: Keep) -> nn.Module:
    """A dense copy in which every slice of every parameter of the removed channels is silent.

    Running statistics stay. Layer, RMS and group norms over removed channels take their statistics over those that
    stay, as the narrowed network does; other statistics over channels (`Group.soft`) do not. What reads a group that is
    removed whole loses its bias too where a norm follows.
    Raises ValueError as `narrow` does.
    """
    check_keep(net, keep)
    dense = narrow(model, net, {})
    for path, word in remains_of(net, widths_of(keep)).items():
        bias = dense.get_submodule(path).bias
        if word == ZERO and isinstance(bias, Tensor):
            nn.init.zeros_(bias)
    return silenced(dense, positions(net, keep))


def silenced(dense: nn.Module, kept: Mapping[str, Mapping[int, np.ndarray]]) -> nn.Module:
    """The network with all but these positions of its parameters and buffers silent, in place.

    kept: {parameter or buffer name: {dimension: sorted positions that stay}}; one that is not named stays whole.
    """
    tensors = dict(dense.named_parameters()) | dict(dense.named_buffers())
    survivors: dict[int, Tensor] = {}
    silent = False
    for name, dims in kept.items():
        tensor = tensors[name]
        for dim, stay in dims.items():
            if len(stay) < tensor.size(dim):
                silent = True
                if tensor.dim() == 1 and len(stay):
                    survivors[id(tensor)] = _index(stay, tensor)
                if not name.endswith(("running_mean", "running_var")):
                    gone = np.setdiff1d(np.arange(tensor.size(dim)), stay)
                    tensor.detach().index_fill_(dim, _index(gone, tensor), SILENCE.get(tensor.dtype, 0))
    if silent:
        dense.forward = _over_survivors(dense.forward, survivors)  # type: ignore[method-assign]
    return dense


def _index(positions: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(positions).to(like.device)


def _over_survivors(forward: Callable[..., Any], survivors: Mapping[int, Tensor]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _SurvivingStatistics(survivors):
            return forward(*args, **kwargs)

    return run


class _SurvivingStatistics(TorchFunctionMode):
    """Norms whose weight lost channels run over the others; `survivors` maps the weight's id to their positions."""

    def __init__(self, survivors: Mapping[int, Tensor]):
        super().__init__()
        self._survivors = survivors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.batch_norm:
            return _standardised(*args, **kwargs)
        norm = _NORMS.get(func)
        if norm is None:
            return func(*args, **kwargs)
        bound = dict(zip(norm[0], args, strict=False)) | kwargs
        kept = self._survivors.get(id(bound.get("weight")))
        return func(*args, **kwargs) if kept is None else norm[1](bound, kept)


def _standardised(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Weights that batch norm standardises, (1, out, in · kernel): the statistics run over the inputs that speak.

    A silent entry is told by its value, which no other entry has.
    """
    bound = dict(zip(("running_mean", "running_var", "weight", "bias", "training"), args, strict=False)) | kwargs
    kept = (x != SILENCE[x.dtype]).flatten(0, -2).any(0).nonzero().flatten()
    if not bound.get("training") or x.dim() != 3 or len(kept) == x.size(-1):
        return functional.batch_norm(x, *args, **kwargs)
    return torch.zeros_like(x).index_copy(-1, kept, functional.batch_norm(x.index_select(-1, kept), *args, **kwargs))


def _layer_norm(bound: dict[str, Any], kept: Tensor) -> Tensor:
    bias = bound.get("bias")
    x, weight = bound["input"], bound["weight"]
    thin = functional.layer_norm(
        x.index_select(-1, kept), (len(kept),), weight[kept], None if bias is None else bias[kept],
        bound.get("eps", 1e-5),
    )  # fmt: skip
    return torch.zeros_like(x).index_copy(-1, kept, thin)


def _rms_norm(bound: dict[str, Any], kept: Tensor) -> Tensor:
    x, weight = bound["input"], bound["weight"]
    thin = functional.rms_norm(x.index_select(-1, kept), (len(kept),), weight[kept], bound.get("eps"))
    return torch.zeros_like(x).index_copy(-1, kept, thin)


def _group_norm(bound: dict[str, Any], kept: Tensor) -> Tensor:
    bias = bound.get("bias")
    x, weight, groups = bound["input"], bound["weight"], bound["num_groups"]
    size = x.shape[1] // groups
    whole = len(torch.unique(kept // size))
    thin = functional.group_norm(
        x.index_select(1, kept), whole, weight[kept], None if bias is None else bias[kept], bound.get("eps", 1e-5)
    )
    return torch.zeros_like(x).index_copy(1, kept, thin)


_NORMS: dict[Any, tuple[tuple[str, ...], Callable[[dict[str, Any], Tensor], Tensor]]] = {
    functional.layer_norm: (("input", "normalized_shape", "weight", "bias", "eps"), _layer_norm),
    functional.rms_norm: (("input", "normalized_shape", "weight", "eps"), _rms_norm),
    functional.group_norm: (("input", "num_groups", "weight", "bias", "eps"), _group_norm),
}
