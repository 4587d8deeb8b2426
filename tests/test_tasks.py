"""The tasks that come with the project: their data, what a crop shows, what they measure, and the command line."""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import compress
import compress.command
from benchmarks.generators import DnCNN, Imdn
from compress.batches import Batches, held_out
from compress.imitation import label_free
from compress.tasks import (
    Classification,
    Denoising,
    LowLight,
    PairedTranslation,
    SuperResolution,
    UnpairedTranslation,
)
from network.errors import InputError
from network.reference import load_weights
from search.plan import Feed
from search.task import Task, task_of
from tests.compression import Clock, case
from tests.helpers import need_data

SIZE = (3, 16, 16)
DATA = {"train": "train", "test": "heldout"}


def noise(seed: int, width: int = 40, height: int = 28) -> np.ndarray:
    """Random colours, (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Twelve pictures of several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        Image.fromarray(noise(i, 40 + i, 36 - i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def flowers(tmp_path_factory) -> Path:
    """Three classes of one colour each."""
    folder = tmp_path_factory.mktemp("flowers")
    for name, colour in {"rose": (250, 0, 0), "aster": (0, 0, 250), "tulip": (0, 250, 0)}.items():
        (folder / name).mkdir()
        for i in range(8):
            Image.new("RGB", (20, 24), colour).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Masks of four classes, and photos in which class k is gray 60 · k: aligned exactly where the values agree."""
    folder = tmp_path_factory.mktemp("faces")
    for i in range(10):
        mask = np.kron(np.random.default_rng(i).integers(0, 4, (3, 4)), np.ones((8, 8))).astype(np.uint8)
        Image.fromarray(mask).save(folder / f"{i}_mask.png")
        Image.fromarray(np.repeat((60 * mask)[..., None], 3, 2)).save(folder / f"{i}.png")
    return folder


def items(dataset):
    return [dataset[i] for i in range(len(dataset))]


def test_the_folders_are_the_classes(flowers: Path):
    task = Classification(str(flowers), SIZE)
    assert isinstance(task, Task)
    for image, label in items(task.train) + items(task.heldout):
        assert label == {2: 0, 0: 1, 1: 2}[int(image.mean((1, 2)).argmax())]
    assert len(task.train) + len(task.heldout) == 24


def test_classes_may_be_in_the_networks_order(flowers: Path, tmp_path: Path):
    (tmp_path / "classes.txt").write_text("tulip\nlily\nrose\naster\n")
    for classes in (["tulip", "lily", "rose", "aster"], str(tmp_path / "classes.txt")):
        task = Classification(str(flowers), SIZE, classes=classes)
        assert {label for _, label in items(task.train)} == {0, 2, 3}


def test_numbers_are_class_indices_and_a_pattern_may_find_them(tmp_path: Path):
    for name in ("2_fish.png", "10_bird.png", "10_robin.png", "2_eel.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    task = Classification(str(tmp_path), SIZE, pattern=r"^(\d+)_")
    assert sorted(label for _, label in items(task.train) + items(task.heldout)) == [2, 2, 10, 10]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": ["rose", "tulip"]}, "'aster'"),
        ({"pattern": "(no such)"}, "says no class"),
        ({"classes": "absent.txt"}, "cannot read the classes"),
    ],
)
def test_a_class_that_nobody_knows_is_named(flowers: Path, arguments, words: str):
    with pytest.raises(InputError, match=words):
        Classification(str(flowers), SIZE, **arguments)


def test_accuracy_counts_each_item(flowers: Path):
    task = Classification(str(flowers), SIZE, classes=["rose", "aster", "tulip", *map(str, range(27))])
    scores = torch.eye(30)[[3, 4, 5]] + torch.linspace(0, 0.5, 30)
    found = task.metrics(scores, torch.tensor([3, 29, 0]))
    assert found["accuracy"].tolist() == [1, 0, 0]
    assert found["accuracy_top5"].tolist() == [1, 1, 0]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> Path:
    """Folders named 1 to 3, as people count."""
    folder = tmp_path_factory.mktemp("numbered")
    for name in ("1", "2", "3"):
        (folder / name).mkdir()
        for i in range(2):
            Image.new("RGB", (20, 24)).save(folder / name / f"{i}.png")
    return folder


