"""kill -9 in the middle of each command, again and again, then the same command to its end: nothing may be lost.

    python -m benchmarks.kill --kills 5

profile-device must end with every configuration once; search with the plan of an undisturbed run; apply-plan with the
weights of an undisturbed run that had the same delivery (training by --steps is a function of the plan alone).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from examples.painter import Painter, photos
from latency import Store
from latency.table import BARE, FULL, THIN
from network.command_line import run

__all__ = ["main"]

MODEL = f"{Path(__file__).parents[1] / 'examples' / 'painter.py'}:Painter"
COMMANDS = {"profile-device": "latency.command", "search": "search.command", "apply-plan": "compress.command"}


def launch(folder: Path, *words: object) -> subprocess.Popen:
    """A command in a process of its own, its progress kept in a file, its importance beside what it makes."""
    name, *rest = map(str, words)
    code = f"import sys; from {COMMANDS[name]} import main; sys.exit(main())"
    kept = os.environ | {"NARROWGAUGE_CACHE": f"{folder / 'cache' / Path(rest[-1]).name}"}
    with open(folder / "log", "ab") as log:
        return subprocess.Popen([sys.executable, "-c", code, *rest], stdout=log, stderr=log, env=kept)


def disturbed(folder: Path, kills: int, rng: random.Random, lives: tuple[float, float], *words: object) -> int:
    """Run a command, killing it `kills` times after so many seconds, least and most; returns kills that struck."""
    struck = 0
    for _ in range(kills):
        process = launch(folder, *words)
        time.sleep(rng.uniform(*lives))
        struck += process.poll() is None
        process.kill()
        process.wait()
    if launch(folder, *words).wait():
        raise SystemExit(f"{words[0]} failed after the kills:\n{(folder / 'log').read_text()[-2000:]}")
    return struck


def timed(folder: Path, *words: object) -> float:
    """Seconds of an undisturbed run."""
    start = time.perf_counter()
    if launch(folder, *words).wait():
        raise SystemExit(f"{words[0]} failed:\n{(folder / 'log').read_text()[-2000:]}")
    return time.perf_counter() - start


def short_lives(seconds: float, idle: float, kills: int) -> tuple[float, float]:
    """Lives after which most kills strike a command that goes on where it was: `idle` seconds pass before it works."""
    return 0.5 * idle, idle + 3 * max(0.0, seconds - idle) / kills


def once(rows: pd.DataFrame, count: int) -> dict[int, int] | None:
    """How many rows each configuration has that is timed once; None if a designed one is absent.

    The full network and a thin one run with every batch.
    """
    found = rows[~rows.configuration.isin([FULL, THIN])].groupby("configuration").size().to_dict()
    there = {FULL, THIN} <= set(rows.configuration) and sorted(found.keys() - {BARE}) == list(range(1, count))
    return found if there else None


def main(argv: list[str] | None = None) -> int:
    """Kill, resume, compare; prints one line per command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=5, help="per command (default: 5)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        model = Painter(width=16, blocks=2)
        torch.nn.init.normal_(model.leave.weight, std=0.02)
        save_file(model.state_dict(), folder / "weights.safetensors")
        (folder / "photos").mkdir()
        for title, photo in photos():
            Image.fromarray((photo * 255).astype(np.uint8)).save(folder / "photos" / f"{title}.png")
        named = (MODEL, "--model-args", '{"width": 16, "blocks": 2}', "--weights", folder / "weights.safetensors")
        named += ("--input", "1x3x96x96")
        quiet, killed = folder / "quiet", folder / "killed"

        profiling = ("profile-device", *named, "--configurations", 24)
        seconds, idle = (timed(folder, *profiling, "--profiles", quiet) for _ in range(2))
        lives = short_lives(seconds, idle, options.kills)
        struck = disturbed(folder, options.kills, rng, lives, *profiling, "--profiles", killed)
        found, expected = (once(Store(each).rows(), 24) for each in (killed, quiet))
        same = found is not None and found == expected
        print(f"profile-device: {struck} kills struck, every configuration once and no row lost: {same}", flush=True)
        ok = same

        searching = ("search", *named, "--profiles", quiet, "--latency-budget", "0.6x", "--images", folder / "photos")
        seconds, idle = (timed(folder, *searching, "-o", folder / "quiet.json") for _ in range(2))
        lives = short_lives(seconds, idle, options.kills)
        struck = disturbed(folder, options.kills, rng, lives, *searching, "-o", folder / "killed.json")
        plans = [
            json.loads((folder / f"{each}.json").read_text()) | {"solve_seconds": 0} for each in ("quiet", "killed")
        ]
        print(f"search: {struck} kills struck, the same plan: {plans[0] == plans[1]}", flush=True)
        ok &= plans[0] == plans[1]

        applying = (
            "apply-plan",
            folder / "quiet.json",
            "--weights",
            folder / "weights.safetensors",
            "--profiles",
            quiet,
        )
        applying += ("--images", folder / "photos", "--steps", 60)
        first = launch(folder, *applying, "-o", folder / "killed-out")
        record = folder / "killed-out" / "run" / "run.json"
        while first.poll() is None and not (record.exists() and '"delivery"' in record.read_text()):
            time.sleep(0.05)
        first.kill()
        first.wait()
        shutil.copytree(folder / "killed-out", folder / "quiet-out")
        seconds, idle = (timed(folder, *applying, "-o", folder / "quiet-out") for _ in range(2))
        lives = short_lives(seconds, idle, options.kills)
        struck = disturbed(folder, options.kills, rng, lives, *applying, "-o", folder / "killed-out")
        quiet_weights, killed_weights = (
            load_file(folder / f"{each}-out" / "model.safetensors") for each in ("quiet", "killed")
        )
        equal = quiet_weights.keys() == killed_weights.keys() and all(
            torch.equal(quiet_weights[key], killed_weights[key]) for key in quiet_weights
        )
        print(f"apply-plan: {struck + 1} kills struck, bitwise the same weights: {equal}", flush=True)
        ok &= equal
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(run(main))
