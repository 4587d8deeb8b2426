"""The optimizer: what it does to vectors and kernels, and that it does not care how a problem is turned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compress import soap
from compress.soap import REFRESH_STEPS, Soap
from tests.helpers import FP64

RATE = 0.02


def walk(start: Tensor, gradient: Callable[[Tensor], Tensor], steps: int, make: Callable = Soap) -> Tensor:
    """Where an optimizer gets from here."""
    weight = torch.nn.Parameter(start.clone())
    optimizer = make([{"params": [weight]}], lr=RATE)
    for _ in range(steps):
        weight.grad = gradient(weight.detach())
        optimizer.step()
    return weight.detach()


def adam(groups: list, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=lr, betas=soap.BETAS)


def steep(*sizes: int) -> tuple[Tensor, list[Tensor], Callable[[Tensor], Tensor]]:
    """A start, a turned basis for each axis, and the gradient of a quadratic, each ten times as steep at one end."""
    generator = torch.Generator().manual_seed(1)
    bases = [torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q for size in sizes]
    curvature = torch.ones((), dtype=torch.float64)
    for size in sizes:
        curvature = curvature[..., None] * torch.logspace(0, -0.5, size, dtype=torch.float64)

    def gradient(weight: Tensor) -> Tensor:
        inside = turned(weight, [basis.T for basis in bases])
        return turned(curvature**2 * inside, bases)

    return torch.randn(sizes, generator=generator, dtype=torch.float64), bases, gradient


def turned(x: Tensor, bases: list[Tensor]) -> Tensor:
    for axis, basis in enumerate(bases):
        x = torch.tensordot(basis, x, ([1], [axis])).movedim(0, axis)
    return x


@pytest.mark.parametrize("sizes", [(4, 4), (5, 4, 3)])
def test_a_turned_problem_is_walked_alike(sizes: tuple[int, ...]):
    start, bases, gradient = steep(*sizes)
    back = [basis.T for basis in bases]
    steps = 3 * REFRESH_STEPS + 2
    ours = walk(turned(start, back), lambda weight: turned(gradient(turned(weight, bases)), back), steps)
    assert torch.allclose(turned(ours, bases), walk(start, gradient, steps), rtol=FP64, atol=FP64)
    theirs = walk(turned(start, back), lambda weight: turned(gradient(turned(weight, bases)), back), steps, adam)
    assert not torch.allclose(turned(theirs, bases), walk(start, gradient, steps, adam), rtol=0.01)


def test_a_vector_gets_adam_after_a_first_look():
    start, _, gradient = steep(7)
    assert torch.allclose(walk(start, gradient, 21), walk(start, gradient, 20, adam), rtol=FP64)


def test_an_axis_that_is_too_wide_stays_as_it_is(monkeypatch: pytest.MonkeyPatch):
    start, _, gradient = steep(6, 4)
    monkeypatch.setattr(soap, "WIDEST", 3)
    assert torch.allclose(walk(start, gradient, 31), walk(start, gradient, 30, adam), rtol=FP64)
    monkeypatch.setattr(soap, "WIDEST", 4)
    assert not torch.allclose(walk(start, gradient, 31), walk(start, gradient, 30, adam), rtol=0.01)


@pytest.mark.parametrize("sizes", [(7, 7), (8, 8, 9), (12, 4, 9)])
def test_where_a_gradient_spans_every_axis_rounding_decides_nothing(sizes: tuple[int, ...]):
    start, _, gradient = steep(*sizes)
    generator = torch.Generator().manual_seed(2)

    def rounded(weight: Tensor) -> Tensor:
        return gradient(weight) * (1 + 1e-15 * torch.randn(sizes, generator=generator, dtype=torch.float64))

    steps = 3 * REFRESH_STEPS + 2
    assert torch.allclose(walk(start, rounded, steps), walk(start, gradient, steps), rtol=FP64, atol=FP64)


def test_a_kernel_is_a_tensor_of_three_axes():
    start, _, gradient = steep(4, 3, 9)
    kernel = walk(
        start.reshape(4, 3, 3, 3), lambda weight: gradient(weight.flatten(2)).reshape(weight.shape), REFRESH_STEPS + 2
    )
    assert torch.allclose(kernel.flatten(2), walk(start, gradient, REFRESH_STEPS + 2), rtol=FP64)


def test_it_goes_down():
    start, _, gradient = steep(16, 12)
    end = walk(start, gradient, 400)
    assert (end * gradient(end)).sum() < 1e-2 * (start * gradient(start)).sum()
