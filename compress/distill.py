"""Fourth stage: the narrow network learns its teacher's outputs, and the task's labels where there are any."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.batches import Batch, forward
from compress.imitation import distance, label_free, output_scale
from compress.metrics import Examiner
from compress.training import Loss
from network.modes import evaluating
from search.task import Task

__all__ = ["EMPTY_LESSON", "choose_teacher", "imitate"]

EMPTY_LESSON = 0.9
"""A condensed teacher must be this much closer to the original than its pupil is, or it has nothing to teach."""


def imitate(teacher: nn.Module, task: Task, sample: Batch) -> Loss:
    """The training loss: distance to the teacher's output on the same crop, plus the task's own loss where it has one.

    Same input for both: Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", CVPR 2022.
    sample: a batch that fixes the unit of the distance.
    """
    teacher.eval()
    with torch.no_grad():
        scale = output_scale(forward(teacher, sample[0]))
    labelled = not label_free(task)

    def loss(output: Any, batch: Batch, model: nn.Module) -> Tensor:
        with torch.no_grad():
            lesson = forward(teacher, batch[0])
        value = distance(output, lesson, scale)
        return value + task.loss(output, batch[1]) if labelled else value

    return loss


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
