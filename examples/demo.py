"""`make demo`: a real generator trained on real photos goes through the three commands, in about eight minutes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from compress import load
from examples.painter import photos, train
from examples.pictures import sheet
from network import load_model, open_images

__all__ = ["main"]

BIN = Path(sys.executable).parent
SIZE = (3, 256, 256)
SHAPE = f"1x{'x'.join(map(str, SIZE))}"
SHOWN = 3


def command(cache: Path, *words: object) -> None:
    """Show a command as a user would type it, and run it."""
    text = [str(word) for word in words]
    print("\n$ " + " ".join(text), flush=True)
    subprocess.run([str(BIN / text[0]), *text[1:]], check=True, env=os.environ | {"NARROWGAUGE_CACHE": str(cache)})


def main(argv: list[str] | None = None) -> int:
    """Train, profile, search, apply; print the table of the report."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything it makes")
    parser.add_argument("--budget", default="0.4x", help="latency budget (default: 0.4x)")
    parser.add_argument("--runtime", default="openvino", help="runtime that will serve the network")
    parser.add_argument("--train-seconds", type=float, default=120, help="time to train the original network")
    parser.add_argument("--minutes", type=float, default=2.5, help="time to compress it")
    options = parser.parse_args(argv)
    out, start = options.out, time.perf_counter()
    folder, weights, plan, profiles = out / "photos", out / "painter.safetensors", out / "plan.json", out / "profiles"
    folder.mkdir(parents=True, exist_ok=True)
    for name, photo in photos():
        Image.fromarray((photo * 255).round().astype(np.uint8)).save(folder / f"{name}.png")
    if not weights.exists():
        print("Training an image-to-image network to compress: photo → painting.", flush=True)
        train(weights, seconds=options.train_seconds)

    model = Path(__file__).parent / "painter.py"
    named = (f"{model}:Painter", "--weights", weights, "--input", SHAPE)
    place = ("--runtime", options.runtime, "--profiles", profiles)
    cache = out / "cache"
    command(cache, "profile-device", *named, *place, "--configurations", 24)
    command(cache, "search", *named, *place, "--latency-budget", options.budget, "--images", folder, "-o", plan)
    command(
        cache,
        *("apply-plan", plan, "--weights", weights, "--images", folder, "--profiles", profiles),
        *("-o", out, "--minutes", options.minutes),
    )
    strip(folder, f"{model}:Painter", weights, out)
    table(json.loads((out / "report.json").read_text()), out, time.perf_counter() - start)
    return 0


def strip(folder: Path, model: str, weights: Path, out: Path) -> None:
    """pictures.jpg: a few photos in a column, beside them what the original makes of each, and what was delivered."""
    images = open_images(folder, SIZE)
    networks = load_model(model, weights=weights), load(out)
    with torch.no_grad():
        rows = [
            [images.to_rgb(each) for each in (photo, *(network(photo[None])[0].clamp(0, 1) for network in networks))]
            for photo in (images[number] for number in range(SHOWN))
        ]
    sheet(rows, out / "pictures.jpg")


def table(report: dict, out: Path, seconds: float) -> None:
    """Print original and delivered side by side."""
    quality, parameters, macs = report["quality"], report["parameters"], report["macs"]
    rows = [
        ("latency, ms", f"{report['baseline_ms']:.2f}", f"{report['delivered_ms']:.2f}"),
        ("latency budget, ms", "", f"{report['budget_ms']:.2f}"),
        ("parameters", f"{parameters['original']:,}", f"{parameters['delivered']:,}"),
        ("GMACs", f"{macs['original'] / 1e9:.2f}", f"{macs['delivered'] / 1e9:.2f}"),
        ("PSNR to the original, dB", "", f"{quality['distilled']['psnr_db']:.2f}"),
        ("SSIM to the original", "", f"{quality['distilled']['ssim']:.3f}"),
    ]
    print(f"\n{'':<26}{'original':>12}{'delivered':>12}")
    for name, *values in rows:
        print(f"{name:<26}" + "".join(f"{value:>12}" for value in values))
    print(f"\n{seconds / 60:.1f} minutes in all. Look at {out / 'pictures.jpg'} and {out / 'report.html'}.")


if __name__ == "__main__":
    raise SystemExit(main())
