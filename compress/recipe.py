"""What the user may choose about a compression, validated once; the stages assume it is valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from network.errors import InputError

__all__ = [
    "ADVERSARIES",
    "AUTOCASTS",
    "CONDENSERS",
    "FEATURES",
    "MIXTURES",
    "OUTPUTS",
    "TEACHERS",
    "Recipe",
    "Teaching",
]

CONDENSERS = ("auto", "group-l2", "l1", "hard-concrete", "none")
TEACHERS = ("condensed", "original")
AUTOCASTS = ("off", "auto")
OUTPUTS = {"auto": 1.0, "l1": 1.0, "mse": 1.0, "ssim": 1.0, "wavelet": 1.0, "kl": 1.0}
FEATURES = {"mse": 0.1, "alignment": 0.1, "similarity": 1.0, "gram": 0.1}
ADVERSARIES = {"hinge": 0.02, "lsgan": 0.02}
"""What --outputs, --features and --adversarial know, each with the weight that it has unless one is given."""

MIXTURES = ("none", "mixup", "cutmix")
DEFAULT_STEPS = 400
PICTURES, ITEMS = 48, 512

LEAST_CONDENSING = 150
"""Steps of condensation below which "auto" leaves it out: fewer cost more than they bring
(docs/notes/2026-11-22-learning-rate.md)."""


@dataclass(frozen=True, slots=True)
class Teaching:
    """What is taught: weights of distances between outputs and between features, an adversary, mixed inputs."""

    outputs: Mapping[str, float]
    features: Mapping[str, float]
    adversarial: Mapping[str, float]
    mix: str

    @property
    def plain(self) -> Teaching:
        """The same without what is trained beside a student: what condensation learns by."""
        return Teaching(self.outputs, {}, {}, self.mix)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to spend the training time.

    `steps` (optimiser steps) or `minutes` (of training) bound condensation and distillation together, of which
    condensation takes `condense_share`; `condense` "auto" is "group-l2" where that is enough, else "none". With `steps`
    the result is a function of the recipe alone, and a run that was killed resumes to the same weights. `batch_size`
    None takes the task's. `heldout` caps the items that quality is measured on; None: PICTURES for networks that make
    images, else ITEMS. `corrections` is how often a plan that misses the budget may be solved anew. `lr` is relative to
    the weights (`compress.training.Trainer`); None lets short trials, which are part of the allowance, choose it.
    `outputs`, `features` and `adversarial` are terms of the distillation's loss with their weights, such as
    "l1,ssim=0.5"; `discriminator` names the adversary (FILE:CALLABLE) if it is not to be a PatchGAN; `mix` mixes a
    classifier's pictures. `crop` is the side of the windows of pictures that steps are made on, where the network takes
    any size and imitates alone; None: whole pictures. `autocast` "auto" trains in bf16 where a timed step says that
    this machine is faster with it, and lets the teacher run in OpenVINO where that is faster.
    Raises InputError.
    """

    steps: int | None = None
    minutes: float | None = None
    condense: str = "auto"
    condense_share: float = 0.25
    teacher: str = "condensed"
    outputs: str = "auto"
    features: str = "none"
    adversarial: str = "none"
    discriminator: str | None = None
    mix: str = "none"
    repair: bool = True
    batch_size: int | None = None
    crop: int | None = None
    lr: float | None = None
    corrections: int = 6
    seed: int = 0
    heldout: int | None = None
    autocast: str = "off"
    ema: float = 0.0

    def __post_init__(self) -> None:
        for name, value, options in (
            ("--condense", self.condense, CONDENSERS),
            ("--teacher", self.teacher, TEACHERS),
            ("--autocast", self.autocast, AUTOCASTS),
            ("--mix", self.mix, MIXTURES),
        ):
            if value not in options:
                raise InputError(f"{name} {value} is unknown; choose one of {', '.join(options)}")
        if self.steps is not None and self.minutes is not None:
            raise InputError("--steps and --minutes exclude each other; give one of them")
        if self.steps is None and self.minutes is None:
            object.__setattr__(self, "steps", DEFAULT_STEPS)
        for name, number, low in (
            ("--steps", self.steps, 0),
            ("--minutes", self.minutes, 0),
            ("--batch-size", self.batch_size, 1),
            ("--crop", self.crop, 1),
            ("--heldout", self.heldout, 1),
            ("--seed", self.seed, 0),
            ("corrections", self.corrections, 0),
        ):
            if number is not None and not low <= number < float("inf"):
                raise InputError(f"{name} {number} is out of range; give {low} or more")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise InputError(f"--lr {self.lr} is not a learning rate; give a positive number such as 0.003")
        if not 0 <= self.condense_share < 1 or not 0 <= self.ema < 1:
            raise InputError(f"shares lie in [0, 1): condense_share {self.condense_share}, ema {self.ema}")

        if self.discriminator and self.adversarial == "none":
            raise InputError("--discriminator is for --adversarial; give hinge or lsgan there")
        if not self.teaching.outputs:
            raise InputError(f"--outputs none leaves nothing to learn; choose from {', '.join(OUTPUTS)}")
        if len(self.teaching.adversarial) > 1:
            raise InputError(f"--adversarial {self.adversarial}: give one of {', '.join(ADVERSARIES)}")

    @property
    def teaching(self) -> Teaching:
        """The terms of the training loss. Raises InputError."""
        return Teaching(
            _weights("--outputs", self.outputs, OUTPUTS),
            _weights("--features", self.features, FEATURES),
            _weights("--adversarial", self.adversarial, ADVERSARIES),
            self.mix,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in the report and in a run's identity."""
        return asdict(self)

    def split(self, step_s: float = 0.0) -> tuple[Allowance, Allowance]:
        """What condensation and distillation may use. step_s: seconds of a step, which "auto" asks for with minutes."""
        share = 0.0 if self.condense == "none" else self.condense_share
        if self.condense == "auto":
            steps = 60 * self.minutes / max(step_s, 1e-9) if self.minutes is not None else self.steps or 0
            share = share if steps * share >= LEAST_CONDENSING else 0.0
        if self.minutes is not None:
            return Allowance(seconds=60 * self.minutes * share), Allowance(seconds=60 * self.minutes * (1 - share))
        steps = self.steps or 0
        return Allowance(steps=round(steps * share)), Allowance(steps=steps - round(steps * share))


def _weights(flag: str, text: str, usual: Mapping[str, float]) -> dict[str, float]:
    """ "l1,ssim=0.5" → {"l1": its usual weight, "ssim": 0.5}; "none" → nothing."""
    found = {}
    for part in [] if text == "none" else text.split(","):
        name, equals, number = part.partition("=")
        if name not in usual:
            raise InputError(f"{flag} {name or text!r} is unknown; choose from {', '.join(usual)}, such as l1,ssim=0.5")
        try:
            found[name] = float(number) if equals else usual[name]
        except ValueError:
            raise InputError(f"{flag} {part}: {number!r} is no weight; write {name}=0.5") from None
        if not 0 < found[name] < float("inf"):
            raise InputError(f"{flag} {part}: a weight is positive; write {name}=0.5")
    return found


@dataclass(frozen=True, slots=True)
class Allowance:
    """Training time of one stage: a number of steps, or seconds on the clock."""

    steps: int | None = None
    seconds: float | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to spend."""
        return not (self.steps or self.seconds)

    def progress(self, steps: int, seconds: float) -> float:
        """Share used, 0…1."""
        if self.empty:
            return 1.0
        return min(1.0, steps / self.steps if self.steps else seconds / (self.seconds or 1.0))
