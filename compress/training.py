"""The one training loop: condensation and distillation give it their loss, it gives them resumable steps."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from compress import processes
from compress.batches import Batches
from compress.checkpoint import flatten, read_tensors, unflatten, write_tensors
from compress.norms import whole_batches
from compress.recipe import Allowance
from compress.soap import Soap
from network.errors import InputError
from network.seeding import seeded

__all__ = ["Curve", "Trainer", "freeze_statistics", "thawed"]

CHECKPOINT_SECONDS = 30.0
CHECKPOINT_STEPS = 100
CURVE_POINTS = 400
RETREATS = 5
WARM_UP = 0.25
"""Share of the steps on which the rate goes up. A fifth of that is worth less, most where the rate is too high
(docs/notes/2026-11-28-training.md)."""

SMALL_BATCH = 8
SMALLEST = 1e-2
"""Tensors smaller than this move as if they were this large: biases often start at 0."""


def freeze_statistics(model: nn.Module, batch_size: int, *, dropout: bool) -> None:
    """Train mode, but running statistics stay as they are when batches are too small to estimate them.

    Without `dropout` those layers stay off too: an imitator is to match a function, not a noisy one.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            module.train(batch_size >= SMALL_BATCH)
        if isinstance(module, nn.modules.dropout._DropoutNd) and not dropout:
            module.eval()


def thawed(model: nn.Module) -> nn.Module:
    """The model, whose real parameters now all require gradients if none did: it was frozen for inference."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    if not any(parameter.requires_grad for parameter in parameters):
        for parameter in parameters:
            parameter.requires_grad_()
    return model


@dataclass(slots=True)
class Curve:
    """What a stage's training went through: (step, seconds, mean loss since the point before), and its retreats."""

    points: list[tuple[int, float, float]] = field(default_factory=list)
    retreats: int = 0
    steps: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        rate = self.steps / self.seconds if self.seconds else 0.0
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "steps_per_second": rate,
            "retreats": self.retreats,
            "loss": [list(point) for point in self.points],
        }


