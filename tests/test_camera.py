"""The camera-like loop: pictures at a pace, one at a time, none twice, and what it says of itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import camera as module
from examples.camera import SHOWN, WARM_UP, Camera, Timing, main, watch
from examples.pictures import sheet
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
    camera, values = Camera(photos, fps=1000), []  # it is not started: the pictures come as they are taken here
    for count in (1, 3, 3):
        for _ in range(count):
            camera.take()
        values.append(int(camera.fetch()[0, 0, 0]))
    assert values == [0, 120, 40]  # of 0, 40, 80, 120 and 160, over and over
    assert (camera.taken, camera.missed) == (7, 4)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(camera.fetch)
        camera.take()
        assert int(waiting.result(30)[0, 0, 0]) == 80


def test_the_loop_counts_its_frames_and_those_it_missed(photos, monkeypatch: pytest.MonkeyPatch):
    calls, cameras = [], []
    monkeypatch.setattr(module, "Camera", lambda *options: cameras.append(Camera(*options)) or cameras[-1])

    def run(x: np.ndarray) -> np.ndarray:
        """So slow that the camera takes two pictures meanwhile."""
        calls.append(x.shape)
        (camera,) = cameras
        later = camera.taken + 2
        with camera._fresh:
            assert camera._fresh.wait_for(lambda: camera.taken >= later, 30)
        return 1 - x

    timing, shown = watch(run, photos, fps=500, seconds=0.4)
    assert set(calls) == {(1, 3, 16, 16)}
    assert len(timing.network_ms) == len(timing.frame_ms) == len(calls) - WARM_UP
    assert all(frame >= net > 0 for net, frame in zip(timing.network_ms, timing.frame_ms, strict=True))
    assert len(timing.frame_ms) <= timing.missed <= cameras[0].missed - WARM_UP
    assert 1 <= len(shown) <= SHOWN
    for picture, made in shown:
        assert np.array_equal(made, 255 - picture)


def test_times_are_said_in_words():
    lines = Timing([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], seconds=0.1, missed=7).lines()
    assert lines[0].startswith("30.0 frames a second")
    assert "7 pictures" in lines[0]
    assert "median 2.00 ms" in lines[1]
    assert "worst 4.00 ms" in lines[2]


@pytest.mark.parametrize("channels", [(), (3,), (4,)], ids=["grey", "colour", "with alpha"])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_sheet_shows_what_went_in_above_what_came_out_at_one_size(tmp_path: Path, channels, scale: int):
    entered = [np.zeros((4, 6, *channels), np.uint8)] * 2
    came = [np.full((4 * scale, 6 * scale, 3), 9, np.uint8)] * 2
    sheet([entered, came], tmp_path / "sheet.png")
    found = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert found.shape == (8 * scale, 12 * scale, 3)
    assert found[: 4 * scale].max() == 0
    assert found[4 * scale :].min() == 9


def test_the_frames_of_a_super_resolution_network_are_saved(tmp_path: Path, photos, monkeypatch, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    small_plan().save(folder / "plan.json")
    (folder / "network.json").write_text('{"model": {"input": [[1, 3, 16, 16]]}}')
    monkeypatch.setattr(module, "served", lambda *_: lambda x: x.repeat(2, axis=2).repeat(2, axis=3))
    words = ["--images", str(tmp_path / "photos"), "--fps", "500", "--seconds", "0.1"]
    assert main([str(folder), *words, "--save", str(tmp_path / "sheet.png")]) == 0
    assert "frames a second" in capsys.readouterr().out
    assert Image.open(tmp_path / "sheet.png").height == 2 * 32


def test_a_folder_without_a_network_is_told_in_a_line(tmp_path: Path, photos, capsys):
    assert main([str(tmp_path / "nothing"), "--images", "x"]) == 2
    assert "cannot read the plan" in capsys.readouterr().err
    small_plan().save(tmp_path / "plan.json")
    assert main([str(tmp_path), "--images", str(tmp_path / "photos"), "--fps", "0"]) == 2
    assert "positive" in capsys.readouterr().err
