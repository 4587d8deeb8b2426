"""How long a teacher takes for a training batch, in torch and in OpenVINO, in fp32 and in bf16, timed in turn.

python -m benchmarks.teaching                                   # Johnson and CartoonGAN, 4 windows of 128x128
python -m benchmarks.teaching --only johnson --side 256 --threads 1
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmarks.generators import Johnson
from benchmarks.networks import cartoongan
from compress.batches import formatted, image_format
from compress.teacher import RUNTIMES, Teacher
from latency.measurement import interleave
from network.command_line import run

__all__ = ["NETWORKS", "main"]

NETWORKS: dict[str, Callable[[], nn.Module]] = {"johnson": Johnson, "cartoongan": cartoongan}
ROUNDS = 9


def said(teacher: Teacher, x: torch.Tensor, bf16: bool) -> None:
    """One answer; each input differs from the last, since what comes again is remembered."""
    x += 1e-3
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        teacher((x,))


def main(argv: list[str] | None = None) -> int:
    """Print the median milliseconds, a line per network and precision."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.teaching", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=NETWORKS, help="a network; may be repeated (default: all)")
    parser.add_argument("--batch", type=int, default=4, help="pictures at once (default: 4)")
    parser.add_argument("--side", type=int, default=128, help="of the pictures (default: 128)")
    parser.add_argument("--threads", type=int, help="default: all")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.only or NETWORKS:
        network = NETWORKS[name]().eval().to(memory_format=image_format())  # type: ignore[call-overload]
        x = formatted(torch.rand(options.batch, 3, options.side, options.side))
        runs = {
            (bf16, runtime): partial(said, Teacher(network, runtime, bf16=bf16), x, bf16)
            for bf16 in (False, True)
            for runtime in RUNTIMES
        }
        taken = interleave(
            {f"{runtime} {bf16}": run for (bf16, runtime), run in runs.items()},
            rounds=ROUNDS,
            threads=torch.get_num_threads(),
        )
        for bf16 in (False, True):
            ours, theirs = (taken[f"{runtime} {bf16}"].measurement() for runtime in RUNTIMES)
            print(
                f"{name:<12} {'bf16' if bf16 else 'fp32'}  torch {ours.median_ms:7.1f} ms (IQR {ours.iqr_ms:.1f})  "
                f"openvino {theirs.median_ms:7.1f} ms (IQR {theirs.iqr_ms:.1f})  "
                f"openvino / torch {theirs.median_ms / ours.median_ms:.2f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
