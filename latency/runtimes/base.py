"""The one protocol that every runtime stands behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Compiled", "Counters", "Inputs", "Runtime"]

Inputs: TypeAlias = "tuple[torch.Tensor, ...]"
"""What a network is called with."""

Counters = Mapping[str, float]
"""Milliseconds of one pass by layer name. What no layer owns is under `UNOWNED`, so that they add up to the pass."""

UNOWNED = ""


class Compiled(Protocol):
    """A network made ready in a runtime, with its inputs bound."""

    def run(self) -> object:
        """One forward pass, finished when it returns."""
        ...

    def counters(self) -> Counters:
        """One forward pass with per-operation times, by the node name of the exported graph, in ms."""
        ...


class Runtime(Protocol):
    """What executes a network on this machine."""

    name: str
    precisions: tuple[str, ...]

    @property
    def version(self) -> str:
        """The version, part of the device's identity."""
        ...

    @property
    def accelerator(self) -> str:
        """The name of the GPU it runs on; empty on the CPU."""
        ...

    def missing(self) -> str | None:
        """None when the runtime can be used here, else one line that says what to install."""
        ...

    def supports(self, precision: str) -> bool:
        """Whether this machine runs that precision natively in this runtime."""
        ...

    def compile(
        self, module: nn.Module, example: Inputs, *, precision: str, threads: int, like: Compiled | None = None
    ) -> Compiled:
        """Make `module` (in eval mode, float32) ready for inputs like `example`.

        like: the same network at other widths, as this runtime made it ready; its export is used again where it can be.
        """
        ...