def test_classes_that_are_not_the_networks_are_refused(flowers: Path, numbered: Path):
    three, counted, target = Classification(str(flowers), SIZE), Classification(str(numbered), SIZE), torch.arange(1, 4)
    named = Classification(str(flowers), SIZE, classes=["rose", "aster", "tulip", "lily"])
    for judge in ("loss", "metrics"):
        with pytest.raises(InputError, match="of 3 classes, and 1000 outputs; give classes"):
            getattr(three, judge)(torch.zeros(3, 1000), torch.arange(3))
        with pytest.raises(InputError, match="of class 3, and the network's are 0…2; give classes"):
            getattr(counted, judge)(torch.zeros(3, 3), target)
        with pytest.raises(InputError, match="two classes or more; bring your own --task"):
            getattr(counted, judge)(torch.zeros(3, 1), target)
        for task, outputs in ((three, 3), (counted, 4), (counted, 1000), (named, 4), (named, 9)):
            getattr(task, judge)(torch.zeros(3, outputs), torch.arange(3))


def test_a_folder_named_test_is_what_judges(tmp_path: Path):
    for part, count in (("train", 5), ("test", 3)):
        (tmp_path / part / "a").mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (16, 16)).save(tmp_path / part / "a" / f"{i}.png")
    task = Classification(str(tmp_path), SIZE)
    assert (len(task.train), len(task.heldout)) == (5, 3)


def test_masks_become_one_hot_and_a_crop_shows_the_same_of_mask_and_photo(faces: Path):
    task = PairedTranslation((4, 24, 32), folder=str(faces), suffix="_mask")
    inputs, target = Batches(task.train, 64, seed=1).batch(0)
    assert inputs[0].shape == (64, 4, 24, 32)
    assert (inputs[0].sum(1) == 1).all()
    gray = (inputs[0] * torch.arange(4).reshape(1, 4, 1, 1)).sum(1) * 60 / 255 * 2 - 1
    apart = (gray - target[:, 0]).abs()
    assert float((apart > 0.3).double().mean()) < 0.1  # the photo is interpolated at the edges of blocks
    assert float(apart.median()) < 1e-6
    assert len({tuple(x.flatten().tolist()) for x in target}) > 40
    plain, photo = task.heldout[0]
    assert torch.equal((plain * torch.arange(4).reshape(4, 1, 1)).sum(0) * 60 / 255 * 2 - 1, photo[0])


def test_pairs_may_lie_in_two_folders(photos: Path):
    task = PairedTranslation(SIZE, inputs=str(photos), targets=str(photos), output="unit")
    for source, target in items(task.train)[:3]:
        assert torch.equal(source, target)
    found = task.metrics(*(torch.stack([target]) for _ in range(2)))
    assert float(found["true_psnr_db"]) == 100
    assert float(found["true_ssim"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "one folder"),
        ({"folder": "F"}, "suffix"),
        ({"folder": "F", "suffix": "_absent"}, "no input's name"),
        ({"inputs": "F"}, "one folder"),
        ({"folder": "F", "suffix": "_mask", "output": "x.py:f"}, "no file x.py"),
    ],
)
def test_pairs_that_cannot_be_told_are_refused(faces: Path, arguments, words: str):
    given = {key: str(faces) if value == "F" else value for key, value in arguments.items()}
    with pytest.raises(InputError, match=words):
        PairedTranslation((4, 24, 32), **given)


def test_a_mask_of_more_classes_than_the_network_has_inputs_is_named(faces: Path):
    task = PairedTranslation((2, 24, 32), folder=str(faces), suffix="_mask")
    with pytest.raises(InputError, match=r"_mask\.png has the class"):
        items(task.train)


