"""The mask → face network that benchmarks.quality compresses: a pix2pix U-Net trained here on FASSEG.

    python -m benchmarks.faces --minutes 30        # into bench/faces.safetensors; goes on where it was cut off

L1 to the photo and a PatchGAN (hinge), as Isola et al., CVPR 2017, at half their width: 13.6 M parameters.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import data_folder
from benchmarks.networks import Pix2Pix
from compress.adversary import Adversary
from compress.batches import Batch, Batches, forward
from compress.checkpoint import write_tensors
from compress.metrics import Examiner
from compress.recipe import Allowance
from compress.tasks import PairedTranslation
from compress.training import Trainer
from network.command_line import run

__all__ = ["SHAPE", "WEIGHTS", "face_unet", "faces", "main", "trained"]

SHAPE = (1, 6, 256, 256)
"""Six classes: background, hair, skin, eyes, nose, mouth."""

WEIGHTS = Path("bench/faces.safetensors").absolute()
MINUTES = 30.0
RATE = 0.01
"""Relative, as `compress.training.Trainer` has it: 2e-4 of weights that begin with a deviation of 0.02."""

ADVERSARY = 0.02


def face_unet() -> nn.Module:
    """The U-Net, with weights as pix2pix begins: normal, 0.02."""
    torch.manual_seed(0)
    model = Pix2Pix(SHAPE[1], 32)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
    return model


def faces() -> PairedTranslation:
    """344 photos with their masks; the sets' own test folders judge."""
    folder = data_folder() / "images" / "fasseg_h256.zip"
    return PairedTranslation(SHAPE[1:], folder=str(folder), suffix="_mask")


class Lesson(nn.Module):
    """L1 to the photo, and the judge."""

    def __init__(self, task: PairedTranslation, sample: Batch):
        super().__init__()
        self._task = task
        self.adversary = Adversary("hinge", ADVERSARY, sample[0][0], sample[1])

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch."""
        inputs, target = batch
        output = forward(model, inputs)
        return self._task.loss(output, target) + self.adversary(inputs[0], output, self._task.real(target))


def trained(minutes: float = MINUTES, path: Path = WEIGHTS) -> dict[str, Any]:
    """Train unless `path` is there. Returns the held-out quality, against the photos."""
    if path.exists():
        return {}
    task, model = faces(), face_unet()
    batches = Batches(task.train, task.batch_size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lesson = Lesson(task, batches.batch(0))
    checkpoint = path.with_suffix(".checkpoint")
    path.parent.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        model, lesson, batches, Allowance(seconds=60 * minutes), lr=RATE, name="faces", checkpoint=checkpoint
    )
    curve = trainer.run()
    found = Examiner(model.eval(), task, limit=1000, batch_size=4).judge(model, full=True)
    write_tensors(path, dict(model.state_dict()))
    checkpoint.unlink(missing_ok=True)
    print(f"{curve.steps} steps in {curve.seconds:.0f} s; to the photos held out: {found.quality}", file=sys.stderr)
    return found.quality


def main(argv: list[str] | None = None) -> int:
    """Train, and say how near to the photos the network comes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faces", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of training (default: %(default)g)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the weights (default: bench/faces.safetensors)")
    options = parser.parse_args(argv)
    if not trained(options.minutes, options.out.absolute()):
        print(f"{options.out} is there already; delete it to train anew", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
