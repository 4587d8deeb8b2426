"""The camera-like loop: pictures at a pace, one at a time, none twice, and what it says of itself."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.camera import SHOWN, WARM_UP, Camera, Timing, main, strip, watch
from network.images import open_images
from tests.test_plan import small_plan


@pytest.fixture
def photos(tmp_path: Path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(np.full((20, 30, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    return open_images(folder, (3, 16, 16), "unit")


def test_a_picture_is_fetched_once_and_the_newest_takes_the_place_of_what_waited(photos):
    camera = Camera(photos, fps=1000)
    camera.start()
    waited = threading.Event()
    try:
        values = []
        for _ in range(4):
            waited.wait(0.05)  # dozens of pictures come and go
            values.append((camera.taken, int(camera.fetch()[0, 0, 0])))
    finally:
        camera.stop()
    assert camera.taken > 10
    assert camera.missed in (camera.taken - len(values), camera.taken - len(values) - 1)
    assert [taken for taken, _ in values] == sorted({taken for taken, _ in values})


def test_the_loop_counts_its_frames_and_those_it_missed(photos):
    calls = []

    def run(x: np.ndarray) -> np.ndarray:
        calls.append(x.shape)
        return 1 - x

    timing, shown = watch(run, photos, fps=500, seconds=0.4)
    assert set(calls) == {(1, 3, 16, 16)}
    assert len(timing.network_ms) == len(timing.frame_ms) == len(calls) - WARM_UP
    assert all(frame >= net > 0 for net, frame in zip(timing.network_ms, timing.frame_ms, strict=True))
    assert timing.missed >= 0
    assert 1 <= len(shown) <= SHOWN
    for picture, made in shown:
        assert np.array_equal(made, 255 - picture)


def test_times_are_said_in_words():
    lines = Timing([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], seconds=0.1, missed=7).lines()
    assert lines[0].startswith("30.0 frames a second")
    assert "7 pictures" in lines[0]
    assert "median 2.00 ms" in lines[1]
    assert "worst 4.00 ms" in lines[2]


def test_a_strip_shows_what_went_in_above_what_came_out(tmp_path: Path):
    strip([(np.zeros((4, 6, 1), np.uint8), np.full((4, 6, 3), 9, np.uint8))] * 2, tmp_path / "strip.png")
    found = np.asarray(Image.open(tmp_path / "strip.png"))
    assert found.shape == (8, 12, 3)
    assert found[:4].max() == 0
    assert found[4:].min() == 9


def test_a_folder_without_a_network_is_told_in_a_line(tmp_path: Path, photos, capsys):
    assert main([str(tmp_path / "nothing"), "--images", "x"]) == 2
    assert "cannot read the plan" in capsys.readouterr().err
    small_plan().save(tmp_path / "plan.json")
    assert main([str(tmp_path), "--images", str(tmp_path / "photos"), "--fps", "0"]) == 2
    assert "positive" in capsys.readouterr().err
