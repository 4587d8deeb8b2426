"""Training: what a step does depends on the seed and the step alone, and a kill in the middle loses nothing."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from compress import checkpoint
from compress.batches import Batches
from compress.distill import Distillation, choose_teacher
from compress.imitation import distance, output_scale
from compress.metrics import Examiner
from compress.norms import recalibrate
from compress.recipe import Allowance, Recipe
from compress.teacher import Teacher
from compress.training import Trainer, thawed
from network.errors import InputError, StoreError
from network.modes import evaluating
from network.seeding import seeded
from search import Imitation
from tests.compression import Labelled, Photos
from tests.helpers import NETWORKS


class Killed(Exception):
    """Stands for SIGKILL."""


PLAIN = Recipe().teaching


def trainer(model: nn.Module, lesson: nn.Module, tmp_path=None, steps: int = 12, **options) -> Trainer:
    batches = Batches(Imitation(Photos()).train, 4, seed=3)
    path = None if tmp_path is None else tmp_path / "distilled-checkpoint.safetensors"
    return Trainer(model, lesson, batches, Allowance(steps=steps), lr=3e-2, name="test", checkpoint=path, **options)


def lesson(name: str = "unet"):
    task = Imitation(Photos())
    teacher = NETWORKS[name](seed=1)
    return Distillation(Teacher(teacher), task, PLAIN, Batches(task.train, 4).batch(0))


class Loss(nn.Module):
    """A lesson that is just a function of the output."""

    def __init__(self, of_output):
        super().__init__()
        self.of_output = of_output

    def forward(self, model, batch):
        return self.of_output(model(*batch[0]))


@pytest.mark.parametrize("killed_at", [1, 5, 11])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_killed_in_the_middle_resumes_to_the_same_weights(tmp_path, monkeypatch, killed_at, ema):
    monkeypatch.setattr("compress.training.CHECKPOINT_STEPS", 3)
    whole, parts = NETWORKS["unet"](), NETWORKS["unet"]()
    expected = trainer(whole, lesson(), ema=ema).run()

    def kill(progress: float) -> None:
        if round(progress * 12) > killed_at:
            raise Killed

    with pytest.raises(Killed):
        trainer(parts, lesson(), tmp_path, ema=ema, after_step=kill).run()
    resumed = trainer(fresh := NETWORKS["unet"](seed=9), lesson(), tmp_path, ema=ema)
    if killed_at < 3:
        fresh.load_state_dict(NETWORKS["unet"]().state_dict())
        resumed = trainer(fresh, lesson(), tmp_path, ema=ema)
    curve = resumed.run()
    assert curve.steps == expected.steps == 12
    assert [p[2] for p in curve.points] == [p[2] for p in expected.points]
    for (name, ours), theirs in zip(fresh.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_training_brings_a_student_nearer_to_its_teacher():
    student = NETWORKS["generator"]()
    curve = trainer(student, lesson("generator"), steps=60).run()
    losses = [point[2] for point in curve.points]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    assert not student.training


def test_a_loss_that_is_not_finite_sends_the_run_back_with_a_smaller_step():
    seen = []

    def fragile(output):
        seen.append(running.optimizer.param_groups[0]["lr"])
        loss = output.square().mean()
        return loss * float("nan") if len(seen) == 6 else loss

    running = trainer(NETWORKS["unet"](), Loss(fragile), steps=8)
    curve = running.run()
    assert curve.retreats == 1
    assert curve.steps == 8
    assert running.lr_scale == 0.5


def poisoning(model: nn.Module, step: int):
    """Makes one optimiser step of twelve, once, spoil the weights, as one that overflows does."""
    left = [step]

    def after_step(progress: float) -> None:
        if left and round(progress * 12) == left[0]:
            left.clear()
            next(model.parameters()).data.fill_(float("nan"))

    return after_step


def test_a_state_that_no_step_has_proved_is_not_what_a_run_goes_back_to(monkeypatch):
    monkeypatch.setattr("compress.training.CHECKPOINT_STEPS", 1)
    model = NETWORKS["unet"]()
    curve = trainer(model, lesson(), after_step=poisoning(model, 5)).run()
    assert (curve.retreats, curve.steps) == (1, 12)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_state_that_no_step_has_proved_is_not_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.training.CHECKPOINT_STEPS", 1)
    model = NETWORKS["unet"]()

    def mortal(output):
        if output.isnan().any():
            raise Killed
        return output.square().mean()

    with pytest.raises(Killed):
        trainer(model, Loss(mortal), tmp_path, after_step=poisoning(model, 5)).run()
    tensors, _ = checkpoint.read_tensors(tmp_path / "distilled-checkpoint.safetensors")
    assert all(bool(value.isfinite().all()) for value in tensors.values())
    resumed = trainer(NETWORKS["unet"](), Loss(mortal), tmp_path)
    assert resumed.run().steps == 12
    assert resumed.curve.retreats == 0


def test_a_gradient_of_what_is_trained_beside_the_student_must_be_finite_too():
    class Beside(Loss):
        def __init__(self):
            super().__init__(lambda output: output.square().mean() + self.own - self.own.detach())
            self.own = nn.Parameter(torch.ones(()))
            self.calls = 0
            self.own.register_hook(self.spoilt)

        def spoilt(self, gradient):
            self.calls += 1
            return gradient * float("inf") if self.calls == 8 else gradient

    taught = Beside()
    curve = trainer(NETWORKS["unet"](), taught, steps=8).run()
    assert curve.retreats == 1
    assert bool(taught.own.isfinite())


def test_what_a_lesson_draws_depends_on_the_seed():
    def drawn(seed: int) -> list[float]:
        seen = []

        def noted(output):
            seen.append(float(torch.rand(())))
            return output.square().mean()

        batches = Batches(Imitation(Photos()).train, 4, seed=seed)
        Trainer(NETWORKS["unet"](), Loss(noted), batches, Allowance(steps=3), lr=1e-2, name="test").run()
        return seen

    assert drawn(1) == drawn(1)
    assert not set(drawn(0)) & set(drawn(1))


def test_a_task_that_is_a_module_is_not_trained_along():
    class Perceptual(nn.Module):
        def __init__(self):
            super().__init__()
            self.eye, self.inner = nn.Conv2d(3, 4, 1), Labelled()
            self.batch_size, self.train_set = 8, self.inner.train

        def loss(self, output, target):
            return self.inner.loss(output, target)

    task = Perceptual()
    assert not list(
        Distillation(Teacher(NETWORKS["residual"]()), task, PLAIN, Batches(task.train_set, 8).batch(0)).parameters()
    )


def test_a_network_that_was_frozen_for_inference_is_trained_and_one_in_part_stays_so():
    frozen, part = (NETWORKS["unet"]().requires_grad_(False) for _ in range(2))
    part.leave.requires_grad_()
    assert all(p.requires_grad for p in thawed(frozen).parameters())
    assert [name for name, p in thawed(part).named_parameters() if p.requires_grad] == ["leave.weight", "leave.bias"]


def test_a_loss_that_never_is_finite_ends_in_one_clear_line():
    with pytest.raises(InputError, match=r"--lr 0\.03"):
        trainer(NETWORKS["unet"](), Loss(lambda output: output.sum() * float("inf"))).run()


def test_a_batch_depends_on_the_seed_and_the_step_alone():
    data = Imitation(Photos()).train
    one, two, other = Batches(data, 4, seed=1), Batches(data, 4, seed=1), Batches(data, 4, seed=2)
    one.batch(0)
    assert torch.equal(one.batch(7)[0][0], two.batch(7)[0][0])
    assert not torch.equal(one.batch(7)[0][0], other.batch(7)[0][0])


class Numbers(torch.utils.data.Dataset):
    """So many items, each its number; its `crop` is a size."""

    crop = 5

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return torch.tensor([float(index)]), 0


@pytest.mark.parametrize("crop", [5, nn.Identity()])
def test_an_attribute_named_crop_that_is_no_method_is_left_alone(monkeypatch, crop):
    monkeypatch.setattr(Numbers, "crop", crop)
    batches = Batches(Numbers(12), 4)
    assert batches.batch(0)[0][0].shape == (4, 1)
    assert len(next(batches.plain(3))[0][0]) == 3


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (4, [4]), (9, [4, 4]), (10, [4, 4, 2])])
def test_statistics_are_taken_of_batches_that_have_some(count, sizes):
    batches = Batches(Numbers(count), 4)
    assert [len(inputs[0]) for inputs, _ in batches.plain(256)] == sizes
    if count > 1:
        recalibrate(nn.BatchNorm1d(1), batches.plain(256))


def test_an_epoch_visits_every_item_once():
    batches = Batches(Numbers(12), 4)
    for epoch in range(2):
        seen = torch.cat([batches.batch(3 * epoch + i)[0][0] for i in range(3)]).flatten()
        assert sorted(seen.tolist()) == list(range(12))


def test_seeding_gives_every_generator_back_as_it_was():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with seeded(1, 2):
        torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()


def test_the_distance_of_a_network_to_itself_is_nothing_and_to_others_positive():
    images, scores = torch.randn(2, 3, 8, 8), torch.randn(4, 5)
    for output in (images, scores, (images, scores), {"a": images}):
        scale = output_scale(output)
        nothing = distance(output, output, scale)
        assert abs(float(nothing)) < 1e-6
        moved = torch.utils._pytree.tree_map(lambda x: x + torch.randn_like(x), output)
        assert float(distance(moved, output, scale)) > 0.01


def test_the_distance_between_images_has_no_unit():
    mine, theirs = torch.randn(2, 2, 3, 8, 8)
    small = distance(mine, theirs, output_scale(theirs))
    large = distance(255 * mine, 255 * theirs, output_scale(255 * theirs))
    assert torch.allclose(small, large)


def test_labels_are_learned_where_the_task_has_them():
    task = Labelled()
    model = NETWORKS["residual"]()
    batch = Batches(task.train, 8).batch(0)
    loss = Distillation(Teacher(model), task, PLAIN, batch)
    with torch.no_grad(), evaluating(model):
        output = model(*batch[0])
        assert torch.allclose(loss(model, batch), task.loss(output, batch[1]), atol=1e-5)


def test_a_condensed_network_that_its_student_equals_hands_over_to_the_original():
    task = Imitation(Photos())
    original = NETWORKS["unet"]()
    examiner = Examiner(original, task, limit=4, batch_size=4)
    near, far = copy.deepcopy(original), NETWORKS["unet"](seed=2)
    with torch.no_grad():
        next(near.parameters()).mul_(1.01)
    far_error, near_error = examiner.judge(far).error, examiner.judge(near).error
    assert choose_teacher("condensed", original, near, far_error, examiner) == ("condensed", near)
    assert choose_teacher("condensed", original, near, near_error, examiner) == ("original", original)
    assert choose_teacher("condensed", original, None, far_error, examiner) == ("original", original)
    assert choose_teacher("original", original, near, far_error, examiner) == ("original", original)


def test_an_optimisers_state_survives_safetensors(tmp_path):
    model = NETWORKS["classifier"]()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    tensors: dict[str, torch.Tensor] = {}
    document = checkpoint.flatten(optimizer.state_dict(), "o", tensors)
    checkpoint.write_tensors(tmp_path / "c.safetensors", tensors, document)
    loaded, notes = checkpoint.read_tensors(tmp_path / "c.safetensors")
    found = checkpoint.unflatten(notes, loaded)
    assert found["state"].keys() == optimizer.state_dict()["state"].keys()
    for key, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(found["state"][key][name], value) for name, value in state.items())


def test_tensor_files_are_as_readable_as_any_other_file(tmp_path):
    checkpoint.write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_write_that_fails_leaves_the_old_file_and_no_debris(tmp_path):
    path = tmp_path / "a.json"
    checkpoint.write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="JSON"):
        checkpoint.write_json(path, {"a": object()})
    with pytest.raises(StoreError, match="free some space"), checkpoint.atomic(path):
        raise OSError(28, "No space left on device")
    assert checkpoint.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_numbers_that_json_lacks_are_null(tmp_path):
    values = {"a": [1.5, float("nan")], "b": {"c": (float("inf"), -float("inf"), 2)}}
    checkpoint.write_json(tmp_path / "a.json", values)
    assert checkpoint.read_json(tmp_path / "a.json") == {"a": [1.5, None], "b": {"c": [None, None, 2]}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"steps": -1},
        {"steps": 3, "minutes": 1.0},
        {"minutes": float("nan")},
        {"lr": 0.0},
        {"condense": "hard"},
        {"teacher": "me"},
        {"batch_size": 0},
    ],
)
def test_a_recipe_refuses_what_makes_no_sense(wrong):
    with pytest.raises(InputError):
        Recipe(**wrong)


def test_condensation_and_distillation_share_the_steps():
    for steps in (0, 1, 7, 400):
        first, second = Recipe(steps=steps).split()
        assert (first.steps or 0) + (second.steps or 0) == steps
    assert Recipe(steps=10, condense="none").split() == (Allowance(steps=0), Allowance(steps=10))
    assert Recipe(steps=10).split() == (Allowance(steps=0), Allowance(steps=10))
    assert Recipe(steps=2000).split() == (Allowance(steps=500), Allowance(steps=1500))
    assert Recipe(minutes=10).split(step_s=2.0) == (Allowance(seconds=0), Allowance(seconds=600))
    assert Recipe(minutes=10).split(step_s=0.5) == (Allowance(seconds=150), Allowance(seconds=450))
    first, second = Recipe(minutes=2.0).split()
    assert (first.seconds or 0) + (second.seconds or 0) == 120


def test_windows_are_parts_of_the_pictures_and_statistics_see_them_whole():
    data = Imitation(Photos()).train
    whole, parts = Batches(data, 4, seed=3), Batches(data, 4, seed=3, window=10)
    places = set()
    for step in range(8):
        (picture,), (part,) = whole.batch(step)[0], parts.batch(step)[0]
        high, wide = picture.shape[2] - 9, picture.shape[3] - 9
        found = [
            (y, x) for y in range(high) for x in range(wide) if torch.equal(picture[:, :, y : y + 10, x : x + 10], part)
        ]
        assert len(found) == 1
        places.update(found)
        assert torch.equal(parts.share(step)[0][0], part)
    assert len(places) > 4
    assert torch.equal(next(parts.plain(4))[0][0], next(whole.plain(4))[0][0])
    wide = Batches(data, 4, seed=3, window=999)
    assert torch.equal(wide.batch(0)[0][0], whole.batch(0)[0][0])
