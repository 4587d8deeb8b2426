"""Photos become inputs: of the right size, on the right scale, from a folder, a zip or one file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from network.album import Album
from network.errors import InputError
from network.images import open_images
from network.windows import extrapolate, random_window
from tests.helpers import need_data

SIZE = (3, 8, 12)


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A random picture."""
    channels = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, channels, dtype=np.uint8), mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of several sizes, one of them gray, one in a folder below, beside a file that is none."""
    (tmp_path / "below").mkdir()
    for i, (width, height) in enumerate([(12, 8), (30, 20), (9, 40), (64, 10)]):
        picture(width, height, i).save(tmp_path / f"photo{i}.png")
    picture(16, 16, 9).convert("L").save(tmp_path / "below" / "gray.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_is_searched_through_and_every_picture_fits(folder: Path) -> None:
    images = open_images(folder, SIZE)
    assert len(images) == 5
    assert images.names == tuple(sorted(images.names))
    for i in range(len(images)):
        assert images[i].shape == SIZE
        assert images[i].dtype == torch.float32
        assert 0 <= float(images[i].min()) <= float(images[i].max()) <= 1


def test_a_picture_of_the_right_size_is_not_resampled(folder: Path) -> None:
    images = open_images(folder, SIZE)
    pixels = np.array(Image.open(folder / "photo0.png"))
    assert torch.equal(images[images.names.index("photo0.png")], torch.from_numpy(pixels).permute(2, 0, 1) / 255)


def test_the_centre_is_kept(tmp_path: Path) -> None:
    picture(30, 8).save(tmp_path / "wide.png")
    pixels = np.array(Image.open(tmp_path / "wide.png"))[:, 9:21]
    assert torch.equal(open_images(tmp_path, SIZE)[0], torch.from_numpy(pixels).permute(2, 0, 1) / 255)


def test_zip_folder_and_file_give_the_same_tensors(folder: Path) -> None:
    archive = folder / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.rglob("*"):
            if path.suffix.lower() == ".png":
                file.write(path, path.relative_to(folder))
    from_folder, from_zip = open_images(folder, SIZE), open_images(archive, SIZE)
    assert from_zip.names == from_folder.names
    assert all(torch.equal(from_zip[i], from_folder[i]) for i in range(len(from_zip)))
    alone = open_images(folder / "photo1.png", SIZE)
    assert alone.names == ("photo1.png",)
    assert torch.equal(alone[0], from_folder[from_folder.names.index("photo1.png")])


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("kind", ["unit", "signed", "byte", "imagenet"])
def test_every_scale_goes_back_to_the_same_bytes(folder: Path, kind: str, bgr: bool) -> None:
    plain, scaled = open_images(folder, SIZE), open_images(folder, SIZE, kind, bgr)
    for i in range(len(plain)):
        wanted = (plain[i] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(scaled.to_rgb(scaled[i]), wanted)


def test_scales_have_their_ranges_and_bgr_swaps_channels(folder: Path) -> None:
    unit = open_images(folder, SIZE)[0]
    assert torch.allclose(open_images(folder, SIZE, "signed")[0], unit * 2 - 1)
    assert torch.allclose(open_images(folder, SIZE, "byte")[0], unit * 255)
    assert torch.equal(open_images(folder, SIZE, bgr=True)[0], unit.flip(0))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = (unit - mean.reshape(3, 1, 1)) / deviation.reshape(3, 1, 1)
    assert torch.allclose(open_images(folder, SIZE, "imagenet")[0], wanted, atol=1e-6)


def test_a_users_own_preprocessing_runs(folder: Path, tmp_path: Path) -> None:
    code = "import numpy as np, torch\ndef half(p):\n    return torch.from_numpy(np.array(p)).permute(2, 0, 1) / 510\n"
    (tmp_path / "own.py").write_text(code)
    own, unit = open_images(folder, SIZE, f"{tmp_path / 'own.py'}:half"), open_images(folder, SIZE)
    assert torch.allclose(own[0], unit[0] / 2)
    assert own.to_rgb(own[0]).max() == 255


def test_gray_networks_get_one_channel(folder: Path) -> None:
    images = open_images(folder, (1, 8, 8))
    assert images[0].shape == (1, 8, 8)
    assert images.to_rgb(images[0]).shape == (8, 8, 3)


def test_crops_follow_the_generator_and_stay_inside(folder: Path) -> None:
    images = open_images(folder, SIZE)
    first = [images.crop(1, torch.Generator().manual_seed(s)) for s in range(8)]
    second = [images.crop(1, torch.Generator().manual_seed(s)) for s in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(not torch.equal(first[0], other) for other in first[1:])
    low, high = images[1].amin((1, 2)), images[1].amax((1, 2))
    for crop in first:
        assert crop.shape == SIZE
        assert (crop.amin((1, 2)) >= low).all()
        assert (crop.amax((1, 2)) <= high).all()


def test_the_split_is_disjoint_complete_and_seeded(folder: Path) -> None:
    images = open_images(folder, SIZE)
    train, heldout = images.split(0.4, seed=3)
    assert (len(train), len(heldout)) == (3, 2)
    assert set(train.names) | set(heldout.names) == set(images.names)
    assert images.split(0.4, seed=3)[1].names == heldout.names
    assert torch.equal(heldout[0], images[images.names.index(heldout.names[0])])


def test_a_single_picture_becomes_crops_of_which_others_judge(folder: Path) -> None:
    train, heldout = open_images(folder / "photo1.png", SIZE).split(seed=4)
    assert len(train) > len(heldout) > 1
    assert torch.equal(train[3], train[3])
    seen = {tuple(train[i].flatten().tolist()) for i in range(16)}
    assert len(seen) == 16
    assert not seen & {tuple(heldout[i].flatten().tolist()) for i in range(16)}
    again = open_images(folder / "photo1.png", SIZE).split(seed=4)[1]
    assert torch.equal(again[5], heldout[5])


def test_crops_of_a_single_picture_show_nothing_from_outside_it(tmp_path: Path) -> None:
    Image.new("RGB", (40, 23), (90, 160, 220)).save(tmp_path / "sky.png")
    train, heldout = open_images(tmp_path / "sky.png", SIZE).split()
    for i in range(40):
        assert (train[i].amax((1, 2)) - train[i].amin((1, 2))).max() <= 2 / 255
    assert all(torch.equal(heldout[i], heldout[0]) for i in range(20))
    assert len({tuple(train[i][:, 0, 0].tolist()) for i in range(40)}) > 20


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_a_crop_can_be_had_of_a_picture_of_any_shape(width: int, height: int, wide: int, high: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = extrapolate(Image.new("L", (width, height), 9), (high, wide), generator, strong=True)
    assert found.size == (wide, high)
    assert random_window(generator).cut(Image.new("L", (width, height)), (high, wide)).size == (wide, high)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_a_single_picture_of_any_mode_can_be_cropped(tmp_path: Path, mode: str) -> None:
    picture(20, 20).convert(mode).save(tmp_path / "one.png")
    size = ({"L": 1, "RGBA": 4}[mode], 8, 12)
    train, _ = open_images(tmp_path / "one.png", size).split()
    assert all(train[i].shape == size for i in range(8))


def test_an_upright_crop_of_a_ramp_is_a_ramp_wherever_it_lies(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None, :], 48, 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    _, heldout = open_images(tmp_path / "ramp.png", (1, 8, 12)).split()
    steps = torch.stack([heldout[i][0, 0].diff() for i in range(20)])
    assert (steps.sign() == steps.sign()[:, :1]).all()
    assert {1.0, -1.0} == set(steps.sign()[:, 0].tolist())


def test_an_unreadable_picture_is_named(folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    images = open_images(folder, SIZE)
    with pytest.raises(InputError, match=r"broken\.jpg"):
        images[images.names.index("broken.jpg")]


def test_a_photo_that_was_taken_sideways_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    photo = picture(8, 12)
    photo.save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(np.array(photo), -1).copy()
    assert torch.equal(open_images(tmp_path, SIZE)[0], torch.from_numpy(upright).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_orientation_says(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(8, 12).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as photo:
        expected = np.asarray(ImageOps.exif_transpose(photo))
    np.testing.assert_array_equal(np.asarray(Album(tmp_path).open("a.png")), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_photo_whose_exif_is_damaged_is_a_photo(tmp_path: Path) -> None:
    picture(8, 12).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    picture(8, 12).save(tmp_path / "b.jpg", exif=b"Exif\0\0 nothing that is known")
    assert [Album(tmp_path).open(name).size for name in ("a.jpg", "b.jpg")] == [picture(8, 12).size] * 2


@pytest.mark.parametrize(("name", "kind"), [("a.png", "<u2"), ("a.tif", "<u2"), ("b.tif", ">u2"), ("a.ppm", "<u2")])
def test_gray_of_sixteen_bits_keeps_its_shades(tmp_path: Path, name: str, kind: str) -> None:
    shades = (np.arange(96, dtype=np.uint16) * 257).reshape(8, 12)
    Image.fromarray(shades.astype(kind)).save(tmp_path / name)
    found = open_images(tmp_path, SIZE)[0]
    assert torch.equal(found, (torch.arange(96.0) / 255).reshape(1, 8, 12).expand(3, -1, -1))


def test_numbers_without_a_scale_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 12), np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(InputError, match=r"depth\.tiff .*mode F has no known white"):
        open_images(tmp_path, SIZE)[0]


def test_a_palette_stays_what_it_is(tmp_path: Path) -> None:
    mask = Image.new("P", (4, 4), 3)
    mask.putpalette([0, 0, 0, 9, 9, 9, 20, 0, 0, 255, 0, 0])
    mask.save(tmp_path / "mask.png")
    found = Album(tmp_path).open("mask.png")
    assert (found.mode, found.getpixel((0, 0))) == ("P", 3)


def test_hidden_files_are_no_pictures(folder: Path) -> None:
    names = open_images(folder, SIZE).names
    (folder / "below" / "._gray.PNG").write_bytes(b"what macOS keeps beside a file")
    assert open_images(folder, SIZE).names == names
    with zipfile.ZipFile(folder / "all.zip", "w") as file:
        file.write(folder / "photo0.png", "photo0.png")
        file.write(folder / "below" / "._gray.PNG", "__MACOSX/._photo0.png")
    assert open_images(folder / "all.zip", SIZE).names == ("photo0.png",)


def test_entries_of_a_zip_are_found_however_they_are_written(folder: Path) -> None:
    with zipfile.ZipFile(folder / "all.zip", "w") as file:
        file.write(folder / "photo0.png", "./photo0.png")
        file.write(folder / "photo1.png", "below//photo1.png")
    images = open_images(folder / "all.zip", SIZE)
    assert images.names == ("below/photo1.png", "photo0.png")
    assert torch.equal(images[1], open_images(folder / "photo0.png", SIZE)[0])


@pytest.mark.parametrize("error", [RuntimeError("password required"), NotImplementedError("type 99"), zlib.error("-3")])
def test_an_entry_that_cannot_be_unpacked_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    with zipfile.ZipFile(folder / "all.zip", "w") as file:
        file.write(folder / "photo0.png", "photo0.png")

    def failing(*_: object) -> bytes:
        raise error

    monkeypatch.setattr(zipfile.ZipFile, "read", failing)
    with pytest.raises(InputError, match=r"photo0\.png"):
        open_images(folder / "all.zip", SIZE)[0]


def test_a_picture_that_is_too_large_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"photo1\.png .*exceeds limit"):
        open_images(folder / "photo1.png", SIZE)[0]


def test_what_holds_no_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.zip").write_bytes(b"nothing")
    for path, message in [("empty", "holds no images"), ("absent", "there is no folder"), ("bad.zip", "is not a zip")]:
        with pytest.raises(InputError, match=message):
            open_images(tmp_path / path, SIZE)


def test_unknown_scales_and_sizes_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="none of unit, signed, byte, imagenet"):
        open_images(folder, SIZE, "float")
    with pytest.raises(InputError, match="there is no file absent"):
        open_images(folder, SIZE, "absent.py:f")
    with pytest.raises(InputError, match="not 7x8x8"):
        open_images(folder, (7, 8, 8))


def test_real_photos_of_a_zip_open() -> None:
    images = open_images(need_data("images/dicm_lime_short256.zip"), (3, 64, 64))
    assert len(images) == 73
    assert images[0].shape == (3, 64, 64)
