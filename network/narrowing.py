"""Building a network at other widths: parameters are sliced on a copy and the user's own forward runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from network.exporting import stand_in
from network.modes import evaluating
from network.removal import put_remains, remains_of
from network.types import Group, Keep, Network, widths_of

__all__ = ["attributes", "check_keep", "named_tensors", "narrow", "patch", "positions", "resize", "sliced", "standing"]

Patch = tuple[str, str, int]

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def narrow(model: nn.Module, net: Network, keep: Keep) -> nn.Module:
    """A copy of the model with only these channels.

    keep: {group name: sorted channel indices, or none where it is removable}; a group not named keeps all.
    Parameters and buffers are sliced, tied ones stay tied; hooks, dtype, device, requires_grad, memory format and
    training mode survive; the integer attributes of `net.sizes` follow. The caller's model is not touched.
    Raises ValueError for an unknown group, or indices that are empty, unsorted or out of range.
    """
    check_keep(net, keep)
    tensors = named_tensors(model)
    replaced: dict[int, Tensor] = {}
    for name, cuts in positions(net, standing(keep)).items():
        tensor = tensors[name]
        replaced[id(tensor)] = _like(tensor, sliced(tensor, cuts))
    for tensor in tensors.values():
        replaced.setdefault(id(tensor), _like(tensor, tensor.detach().clone(memory_format=torch.preserve_format)))
    thin = stand_in(model, replaced, share=False)
    widths = widths_of(keep)
    patch(thin, attributes(net, widths))
    put_remains(thin, remains_of(net, widths))
    with evaluating(thin):
        return thin


def standing(keep: Keep) -> dict[str, Sequence[int]]:
    """`keep` with one channel of every removed group: what leads to a constant stays that wide, and does nothing."""
    return {name: indices if len(indices) else range(1) for name, indices in keep.items()}


def attributes(net: Network, widths: Mapping[str, int]) -> list[Patch]:
    """The (module path, attribute, value) that a network of these group widths needs set."""
    complete = {name: width or 1 for name, width in net.complete(widths).items()}
    full = net.widths
    return [
        (rule.module, rule.attribute, rule.width.at(complete))
        for rule in net.sizes
        if rule.width.at(complete) != rule.width.at(full)
    ]


def resize(
    model: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    patches: Iterable[Patch],
    remains: Mapping[str, str] | None = None,
) -> None:
    """Give a fresh model, in place, the shapes and attributes of a narrowed one; values are to be loaded after.

    shapes: {parameter or buffer name: shape}; those not named keep theirs. Tied tensors stay tied. remains: of
    the modules round removed groups.
    """
    patch(model, patches)
    put_remains(model, remains or {})
    by_name = named_tensors(model)
    replaced = {
        id(by_name[name]): _like(by_name[name], by_name[name].detach().new_zeros(tuple(shape)))
        for name, shape in shapes.items()
        if tuple(by_name[name].shape) != tuple(shape)
    }
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for leaf, tensor in store.items():
                if tensor is not None and id(tensor) in replaced:
                    store[leaf] = replaced[id(tensor)]  # type: ignore[assignment]


def patch(model: nn.Module, patches: Iterable[Patch]) -> None:
    """Set integer attributes: plain ones, the only element of a tuple, or, for "name.i", element i of a list."""
    for path, attribute, value in patches:
        module = model.get_submodule(path)
        name, _, element = attribute.partition(".")
        old = getattr(module, name)
        if isinstance(old, (list, tuple)):
            values = list(old)
            values[int(element or 0)] = value
            setattr(module, name, type(old)(values) if type(old) in (list, tuple) else tuple(values))
        else:
            setattr(module, name, value)


def positions(net: Network, keep: Keep) -> dict[str, dict[int, np.ndarray]]:
    """{parameter: {dim: sorted positions that stay}} for everything that `keep` touches."""
    touched: dict[str, dict[int, np.ndarray]] = {}
    for name, indices in keep.items():
        group = net.group(name)
        if len(indices) == group.width:
            continue
        gone = np.setdiff1d(np.arange(group.width), np.asarray(indices))
        for member in group.members:
            dims = touched.setdefault(member.parameter, {})
            removed = dims.get(member.dim, np.zeros(0, np.int64))
            dims[member.dim] = np.union1d(removed, member.index[gone].reshape(-1))
    return {
        name: {dim: np.setdiff1d(np.arange(net.parameters[name][dim]), removed) for dim, removed in dims.items()}
        for name, dims in touched.items()
    }


def check_keep(net: Network, keep: Keep) -> None:
    """Raises ValueError, naming the group, if `keep` cannot be cut."""
    groups = {group.name: group for group in net.groups}
    for name, indices in keep.items():
        if name not in groups:
            raise ValueError(f"no channel group is called {name!r}; the network's groups are {', '.join(groups)}")
        fault = _fault(groups[name], np.asarray(indices))
        if fault:
            raise ValueError(f"channels to keep in group {name!r} {fault}")


def _fault(group: Group, indices: np.ndarray) -> str | None:
    if indices.ndim == 1 and indices.size == 0 and group.removable:
        return None
    if indices.ndim != 1 or indices.size == 0:
        return "must be a list of at least one index"
    if not np.issubdtype(indices.dtype, np.integer):
        return f"must be integers, not {indices.dtype}"
    ascending = indices[0] >= 0 and indices[-1] < group.width and (np.diff(indices) > 0).all()
    return None if ascending else f"must be sorted, distinct and within 0…{group.width - 1}"


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under every one of its names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def sliced(tensor: Tensor, cuts: Mapping[int, np.ndarray]) -> Tensor:
    """What is left of the tensor at these positions, by dimension, in the same memory format."""
    result = tensor.detach()
    for dim, stay in cuts.items():
        result = result.index_select(dim, torch.from_numpy(stay).to(result.device))
    last = CHANNELS_LAST.get(tensor.dim())
    if last is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=last):
        return result.contiguous(memory_format=last)
    return result


def _like(tensor: Tensor, data: Tensor) -> Tensor:
    """`data` as a parameter or buffer of the same kind, with the attributes that users hang on their parameters."""
    made = nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    made.__dict__.update(tensor.__dict__)
    return made