def test_a_pair_that_shows_different_parts_is_named(tmp_path: Path):
    sizes = {"fits": ((400, 300), (133, 100)), "wide": ((400, 300), (400, 250)), "tall": ((30, 40), (400, 300))}
    for side in ("inputs", "targets"):
        (tmp_path / side).mkdir()
    for name, pair in sizes.items():
        for side, size in zip(("inputs", "targets"), pair, strict=True):
            Image.new("RGB", size).save(tmp_path / side / f"{name}.png")
    task = PairedTranslation(SIZE, inputs=str(tmp_path / "inputs"), targets=str(tmp_path / "targets"))
    pairs, seen = task.train, {}
    pairs._names = [(f"{name}.png", f"{name}.png") for name in sizes]
    for index, name in enumerate(sizes):
        try:
            pairs[index]
        except InputError as error:
            seen[name] = str(error)
    assert seen.keys() == {"wide", "tall"}
    assert "wide.png is 400x300 and wide.png 400x250: not of one shape" in seen["wide"]


def test_an_unpaired_task_needs_no_labels_and_shows_real_pictures_of_the_other_kind(photos: Path, flowers: Path):
    task = UnpairedTranslation(SIZE, inputs=str(photos), others=str(flowers))
    assert label_free(task)
    _, target = Batches(task.train, 16).batch(0)
    real = task.real(target)
    assert real.shape == (16, *SIZE)
    assert {tuple(x.mean((1, 2)).sign().tolist()) for x in real} == {(1, -1, -1), (-1, 1, -1), (-1, -1, 1)}


