"""Where networks are trained and judged: one original, one task, one recipe, and a ledger of what was found once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import network
from compress import processes
from compress.batches import Batches, forward
from compress.distill import Distillation
from compress.imitation import label_free, tensors
from compress.ledger import Ledger
from compress.metrics import Examiner
from compress.norms import has_statistics, recalibrate
from compress.precision import faster_in_bf16
from compress.rate import Choice, choose_rate
from compress.recipe import ITEMS, PICTURES, Allowance, Recipe
from compress.teacher import RUNTIMES, Teacher, quickest_runtime
from compress.training import Trainer
from network.errors import InputError
from network.seeding import seeded
from network.types import Keep, Network
from search.task import Task

__all__ = ["School", "alone", "between"]

STATISTICS_ITEMS = 256
STATISTICS_BATCH = 32
PACE_STEPS = 3

SHARES = (1.0, 0.75, 0.5, 0.25)
"""How much of the way that training went is kept, at most and at least."""

T = TypeVar("T")

Hook = Callable[[nn.Module], Callable[[float], None] | None]
"""Makes what runs after each of a model's steps, with the share of the stage that is done."""


class School:
    """Batches, judges and trainers for every network that comes of `original`.

    Only the first of several processes has an `examiner`. Raises InputError, ModelReferenceError for a recipe that this
    network cannot be taught by.
    """

    def __init__(
        self,
        original: nn.Module,
        net: Network,
        task: Task,
        recipe: Recipe,
        ledger: Ledger,
        notify: Callable[[str], Any] = lambda line: None,
    ):
        self.original, self.net, self.task, self.recipe = original, net, task, recipe
        self.ledger, self.notify = ledger, notify
        self.device = str(next(iter(original.parameters())).device)
        self.batch_size = recipe.batch_size or task.batch_size
        self.batches = Batches(task.train, self.batch_size, seed=recipe.seed, device=self.device, window=recipe.crop)
        if recipe.crop is not None:
            self._try_window(recipe.crop)
        if processes.leads():
            self.examiner = self.examiner_of(original, self._heldout())
        self.bf16, self.teacher_runtime = self._choose_arithmetic()
        self._teachers: dict[nn.Module, Teacher] = {}
        self._lesson(original, original, {})  # what the recipe asks for and cannot be is said before hours of work

    def examiner_of(self, original: nn.Module, limit: int) -> Examiner:
        """Who judges by at most so many held-out items how near a network is to this one."""
        return Examiner(original, self.task, limit=limit, batch_size=self.batch_size, device=self.device)

    def split(self) -> tuple[Allowance, Allowance]:
        """What condensation and distillation may use."""
        return self.recipe.split(self._step_seconds())

    def train(
        self,
        stage: str,
        model: nn.Module,
        teacher: nn.Module,
        allowance: Allowance,
        *,
        keep: Keep | None = None,
        hook: Hook = lambda model: None,
    ) -> dict[str, Any]:
        """Train `model` in place to imitate `teacher`, at the rate that short trials choose unless one is given.

        keep: the channels that a narrow model has, for the adaptors and the judge that the recipe asks for.
        Returns the curve, and the trials.
        """

        def trainer(student: nn.Module, rate: float, allowed: Allowance) -> Trainer:
            name = stage if student is model else f"{stage}, trying --lr {rate:g}"
            checkpoint = self.ledger.checkpoint(stage) if student is model else None
            return self._trainer(student, self._lesson(teacher, student, keep), allowed, rate, name, checkpoint, hook)

        notes = self.ledger.notes(f"{stage} rate")
        if notes is None:
            given = self.recipe.lr
            choice = choose_rate(model, trainer, allowance) if given is None else Choice(given)
            self.ledger.finish(f"{stage} rate", notes := asdict(choice))
        choice = Choice(**notes)
        curve = trainer(model, choice.rate, choice.rest(allowance)).run()
        return curve.as_dict() | {"lr": choice.rate, "trials": choice.losses}

    def distil(
        self, model: nn.Module, teacher: nn.Module, allowance: Allowance, keep: Keep, error: float
    ) -> dict[str, Any]:
        """Train a narrow model in place, and go back towards what it was as far as held-out items ask for that.

        Weights between those before and those after a training are often better on new items than either: where there
        are few to learn from, it goes too far (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
        error: the model's before; if training gained nothing, it is what it was again.
        """
        before = copy.deepcopy(model.state_dict())
        curve = self.train("distilled", model, teacher, allowance, keep=keep)
        share = alone(model, lambda: self._walk_back(model, before, error))
        if share == 0:
            self.notify(f"distillation at --lr {curve['lr']:g} gained nothing; what it began with is delivered")
        return {"curve": curve, "share": share}

    def settle(self, model: nn.Module) -> None:
        """Recalibrate running statistics where that lowers the held-out error."""
        if has_statistics(model):
            before, state = self.examiner.judge(model).error, copy.deepcopy(model.state_dict())
            recalibrate(model, self.batches.plain(STATISTICS_ITEMS, max(self.batch_size, STATISTICS_BATCH)))
            if not self.examiner.judge(model).error <= before:
                model.load_state_dict(state)

    # ---- details -----------------------------------------------------------------------------------------------------
    def _walk_back(self, model: nn.Module, before: dict[str, Tensor], error: float) -> float:
        """The share of the way from before to after the training at which the model is left: the best of SHARES, seen
        from the far end until one is no better than the last; 0 if that is no better than `error`.
        """
        after = copy.deepcopy(model.state_dict())
        best, found, share = math.inf, before, 0.0
        for nearer in SHARES:
            model.load_state_dict(between(before, after, nearer))
            self.settle(model)
            now = self.examiner.judge(model).error
            if now < best:
                best, found, share = now, copy.deepcopy(model.state_dict()), nearer
            elif best < math.inf:
                break
        if not best <= error:
            found, share = before, 0.0
        model.load_state_dict(found)
        return share

    def _try_window(self, side: int) -> None:
        """Raises InputError where the network, or the task, cannot do with a part of a picture."""
        if not label_free(self.task):
            raise InputError(f"--crop {side}: the task has targets of whole pictures; let its own dataset cut them")
        try:
            with torch.no_grad():
                forward(self.original, self.batches.batch(0)[0])
        except Exception as error:  # whatever the user's code says to it
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"--crop {side}: the network refuses pictures of that size: {reason[:120]}") from None

    def _heldout(self) -> int:
        with torch.no_grad():
            output = tensors(forward(self.original, self.batches.batch(0)[0]))[0]
        return self.recipe.heldout or (PICTURES if output.dim() == 4 else ITEMS)

    def _choose_arithmetic(self) -> tuple[bool, str]:
        """Whether to train in bf16, and the teacher's runtime: timed once per run, since a resumed run must go on in
        what it began with.
        """
        notes = self.ledger.notes("arithmetic")
        if notes is None:
            auto = self.recipe.autocast == "auto"
            notes = processes.decided(self._quickest) if auto else {"bf16": False, "teacher": RUNTIMES[0]}
            self.ledger.finish("arithmetic", notes)
        return bool(notes["bf16"]), str(notes["teacher"])

    def _quickest(self) -> dict[str, Any]:
        inputs = self.batches.batch(0)[0]
        bf16 = faster_in_bf16(copy.deepcopy(self.original), inputs)
        return {"bf16": bf16, "teacher": quickest_runtime(self.original, inputs, bf16=bf16)}

    def _step_seconds(self) -> float:
        """How long a step of condensation takes, where that decides whether there will be one."""
        if self.recipe.condense != "auto" or self.recipe.minutes is None:
            return 0.0
        notes = self.ledger.notes("pace")
        if notes is None:
            model = copy.deepcopy(self.original)
            lesson = self._lesson(self.original, model, None)
            trial = self._trainer(model, lesson, Allowance(steps=PACE_STEPS), 1e-6, "timing a step")
            trial.run()
            self.ledger.finish("pace", notes := {"step_s": trial.seconds / PACE_STEPS})
        return float(notes["step_s"])

    def _lesson(self, teacher: nn.Module, student: nn.Module, keep: Keep | None) -> Distillation:
        teaching, sample = self.recipe.teaching, self.batches.batch(0)
        if teacher not in self._teachers:
            self._teachers[teacher] = Teacher(teacher, self.teacher_runtime, bf16=self.bf16)
        asked = self._teachers[teacher]
        if keep is None:
            return Distillation(asked, self.task, teaching.plain, sample)
        judge = self.recipe.discriminator and network.load_model(self.recipe.discriminator)
        with seeded(self.recipe.seed):
            lesson = Distillation(asked, self.task, teaching, sample)
            return lesson.accompany(student, self.net, keep, sample, judge or None)

    def _trainer(
        self,
        student: nn.Module,
        lesson: Distillation,
        allowance: Allowance,
        rate: float,
        name: str,
        checkpoint: Path | None = None,
        hook: Hook = lambda model: None,
    ) -> Trainer:
        return Trainer(
            student,
            lesson,
            self.batches,
            allowance,
            lr=rate,
            name=name,
            checkpoint=checkpoint,
            after_step=hook(student),
            bf16=self.bf16,
            ema=self.recipe.ema,
        )


def between(before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The state at this share of the straight way from one to the other; what is no real number is as it is after."""
    return {
        name: torch.lerp(before[name], value, share) if value.is_floating_point() else value
        for name, value in after.items()
    }


def alone(model: nn.Module, work: Callable[[], T]) -> T:
    """What the first of several processes alone does to a model, which all then have."""
    found = processes.decided(work)
    processes.share_state(model)
    return found
