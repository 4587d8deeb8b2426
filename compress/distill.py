"""Fourth stage: the narrow network learns its teacher's outputs, and the task's labels where there are any."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.adversary import Adversary
from compress.batches import Batch, forward
from compress.features import Features, Tap, choose_taps, watched
from compress.imitation import label_free, output_scale, tensors
from compress.metrics import Examiner
from compress.mixing import check_mixable, mixed
from compress.outputs import outputs_apart
from compress.recipe import Teaching
from compress.teacher import Teacher
from network.modes import evaluating
from network.types import Keep, Network
from search.task import Task

__all__ = ["EMPTY_LESSON", "Distillation", "choose_teacher"]

EMPTY_LESSON = 0.9
"""A condensed teacher must be this much closer to the original than its pupil is, or it has nothing to teach."""


class Distillation(nn.Module):
    """The training loss: distances to the teacher on the same crop, plus the task's own loss where it has one.

    Same input for both: Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", CVPR 2022.
    What is trained beside the student, adaptors and a judge, are this module's parameters. The judge takes the
    teacher's pictures for real, or what a task's `real(target)` gives; where its `conditional` is false it sees outputs
    alone.
    """

    def __init__(self, teacher: Teacher, task: Task, teaching: Teaching, sample: Batch):
        """sample: a batch that fixes the unit of the distance. Raises InputError where it cannot be mixed."""
        super().__init__()
        self._teacher, self._teaching = teacher, teaching
        # Not the task itself: one that is a module would be trained along.
        self._loss, self._real = task.loss, getattr(task, "real", None)
        self._conditional = getattr(task, "conditional", True)
        self._scale = output_scale(teacher(sample[0]))
        self._taps: tuple[Tap, ...] = ()
        self.features: Features | None = None
        self.adversary: Adversary | None = None
        self._labelled = not label_free(task)
        check_mixable(teaching.mix, sample[0], sample[1] if self._labelled else None)

    def accompany(
        self, student: nn.Module, net: Network, keep: Keep, sample: Batch, judge: nn.Module | None = None
    ) -> Distillation:
        """Make adaptors and a judge for this student, as far as they are asked for. Raises InputError."""
        teaching, teacher = self._teaching, self._teacher.network
        if not (teaching.features or teaching.adversarial):
            return self
        if teaching.features:
            self._taps = choose_taps(net, teacher)
        with torch.no_grad(), evaluating(student):
            with watched(teacher, self._taps) as theirs:
                lesson = forward(teacher, sample[0])
            with watched(student, self._taps) as ours:
                forward(student, sample[0])
        if teaching.features:
            kept = {tap.group: keep.get(tap.group, range(net.group(tap.group).width)) for tap in self._taps}
            self.features = Features(teaching.features, self._taps, kept, ours, theirs)
        for kind, weight in teaching.adversarial.items():
            inputs = sample[0][0] if self._conditional else None
            self.adversary = Adversary(kind, weight, inputs, tensors(lesson)[0], judge)
        return self

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a student on a batch."""
        (inputs, target), mixture = batch, None
        if self._teaching.mix != "none":
            mixture = mixed(self._teaching.mix, inputs)
            inputs = mixture.inputs
        theirs: dict[str, Tensor] = {}
        if self._taps:
            with torch.no_grad(), watched(self._teacher.network, self._taps) as theirs:
                lesson = forward(self._teacher.network, inputs)
        else:
            lesson = self._teacher(inputs)
        with watched(model, self._taps) as ours:
            output = forward(model, inputs)
        value = outputs_apart(output, lesson, self._scale, self._teaching.outputs)
        if self._labelled and mixture is None:
            value = value + self._loss(output, target)
        elif self._labelled and mixture is not None:
            value = value + mixture.expected(lambda labels: self._loss(output, labels), target)
        if self.features is not None:
            value = value + self.features(ours, theirs)
        if self.adversary is not None:
            real = tensors(lesson)[0] if self._real is None else self._real(target)
            value = value + self.adversary(inputs[0], tensors(output)[0], real)
        return value


def choose_teacher(
    wanted: str, original: nn.Module, condensed: nn.Module | None, student_error: float, examiner: Examiner
) -> tuple[str, nn.Module]:
    """The condensed network, while it is clearly closer to the original than its student; else the original.

    A condensed network that lost nothing at the cut *is* its student: imitating it would teach nothing.
    """
    if wanted == "condensed" and condensed is not None:
        with evaluating(condensed):
            if examiner.judge(condensed).error < EMPTY_LESSON * student_error:
                return "condensed", condensed
    return "original", original