def test_a_super_resolution_crop_is_the_picture_and_pillows_smaller_one(photos: Path):
    task = SuperResolution(str(photos), (3, 8, 8), scale=3)
    for index in range(len(task.train)):
        for seed in range(4):
            small, large = task.train.crop(index, torch.Generator().manual_seed(seed))
            assert (small.shape, large.shape) == ((3, 8, 8), (3, 24, 24))
    whole = SuperResolution(str(photos), (3, 8, 8), scale=2, whole=True)
    small, large = whole.heldout[0]
    height, width = large.shape[1:]
    picture = Image.open(photos / whole.heldout.names[0]).crop((0, 0, width, height))
    expected = np.asarray(picture.resize((width // 2, height // 2), Image.Resampling.BICUBIC))
    assert torch.equal(small, torch.from_numpy(expected.copy()).permute(2, 0, 1) / 255)


def test_patches_are_native_pixels_in_every_orientation(photos: Path):
    task = SuperResolution(str(photos), (3, 6, 6), scale=2)
    whole = torch.from_numpy(np.asarray(Image.open(photos / task.train.names[0])).copy()).permute(2, 0, 1) / 255
    places = {p.numpy().tobytes() for p in whole.unfold(1, 12, 1).unfold(2, 12, 1).reshape(3, -1, 12, 12).movedim(1, 0)}
    seen = set()
    for seed in range(60):
        _, patch = task.train.crop(0, torch.Generator().manual_seed(seed))
        turned = [(f, k) for f in (0, 1) for k in range(4) if _undone(patch, f, k).numpy().tobytes() in places]
        assert len(turned) == 1
        seen.add(turned[0])
    assert len(seen) == 8


def _undone(patch: torch.Tensor, mirrored: int, quarters: int) -> torch.Tensor:
    patch = torch.rot90(patch, -quarters, (1, 2))
    return (patch.flip(2) if mirrored else patch).contiguous()


def test_held_out_noise_is_the_same_every_time_and_has_its_deviation(photos: Path):
    task = Denoising(str(photos), SIZE, "byte", sigma=15)
    assert torch.equal(task.heldout[0][0], task.heldout[0][0])
    spread = torch.stack([n - c for n, c in items(task.train)])
    assert float(spread.std()) == pytest.approx(15, rel=0.1)
    assert not torch.equal(task.train.crop(0, torch.Generator().manual_seed(1))[0], task.train[0][0])


def test_a_network_that_predicts_noise_is_judged_by_what_is_left(photos: Path):
    task = Denoising(str(photos), SIZE, predicts="noise")
    (batch,) = held_out(task.heldout, 1, 1)
    noisy, (clean, _) = batch[0][0], batch[1]
    assert float(task.loss(noisy - clean, batch[1])) == 0
    assert float(task.metrics(noisy - clean, batch[1])["true_psnr_db"]) == 100
    other = Denoising(str(photos), SIZE)
    assert torch.equal(
        task.metrics(torch.zeros_like(noisy), batch[1])["true_psnr_db"], other.metrics(noisy, clean)["true_psnr_db"]
    )


def test_noise_is_not_added_for_a_function_of_pictures(photos: Path, tmp_path: Path):
    (tmp_path / "own.py").write_text("def prepare(picture):\n    raise AssertionError\n")
    with pytest.raises(InputError, match=r"own\.py:prepare takes no noise; name unit"):
        Denoising(str(photos), SIZE, f"{tmp_path}/own.py:prepare", output="unit")


def test_a_scale_that_is_not_the_networks_is_named(photos: Path):
    task = SuperResolution(str(photos), (3, 8, 8), scale=2)
    ((_, target),) = held_out(task.heldout, 1, 1)
    for judge in (task.loss, task.metrics):
        with pytest.raises(InputError, match="makes 3x32x32 where the task, of scale 2, has 3x16x16; give"):
            judge(torch.rand(1, 3, 32, 32), target)


def test_low_light_pairs_show_the_same_part(photos: Path, tmp_path: Path):
    for path in photos.glob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 4).save(tmp_path / path.name)
    task = LowLight(str(tmp_path), str(photos), SIZE, "byte")
    dark, lit = task.train.crop(1, torch.Generator().manual_seed(3))
    assert torch.equal(dark, (lit / 4).floor())


def test_a_partner_that_is_missing_is_named(photos: Path, tmp_path: Path):
    for name in ("1.png", "2.png", "lonely.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    with pytest.raises(InputError, match=r"lonely\.png"):
        LowLight(str(tmp_path), str(photos), SIZE)


def test_whole_pictures_of_several_sizes_are_judged_in_batches_of_one_size(photos: Path):
    task = SuperResolution(str(photos), (3, 8, 8), whole=True, heldout=0.5)
    batches = list(held_out(task.heldout, 6, 4))
    assert sum(len(inputs[0]) for inputs, _ in batches) == 6
    for inputs, target in batches:
        assert target.shape[2:] == tuple(2 * side for side in inputs[0].shape[2:])


def test_the_command_line_tells_a_task_its_arguments_and_the_networks_input(flowers: Path):
    arguments = json.dumps({"folder": str(flowers), "batch_size": 3})
    task = task_of(None, "compress.tasks:Classification", [(1, *SIZE)], "signed", bgr=True, task_args=arguments)
    assert task.batch_size == 3
    image, label = task.train[0]
    assert image.shape == SIZE
    assert {0: 0, 2: 1, 1: 2}[int(image.mean((1, 2)).argmax())] == label  # blue comes first


@pytest.mark.parametrize(
    ("task", "arguments", "words"),
    [
        (None, '{"folder": "x"}', "no --task"),
        ("compress.tasks:Classification", "{folder: x}", "not JSON"),
        ("compress.tasks:Classification", "[1]", "not a JSON object"),
        ("compress.tasks:Classification", '{"folder": "/absent"}', "no folder or file /absent"),
        ("compress.tasks:Classification", '{"directory": "x"}', "directory"),
        ("compress.tasks:Nothing", "{}", "Nothing"),
    ],
)
def test_task_arguments_that_make_no_sense_are_named(task, arguments: str, words: str):
    with pytest.raises(InputError, match=words) as error:
        task_of(None, task, [(1, *SIZE)], task_args=arguments)
    assert "\n" not in str(error.value)


def test_the_readmes_own_task_is_one(flowers: Path):
    (code,) = re.findall(r"```python\n(class Task:.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.S)
    inside = {"F": nn.functional, "MyData": lambda part: getattr(Classification(str(flowers), SIZE), DATA[part])}
    exec(code, inside)
    task = inside["Task"]()
    assert isinstance(task, Task)
    (inputs, target), *_ = held_out(task.heldout, 4, 4)
    scores = nn.functional.one_hot(target, 3) * 9.0
    assert float(task.loss(scores, target)) < 0.01
    assert task.metrics(scores, target)["accuracy"].tolist() == [1.0] * len(inputs[0])


def told(plan, *words: str) -> Task:
    """The task that apply-plan takes for a plan and these options."""
    arguments = compress.command.parser().parse_args(["plan.json", "-o", "out", *words])
    return compress.command._task(dataclasses.replace(plan, feed=compress.command._feed(plan.feed, arguments)))


def test_apply_plan_finds_the_task_of_the_search_again(flowers: Path, photos: Path):
    feed = Feed(None, "signed", False, "compress.tasks:Classification", json.dumps({"folder": str(flowers)}))
    plan = dataclasses.replace(case("residual").plan, feed=feed)
    assert len(told(plan).train) + len(told(plan).heldout) == 24
    assert told(plan, "--task-args", json.dumps({"folder": str(flowers), "batch_size": 5})).batch_size == 5
    assert label_free(told(plan, "--images", str(photos)))
    with pytest.raises(InputError, match="folder"):
        told(plan, "--task", "compress.tasks:Denoising")


def test_a_plan_for_a_gpu_is_applied_on_this_processs_own(monkeypatch):
    class Model:
        def to(self, device: str) -> str:
            return device

    model = Model()
    assert compress.command._placed(model, "torch") is model
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert compress.command._placed(model, "torch-cuda") is model
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "some GPU")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "4")
    assert compress.command._placed(model, "cuda-graphs") is model  # there are not as many
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert compress.command._placed(model, "cuda-graphs") == "cuda:3"
    assert compress.command._placed(model, "torch") is model
    monkeypatch.delenv("LOCAL_RANK")
    assert compress.command._placed(model, "torch-cuda") == "cuda:0"


@pytest.mark.parametrize("name", ["Denoising", "PairedTranslation", "UnpairedTranslation"])
def test_a_plan_is_applied_with_every_kind_of_pictures(name: str, photos: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("compress.pipeline.exported", lambda *arguments: {})
    folders = {"PairedTranslation": ("inputs", "targets"), "UnpairedTranslation": ("inputs", "others")}
    arguments = json.dumps(dict.fromkeys(folders.get(name, ("folder",)), str(photos)))
    task = task_of(None, f"compress.tasks:{name}", [(1, *SIZE)], task_args=arguments)
    given = case("unet", task=task)
    done = compress.apply_plan(*given.arguments(), tmp_path, measure=Clock(given.net), steps=2, lr=1e-2)
    assert done.met
    assert ("true_psnr_db" in done.report["quality"]["distilled"]) == (name != "UnpairedTranslation")
    assert "<img" in (tmp_path / "report.html").read_text()


def quality(network: nn.Module, task: Task) -> dict[str, float]:
    """The task's metrics over its held-out items."""
    found: dict[str, list[float]] = {}
    with torch.no_grad():
        for inputs, target in held_out(task.heldout, 1000, 1):
            for name, values in task.metrics(network(*inputs), target).items():
                found.setdefault(name, []).extend(values.tolist())
    return {name: float(np.mean(values)) for name, values in found.items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Set5 and the first seven of Set12 as held-out pictures, each beside one that teaches."""
    folder = tmp_path_factory.mktemp("published")
    with zipfile.ZipFile(need_data("images/set5_set12_set14_png.zip")) as archive:
        names = sorted(archive.namelist())
        for group, count in (("Set5", 5), ("Set12_gray", 7)):
            (folder / group / "test").mkdir(parents=True)
            Image.new("RGB", (64, 64)).save(folder / group / "teaches.png")
            for name in [name for name in names if name.startswith(f"{group}/") and name.endswith(".png")][:count]:
                (folder / group / "test" / Path(name).name).write_bytes(archive.read(name))
    return folder


def test_a_published_super_resolution_reaches_its_known_figure(published: Path):
    network = load_weights(Imdn().eval(), need_data("weights/IMDN_x2.pth"))
    found = quality(network, SuperResolution(str(published / "Set5"), (3, 32, 32), whole=True))
    assert found["y_psnr_db"] == pytest.approx(37.99, abs=0.01)
    assert found["y_ssim"] == pytest.approx(0.9603, abs=2e-3)  # the paper's own table 5, of Matlab's bicubic


def test_a_published_denoiser_reaches_its_known_figure(published: Path):
    network = load_weights(DnCNN().eval(), need_data("weights/DnCNN_gray25.pth"))
    found = quality(network, Denoising(str(published / "Set12_gray"), (1, 64, 64), whole=True))
    assert found["true_psnr_db"] == pytest.approx(30.33, abs=0.05)  # another draw of the noise
