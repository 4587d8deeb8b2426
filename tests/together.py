"""Compressions as every one of several processes runs them: torchrun … tests/together.py FOLDER JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import compress
import compress.pipeline
from compress import training
from compress.checkpoint import write_json, write_tensors
from search import Settings
from tests.compression import Clock, Labelled, case


def main(folder: str, jobs: str) -> None:
    """Apply a plan for each job: what `apply` is told, as JSON objects."""
    torch.set_num_threads(1)
    training.CHECKPOINT_STEPS = 3
    compress.pipeline.exported = lambda *arguments: {}
    for job in json.loads(jobs):
        apply(Path(folder), **job)


def apply(folder: Path, out: str, network: str, kind: str, die_at: int | None = None, **options: Any) -> None:
    """Compress, and write down what this process came to.

    No group is removed: the gradient of weights that read constants spans but few directions, and rounding decides the
    basis that SOAP takes for the others.

    kind: of numbers. die_at: the step of distillation at which every process ends. options: those of apply_plan.
    """
    torch.set_default_dtype(getattr(torch, kind))
    rank = os.environ.get("RANK", "0")
    if die_at is not None:
        _die_at(die_at)
    given = case(network, task=Labelled() if network == "residual" else None, settings=Settings(removal=False))
    clock = Clock(given.net, 1.2)
    lines: list[str] = []
    done = compress.apply_plan(*given.arguments(), folder / out, measure=clock, notify=lines.append, **options)
    write_tensors(folder / f"{out}-{rank}.safetensors", dict(done.model.state_dict()))
    write_json(folder / f"{out}-{rank}.json", {"report": done.report, "measured": clock.calls, "lines": lines})


def _die_at(step: int) -> None:
    whole = training.Trainer._one_step

    def mortal(self, progress):
        if self.name == "distilled" and self.step == step:
            os._exit(9)
        return whole(self, progress)

    training.Trainer._one_step = mortal


if __name__ == "__main__":
    main(*sys.argv[1:])
