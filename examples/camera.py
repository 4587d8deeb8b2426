"""A camera in front of a compressed network: pictures arrive at a camera's pace, and every frame's time is kept.

    python -m examples.camera out --images photos/                          # as the plan says, 30 frames a second
    python -m examples.camera out --images photos/ --fps 60 --seconds 20 --precision bf16 --save strip.png

A thread plays the camera: it takes a photo for each tick of the clock and replaces a picture that nobody has fetched
yet, as a driver's buffer of one frame does. The loop fetches, runs OUT/model.xml in OpenVINO, and turns the output
back into pixels. Nothing of Narrowgauge is needed to serve a network but its file; here its preprocessing is.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.checkpoint import read_json
from examples.pictures import sheet
from network.errors import InputError, NarrowgaugeError
from network.images import Images, open_images
from search import Plan, load_plan

__all__ = ["Camera", "Timing", "main", "watch"]

WARM_UP = 8
"""Frames at the start that are run but not counted: caches and clocks warm up."""

FILES = ("model.xml", "model.onnx")
SHOWN = 4
SCENES = 64
"""Photos that the camera goes through, over and over; ready before it starts, since a sensor does not decode."""


class Camera(threading.Thread):
    """Puts a picture of the photos in the place of the last one, `fps` times a second, until it is stopped."""

    def __init__(self, photos: Images, fps: float):
        super().__init__(daemon=True)
        self._scenes = [np.array(photos.fitted(name)) for name in photos.names[:SCENES]]
        self._period_s = 1 / fps
        self._fresh, self._over = threading.Condition(), threading.Event()
        self._frame: np.ndarray | None = None
        self.taken = self.missed = 0

    def run(self) -> None:
        due = time.perf_counter()
        while not self._over.is_set():
            self.take()
            due = max(due + self._period_s, time.perf_counter() - self._period_s)
            self._over.wait(max(0.0, due - time.perf_counter()))

    def take(self) -> None:
        """Put the next picture in the place of the last."""
        with self._fresh:
            self.missed += self._frame is not None
            self._frame, self.taken = self._scenes[self.taken % len(self._scenes)], self.taken + 1
            self._fresh.notify()

    def fetch(self) -> np.ndarray:
        """(H, W) or (H, W, C) uint8: the newest picture that was not fetched yet, once there is one."""
        with self._fresh:
            self._fresh.wait_for(lambda: self._frame is not None)
            picture, self._frame = self._frame, None
        assert picture is not None
        return picture

    def stop(self) -> None:
        """Take no more pictures."""
        self._over.set()
        self.join()


@dataclass(slots=True)
class Timing:
    """Milliseconds of each counted frame: of the network alone, and of all that the loop did for it."""

    network_ms: list[float] = field(default_factory=list)
    frame_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    missed: int = 0

    def lines(self) -> list[str]:
        """What a person wants to know."""
        shown = len(self.frame_ms) / self.seconds
        return [
            f"{shown:.1f} frames a second over {self.seconds:.1f} s; {self.missed} pictures were never fetched",
            *(f"{name:<8} {_spread(ms)}" for name, ms in (("network", self.network_ms), ("frame", self.frame_ms))),
        ]


def _spread(ms: Sequence[float]) -> str:
    median, high, worst = np.percentile(ms, [50, 95, 100])
    return f"median {median:.2f} ms, 95 of 100 within {high:.2f} ms, worst {worst:.2f} ms"


def watch(run: Any, photos: Images, fps: float, seconds: float) -> tuple[Timing, list[tuple[np.ndarray, np.ndarray]]]:
    """Frames for so many seconds; `run` takes and gives (1, C, H, W) float32. And some pairs to look at."""
    camera, timing, shown = Camera(photos, fps), Timing(), []
    camera.start()
    try:
        for _ in range(WARM_UP):
            run(_tensor(photos, camera.fetch()))
        before, start = camera.missed, time.perf_counter()
        while (now := time.perf_counter()) - start < seconds:
            picture = camera.fetch()
            fetched = time.perf_counter()
            tensor = _tensor(photos, picture)
            asked = time.perf_counter()
            output = run(tensor)
            timing.network_ms.append(1e3 * (time.perf_counter() - asked))
            made = photos.to_rgb(torch.from_numpy(output[0]))
            timing.frame_ms.append(1e3 * (time.perf_counter() - fetched))
            if len(shown) < SHOWN and (now - start) >= len(shown) * seconds / SHOWN:
                shown.append((picture, made))
        timing.seconds = time.perf_counter() - start
        timing.missed = camera.missed - before
    finally:
        camera.stop()
    return timing, shown


def _tensor(photos: Images, picture: np.ndarray) -> np.ndarray:
    return photos.tensor(picture.reshape(*picture.shape[:2], -1))[None].numpy()


def served(folder: Path, precision: str, threads: int) -> Any:
    """OUT/model.xml, else OUT/model.onnx, as a function of one array. Raises InputError."""
    try:
        import openvino
    except ImportError:
        raise InputError("runtime openvino is not installed; pip install 'narrowgauge[openvino]'") from None
    path = next((folder / name for name in FILES if (folder / name).exists()), None)
    if path is None:
        raise InputError(f"{folder} holds none of {', '.join(FILES)}; apply-plan writes the first for OpenVINO's plans")
    options = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision]}
    options |= {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()

    def run(x: np.ndarray) -> np.ndarray:
        request.infer([x], share_inputs=True)
        return np.asarray(request.get_output_tensor(0).data)

    return run


def main(argv: list[str] | None = None) -> int:
    """Run the loop and print its times; 2 for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.camera", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what apply-plan delivered")
    parser.add_argument("--images", type=Path, required=True, help="a folder or zip of photos")
    parser.add_argument("--fps", type=float, default=30.0, help="pictures the camera takes a second (default: 30)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: the plan's")
    parser.add_argument("--threads", type=int, help="default: the plan's")
    parser.add_argument("--preprocess", metavar="KIND", help="default: the plan's")
    parser.add_argument("--bgr", action="store_true", help="blue, green, red (default: the plan's)")
    parser.add_argument("--save", type=Path, help="a picture of some frames: what went in above what came out")
    options = parser.parse_args(argv)
    try:
        timing, shown = _watched(load_plan(options.folder / "plan.json"), options)
    except NarrowgaugeError as error:
        print(f"examples.camera: {error}", file=sys.stderr)
        return 2
    print("\n".join(timing.lines()))
    if options.save:
        sheet(zip(*shown, strict=True), options.save)
    return 0


def _watched(plan: Plan, options: argparse.Namespace) -> tuple[Timing, list[tuple[np.ndarray, np.ndarray]]]:
    if not options.fps > 0 or not options.seconds > 0:
        raise InputError(f"{options.fps:g} frames a second for {options.seconds:g} s is no run; give positive numbers")
    size = read_json(options.folder / "network.json")["model"]["input"][0][1:]
    preprocess, bgr = options.preprocess or plan.feed.preprocess, options.bgr or plan.feed.bgr
    photos = open_images(options.images, tuple(size), preprocess, bgr)
    precision = options.precision or (plan.precision if plan.precision in ("fp32", "bf16") else "fp32")
    torch.set_num_threads(1)  # for pixels alone; the network has its own
    run = served(options.folder, precision, options.threads or plan.threads)
    return watch(run, photos, options.fps, options.seconds)


if __name__ == "__main__":
    raise SystemExit(main())