class Trainer:
    """Trains `model` in place with SOAP: relative steps, warm-up, cosine decay, clipped gradients, checkpoints.

    `lr` is relative: a step of 0.01 moves a tensor's entries by about a hundredth of their root mean square when the
    stage began. One rate then suits weights of any size, which a fixed rate does not (Shazeer & Stern, Adafactor,
    ICML 2018, section 8; docs/notes/2026-11-22-learning-rate.md).
    `lesson(model, batch)` is the scalar to minimise; parameters of its own are trained with the model's.
    `after_step(progress)` runs after every optimiser step with the share of the allowance that is used. A loss or a
    gradient that is not finite sends the run back to its last good state with half the step size; a state is good, and
    on disk, once the step after it has found both finite. With an allowance in steps the result does not depend on
    where, or how often, the run was killed.
    Raises InputError when halving the step size does not help.
    """

    def __init__(
        self,
        model: nn.Module,
        lesson: nn.Module,
        batches: Batches,
        allowance: Allowance,
        *,
        lr: float,
        name: str,
        checkpoint: Path | None = None,
        after_step: Callable[[float], None] | None = None,
        bf16: bool = False,
        ema: float = 0.0,
        dropout: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.model, self.lesson, self.batches, self.allowance = model, lesson, batches, allowance
        self.lr, self.name = lr, name
        self.checkpoint, self.after_step, self.bf16, self.clock = checkpoint, after_step, bf16, clock
        self.dropout, self.ema_decay = dropout, ema
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.beside = [p for p in lesson.parameters() if p.requires_grad]
        groups = [{"params": [each], "size": _size(each)} for each in [*self.parameters, *self.beside]]
        self.optimizer = Soap(groups, lr)
        self.ema = [p.detach().clone() for p in self.parameters] if ema else []
        self.curve, self.step, self.seconds, self.lr_scale = Curve(), 0, 0.0, 1.0
        self._pending: list[float] = []

    def run(self) -> Curve:
        """Train until the allowance is used, from the checkpoint where there is one."""
        if self.allowance.empty or not self.parameters:
            return self.curve
        self._resume()
        freeze_statistics(self.model, self.batches.batch_size, dropout=self.dropout)
        good, unproved = self._state(), None
        with self._bar() as bar, whole_batches(self.model):
            while (progress := self.allowance.progress(self.step, self.seconds)) < 1:
                start = self.clock()
                value = self._one_step(progress)
                if value is None:
                    self._retreat(good)
                    unproved = None
                    continue
                self.step += 1
                self.seconds += processes.agreed(self.clock() - start)
                self._record(value)
                self._show(bar, value)
                if unproved is not None:
                    good, unproved = unproved, None
                    self._save(good)
                steps, seconds = self.step - good["step"], self.seconds - good["seconds"]
                if steps >= CHECKPOINT_STEPS or seconds >= CHECKPOINT_SECONDS:
                    unproved = self._state()
        self._finish()
        return self.curve

    def _one_step(self, progress: float) -> float | None:
        """One optimiser step; None, and no step, when the loss or its gradient is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["size"] * self.lr_scale * _schedule(progress)
        batch = self.batches.share(self.step)
        device = batch[0][0].device.type
        key = self.batches.batch_size, self.step, self.batches.seed
        with seeded(*key), torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            value = self.lesson(self.model, batch)
        self.optimizer.zero_grad(set_to_none=True)
        value = self._backward(value * (len(batch[0][0]) / self.batches.batch_size))
        norms = [float(nn.utils.clip_grad_norm_(part, 1.0)) for part in (self.parameters, self.beside)]
        found = float(value.detach())
        if not all(map(math.isfinite, (found, *norms))):
            return None
        self.optimizer.step()
        if self.after_step is not None:
            self.after_step(self.allowance.progress(self.step + 1, self.seconds))
        for average, parameter in zip(self.ema, self.parameters, strict=False):
            average.lerp_(parameter.detach(), 1 - self.ema_decay)
        return found

    def _backward(self, value: Tensor) -> Tensor:
        """Every gradient, and the loss, of the whole batch: the sum of what the processes have of it."""
        value.backward()
        total, trained = value.detach().clone(), [*self.parameters, *self.beside]
        for parameter in trained if processes.count() > 1 else ():
            if parameter.grad is None:  # unused: torch leaves it None, and the messages must match
                parameter.grad = torch.zeros_like(parameter)
        processes.add_up([total, *(p.grad for p in trained if p.grad is not None)])
        return total

    def _finish(self) -> None:
        for average, parameter in zip(self.ema, self.parameters, strict=False):
            parameter.data.copy_(average)
        if self.ema and self.after_step is not None:
            self.after_step(1.0)
        self.optimizer.zero_grad(set_to_none=True)
        self.model.eval()

    def _retreat(self, good: dict[str, Any]) -> None:
        retreats = self.curve.retreats + 1
        if retreats > RETREATS:
            raise InputError(
                f"{self.name}: the loss is not finite at --lr {self.lr:g}, even {2**RETREATS} times smaller"
            )
        self._restore(copy.deepcopy(good))
        self.curve.retreats = retreats
        self.lr_scale = 0.5**retreats
        if processes.leads():
            tqdm.write(
                f"{self.name}: the loss is not finite; back to step {self.step} with {self.lr * self.lr_scale:.2g}",
                file=sys.stderr,
            )

    def _record(self, value: float) -> None:
        self._pending.append(value)
        self.curve.steps, self.curve.seconds = self.step, self.seconds
        stride = max(1, math.ceil((self.allowance.steps or 0) / CURVE_POINTS))
        if len(self._pending) >= stride:
            self.curve.points.append((self.step, self.seconds, sum(self._pending) / len(self._pending)))
            self._pending = []
        if len(self.curve.points) > 2 * CURVE_POINTS:
            self.curve.points = self.curve.points[1::2]

    def _bar(self) -> tqdm:
        total = self.allowance.steps or round(self.allowance.seconds or 0)
        done = self.step if self.allowance.steps else round(self.seconds)
        quiet = 0.2 if sys.stderr.isatty() else 30.0
        unit = "step" if self.allowance.steps else "s"
        hidden = not processes.leads()
        return tqdm(
            total=total, initial=done, desc=self.name, unit=unit, mininterval=quiet, leave=False, disable=hidden
        )

    def _show(self, bar: tqdm, value: float) -> None:
        bar.set_postfix(loss=f"{value:.4g}", refresh=False)
        bar.update((self.step if self.allowance.steps else round(self.seconds)) - bar.n)

    def _state(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "model": dict(self.model.state_dict()),
                "lesson": dict(self.lesson.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema,
                "step": self.step,
                "seconds": self.seconds,
                "lr_scale": self.lr_scale,
                "points": self.curve.points,
                "pending": self._pending,
                "retreats": self.curve.retreats,
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.lesson.load_state_dict(state["lesson"])
        self.optimizer.load_state_dict(state["optimizer"])
        for average, saved in zip(self.ema, state["ema"], strict=True):
            average.copy_(saved)
        self.step, self.seconds, self.lr_scale = state["step"], state["seconds"], state["lr_scale"]
        points = [(int(step), float(seconds), float(loss)) for step, seconds, loss in state["points"]]
        self.curve = Curve(points, state["retreats"], self.step, self.seconds)
        self._pending = list(state["pending"])

    def _save(self, state: dict[str, Any]) -> None:
        if self.checkpoint is not None and processes.leads():
            tensors: dict[str, Tensor] = {}
            document = flatten(state, "state", tensors)
            write_tensors(self.checkpoint, tensors, document)

    def _resume(self) -> None:
        path = self.checkpoint
        if path is not None and processes.decided(path.exists):
            tensors, document = processes.decided(lambda: read_tensors(path))
            self._restore(unflatten(document, tensors))


def _size(parameter: Tensor) -> float:
    """The root mean square of a tensor, by which its steps are scaled."""
    return max(SMALLEST, float(parameter.detach().double().square().mean().sqrt()))


def _schedule(progress: float) -> float:
    """Share of the learning rate: linear up over WARM_UP, then half a cosine down to a hundredth."""
    if progress < WARM_UP:
        return (progress + 0.1 * WARM_UP) / (1.1 * WARM_UP)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))
