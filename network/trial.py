"""A trial forward: Python may hard-code a size that no graph shows, so every group is narrowed and the forward run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from network.exporting import blame, export, stand_in
from network.modes import forgetful_eval
from network.narrowing import attributes, named_tensors, patch, positions, sliced, standing
from network.removal import put_remains, remains_of
from network.types import Keep, Network, widths_of

__all__ = ["Trial"]

Cuts = Mapping[int, np.ndarray]
"""Positions that stay, by dimension."""


class Trial:
    """Runs the user's own forward at random widths, on the meta device where the model allows it.

    There it costs no arithmetic; a model that mixes devices or reads values runs on its own device instead.
    """

    def __init__(self, model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, object], seed: int = 0):
        self._model, self._seed = model, seed
        self._args, self._kwargs = args, dict(kwargs)
        self._meta = True
        try:
            self._shapes = self._run(_dense(), {})
        except Exception:  # whatever the meta device cannot do, the real one can: it has just been exported
            self._meta = False
            self._shapes = self._run(_dense(), {})

    def culprits(self, net: Network) -> dict[str, str]:
        """{group: why it cannot be narrowed}; empty if every group can, all at once.

        Groups that the failing module touches are set aside until the forward runs, then let in again one by one.
        """
        active = [group.name for group in net.groups]
        aside: list[str] = []

        def complaint(names: Sequence[str]) -> str | None:
            return self.complaint(net, names)

        while (failure := self._failure(net, active)) is not None:
            suspects = [name for name in active if name in _touching(net, failure[1])]
            if not suspects:
                return _to_blame(active, aside, complaint)
            aside += suspects
            active = [name for name in active if name not in suspects]
        return _to_blame(aside, active, complaint)

    def complaint(self, net: Network, names: Sequence[str]) -> str | None:
        """What the forward says when these groups are narrowed; None if it runs and gives the dense shapes."""
        failure = self._failure(net, names)
        return failure[0] if failure else None

    def indispensable(self, net: Network, names: Sequence[str]) -> dict[str, str]:
        """{group: why it cannot be removed} of these; empty if the forward runs without them all, and gives the dense
        shapes.
        """

        def complaint(removed: Sequence[str]) -> str | None:
            failure = self._attempt(net, {name: [] for name in removed})
            return failure[0] if failure else None

        return _to_blame(names, [], complaint)

    def draw(self, net: Network, names: Sequence[str], attempt: int = 0) -> dict[str, list[int]]:
        """A random subset of each of these groups' channels.

        At attempt 0 fewer than all where the group allows it; at attempt 1 about every other group keeps all, so
        that counts which Python needs to be equal are not so by chance.
        """
        keep = {}
        for group in net.groups:
            if group.name in names:
                random = np.random.default_rng([self._seed, attempt, *group.name.encode()])
                fewest = group.width if attempt and random.random() < 0.5 else max(1, group.width // 4)
                count = int(random.integers(fewest, max(fewest + 1, group.width)))
                keep[group.name] = sorted(random.choice(group.width, count, replace=False).tolist())
        return keep

    def exported(self, net: Network, keep: Keep) -> torch.export.ExportedProgram:
        """The graph of the narrowed network, on its own device: the meta device's differs. Raises TraceError."""
        return export(self._skeleton(net, keep, _blank), self._args, self._kwargs)

    def _skeleton(self, net: Network, keep: Keep, thin_tensor: Callable[[Tensor, Cuts], Tensor]) -> nn.Module:
        tensors, cuts = named_tensors(self._model), positions(net, standing(keep))
        made: dict[int, Tensor] = {}
        for name, tensor in tensors.items():
            if id(tensor) not in made or name in cuts:
                made[id(tensor)] = _as_kind(tensor, thin_tensor(tensor, cuts.get(name, {})))
        for module in self._model.modules():
            for value in vars(module).values():
                if isinstance(value, Tensor) and id(value) not in made:
                    made[id(value)] = _as_kind(value, thin_tensor(value, {}))
        thin = stand_in(self._model, made)
        widths = widths_of(keep)
        patch(thin, attributes(net, widths))
        put_remains(thin, remains_of(net, widths))
        return forgetful_eval(thin)

    # ---- details -----------------------------------------------------------------------------------------------
    def _failure(self, net: Network, names: Sequence[str]) -> tuple[str, str | None] | None:
        """(complaint, path of the module that raised it) for these groups narrowed at once, at two sets of widths."""
        return self._attempt(net, self.draw(net, names, 0)) or self._attempt(net, self.draw(net, names, 1))

    def _attempt(self, net: Network, keep: Keep) -> tuple[str, str | None] | None:
        thin = self._skeleton(net, keep, self._thin_tensor)
        try:
            shapes = self._forward(thin)
        except Exception as error:  # the user's forward may raise anything
            return f"the forward fails at another width: {blame(error)}", _raised_in(thin, error)
        if shapes != self._shapes:
            return f"the output's shape becomes {shapes[0]} instead of {self._shapes[0]} at another width", None
        return None

    def _run(self, net: Network, keep: Keep) -> list[tuple[int, ...]]:
        return self._forward(self._skeleton(net, keep, self._thin_tensor))

    @property
    def _thin_tensor(self) -> Callable[[Tensor, Cuts], Tensor]:
        return _on_meta if self._meta else sliced

    def _forward(self, thin: nn.Module) -> list[tuple[int, ...]]:
        args, kwargs = tree_map(self._placed, (self._args, self._kwargs))
        with torch.no_grad():
            result = thin(*args, **kwargs)
        return [tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

    def _placed(self, leaf: object) -> object:
        return leaf.to("meta") if isinstance(leaf, Tensor) and self._meta else leaf


def _to_blame(
    names: Sequence[str], good: list[str], complaint: Callable[[Sequence[str]], str | None]
) -> dict[str, str]:
    """{name: the complaint about it} of these; let in one half at a time, those that fail alone, beside the good ones,
    are to blame.
    """
    if not names:
        return {}
    why = complaint([*good, *names])
    if why is None:
        good.extend(names)
        return {}
    if len(names) == 1:
        return {names[0]: why}
    half = len(names) // 2
    return _to_blame(names[:half], good, complaint) | _to_blame(names[half:], good, complaint)


def _on_meta(tensor: Tensor, cuts: Cuts) -> Tensor:
    shape = [len(cuts[dim]) if dim in cuts else n for dim, n in enumerate(tensor.shape)]
    return torch.empty(shape, dtype=tensor.dtype, device="meta")


def _blank(tensor: Tensor, cuts: Cuts) -> Tensor:
    """Of the right shape on the right device; export reads no weight, and memory that is not written costs none."""
    return torch.empty_like(_on_meta(tensor, cuts), device=tensor.device) if cuts else tensor.detach()


def _as_kind(tensor: Tensor, data: Tensor) -> Tensor:
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data


def _dense() -> Network:
    return Network((), (), (), (), {}, ())


def _raised_in(model: nn.Module, error: Exception) -> str | None:
    """The qualified name of the innermost module in whose forward an exception was raised."""
    paths = {id(module): path for path, module in model.named_modules()}
    found, trace = None, error.__traceback__
    while trace is not None:
        found = paths.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found


def _touching(net: Network, path: str | None) -> set[str]:
    """The groups that meet a parameter of this module or of one inside it."""
    if not path:
        return set()
    return {
        group.name
        for group in net.groups
        if any(member.parameter == path or member.parameter.startswith(f"{path}.") for member in group.members)
    }
