"""What a student is taught: distances between outputs and features, the adversary's game, mixed pictures."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import network
from compress.adversary import ADVERSARIES, Adversary, PatchGan
from compress.batches import Batches
from compress.distill import Distillation
from compress.features import FEATURES, Adaptor, Alignment, Features, Gram, choose_taps, watched
from compress.mixing import check_mixable, mixed
from compress.outputs import OUTPUTS, _haar, outputs_apart
from compress.recipe import ADVERSARIES as ADVERSARY_NAMES
from compress.recipe import FEATURES as FEATURE_NAMES
from compress.recipe import OUTPUTS as OUTPUT_NAMES
from compress.recipe import Allowance, Recipe
from compress.teacher import Teacher
from compress.training import Trainer
from network.errors import InputError
from search import Imitation
from tests.compression import Photos
from tests.helpers import FP64, IMAGE, NETWORKS

ALL_FEATURES = ",".join(FEATURE_NAMES)


def pictures(seed: int = 0, shape: tuple[int, ...] = (2, 3, 24, 24)) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def halved(name: str = "generator") -> tuple[nn.Module, nn.Module, network.Network, dict[str, list[int]]]:
    """A network, a narrow one cut from it, and which channels stayed."""
    teacher = NETWORKS[name](seed=1)
    net = network.trace(teacher, network.example_inputs([IMAGE]))
    keep = {group.name: list(range(0, group.width, 2)) for group in net.groups}
    return teacher, network.narrow(teacher, net, keep), net, keep


def lesson(student: nn.Module, teacher: nn.Module, net: network.Network, keep, **choices: str) -> Distillation:
    task, recipe = Imitation(Photos()), Recipe(**choices)
    sample = Batches(task.train, 4).batch(0)
    torch.manual_seed(0)
    return Distillation(Teacher(teacher), task, recipe.teaching, sample).accompany(student, net, keep, sample)


def test_every_name_of_the_command_line_has_its_code():
    assert list(OUTPUT_NAMES) == list(OUTPUTS)
    assert list(FEATURE_NAMES) == list(FEATURES)
    assert list(ADVERSARY_NAMES) == list(ADVERSARIES)


# ---- outputs -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("shape", [(2, 3, 24, 24), (2, 3, 7, 9), (4, 5), (4, 1), (2, 6, 8)])
def test_equal_outputs_are_not_apart_and_others_are_pulled_together(kind, shape):
    teacher = pictures(0, shape)
    assert float(outputs_apart(teacher, teacher, [1.0], {kind: 1.0})) == pytest.approx(0, abs=1e-6)
    student = pictures(1, shape).requires_grad_()
    far = outputs_apart(student, teacher, [1.0], {kind: 1.0})
    far.backward()
    near = outputs_apart(student - 1e-3 * student.grad / student.grad.norm(), teacher, [1.0], {kind: 1.0})
    assert far.item() > 0
    assert near.item() < far.item()


def test_distances_add_up_by_their_weights():
    student, teacher = pictures(0), pictures(1)
    parts = {kind: float(outputs_apart(student, teacher, [2.0], {kind: 1.0})) for kind in ("l1", "mse")}
    both = outputs_apart((student, student), (teacher, teacher), [2.0, 2.0], {"l1": 3.0, "mse": 0.5})
    assert float(both) == pytest.approx(2 * (3 * parts["l1"] + 0.5 * parts["mse"]))


def test_the_haar_transform_keeps_energy_and_its_high_bands_see_no_shade():
    x = pictures(shape=(1, 2, 16, 16))
    low, high = _haar(x)
    assert float(low.square().sum() + high.square().sum()) == pytest.approx(float(x.square().sum()), rel=1e-5)
    assert float(outputs_apart(x + 5, x, [1.0], {"wavelet": 1.0})) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"outputs": "l3"}, "l3"),
        ({"outputs": "none"}, "none"),
        ({"outputs": "l1=heavy"}, "heavy"),
        ({"outputs": "l1=-1"}, "positive"),
        ({"features": "cat"}, "alignment"),
        ({"adversarial": "hinge,lsgan"}, "one of"),
        ({"discriminator": "a.py:B"}, "--adversarial"),
        ({"mix": "shake"}, "mixup"),
    ],
)
def test_a_lesson_that_makes_no_sense_is_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        Recipe(**wrong)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_distance_between_outputs_is_never_taken_in_bf16(kind):
    theirs = 0.7 + 0.01 * torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = theirs + 0.003 * torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    exact = outputs_apart(ours, theirs, [0.01], {kind: 1.0})
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(outputs_apart(ours, theirs, [0.01], {kind: 1.0}), exact)


def test_the_structure_of_pictures_does_not_depend_on_where_their_scale_begins():
    theirs = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = theirs + 0.1 * torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = outputs_apart(ours, theirs, [1e-3], {"ssim": 1.0})
    assert 0.01 < found < 0.5
    assert outputs_apart(2 * ours - 1, 2 * theirs - 1, [1e-3], {"ssim": 1.0}) == pytest.approx(float(found), rel=FP64)


def test_a_weight_may_be_given_with_the_name():
    teaching = Recipe(outputs="l1,ssim=0.25", features="mse=2").teaching
    assert teaching.outputs == {"l1": 1.0, "ssim": 0.25}
    assert teaching.features == {"mse": 2.0}
    assert not teaching.plain.features


# ---- features ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETWORKS)
def test_taps_are_of_different_groups_and_see_the_groups_width(name):
    teacher = NETWORKS[name](seed=1)
    net = network.trace(teacher, network.example_inputs([IMAGE]))
    taps = choose_taps(net, teacher)
    assert (
        len({tap.group for tap in taps})
        == len(taps)
        == min(4, len({tap.group for tap in choose_taps(net, teacher, 99)}))
    )
    with watched(teacher, taps) as seen, torch.no_grad():
        teacher(*network.example_inputs([IMAGE]))
    assert {tap.module: seen[tap.module].size(tap.dim) for tap in taps} == {
        tap.module: net.group(tap.group).width for tap in taps
    }


def test_a_network_that_reads_no_whole_group_has_no_taps():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    net = network.Network((), (), (), (), {}, ())
    with pytest.raises(InputError, match="--features"):
        choose_taps(net, model)


@pytest.mark.parametrize("kind", FEATURES)
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_features(kind):
    teacher, _, net, _ = halved()
    taps = choose_taps(net, teacher)
    with watched(teacher, taps) as seen, torch.no_grad():
        teacher(torch.rand(4, *IMAGE[1:]))
    kept = {group.name: range(group.width) for group in net.groups}
    nothing = Features({kind: 1.0}, taps, kept, seen, seen)(seen, seen)
    assert nothing.item() == pytest.approx(0, abs=1e-3)


def test_alignment_knows_no_rotation_and_no_scale():
    x = torch.randn(2, 50, 6)
    turned = 3 * x @ torch.linalg.qr(torch.randn(6, 6))[0]
    alignment = Alignment(torch.arange(6), x, x)
    assert float(alignment(x, turned)) == pytest.approx(0, abs=1e-5)
    assert float(alignment(x, torch.randn(2, 50, 6))) > 0.1


def test_an_adaptor_starts_where_least_squares_ends():
    student = torch.randn(2, 200, 4)
    teacher = student @ torch.randn(4, 9) + 3
    assert Adaptor(torch.arange(4), student, teacher)(student, teacher).item() < 1e-6


def test_an_adaptor_of_dead_features_starts_with_nothing():
    student, teacher = torch.zeros(2, 50, 4), torch.randn(2, 50, 9)
    adaptor = Adaptor(torch.arange(4), student, teacher)
    assert not adaptor.weight.any()
    assert bool(adaptor(student, teacher).isfinite())


def test_a_gram_matrix_is_compared_over_the_channels_that_both_have():
    teacher = torch.randn(2, 50, 6) * torch.arange(1, 7)
    kept = torch.tensor([1, 4])
    assert float(Gram(kept, teacher[..., kept], teacher)(teacher[..., kept], teacher)) == 0
    assert float(Gram(kept, teacher[..., :2], teacher)(teacher[..., :2], teacher)) > 0.01


def test_features_teach_the_student_and_leave_the_teacher_alone():
    teacher, student, net, keep = halved()
    before = copy.deepcopy(teacher.state_dict())
    taught = lesson(student, teacher, net, keep, features=ALL_FEATURES)
    batches = Batches(Imitation(Photos()).train, 4)
    curve = Trainer(student, taught, batches, Allowance(steps=30), lr=1e-2, name="test").run()
    assert curve.points[-1][2] < curve.points[0][2]
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any(module._forward_pre_hooks for model in (teacher, student) for module in model.modules())


class Killed(Exception):
    """Stands for SIGKILL."""


def test_adaptors_and_judges_resume_with_the_student(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.training.CHECKPOINT_STEPS", 3)
    teacher, student, net, keep = halved()
    batches = Batches(Imitation(Photos()).train, 4)

    def trainer(checkpoint=None, after_step=None):
        own = copy.deepcopy(student)
        taught = lesson(own, teacher, net, keep, features="mse", adversarial="hinge")
        return Trainer(
            own, taught, batches, Allowance(steps=8), lr=1e-2, name="test", checkpoint=checkpoint, after_step=after_step
        )

    whole = trainer()
    whole.run()

    def kill(progress: float) -> None:
        if progress > 0.6:
            raise Killed

    with pytest.raises(Killed):
        trainer(tmp_path / "checkpoint.safetensors", kill).run()
    resumed = trainer(tmp_path / "checkpoint.safetensors")
    resumed.run()
    for module, other in ((whole.model, resumed.model), (whole.lesson, resumed.lesson)):
        for (name, ours), theirs in zip(module.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), name


# ---- the adversary -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ADVERSARIES)
def test_each_player_gets_the_gradient_of_its_own_loss(kind):
    inputs, output, real = pictures(0), pictures(1).requires_grad_(), pictures(2)
    adversary = Adversary(kind, 0.5, inputs, output.detach(), PatchGan(6, 24))
    adversary(inputs, output, real).backward()
    judge = adversary.judge
    found = output.grad.clone(), [p.grad.clone() for p in judge.parameters()]

    def judged(picture: Tensor) -> Tensor:
        return judge(torch.cat([inputs, picture], 1))

    judges, students = ADVERSARIES[kind](judged(real), judged(output.detach()), judged(output))
    (own,) = torch.autograd.grad(0.5 * students, output, retain_graph=True)
    theirs = torch.autograd.grad(judges, list(judge.parameters()))
    assert torch.allclose(found[0], own, atol=1e-7)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found[1], theirs, strict=True))


def test_the_judge_learns_to_tell_pictures_apart():
    torch.manual_seed(0)
    real, fake = pictures(0, (8, 3, 32, 32)), pictures(1, (8, 3, 32, 32)).round()
    adversary = Adversary("hinge", 1.0, torch.zeros(8, 5), fake)
    optimizer = torch.optim.Adam(adversary.parameters(), 2e-3)
    for _ in range(30):
        optimizer.zero_grad()
        adversary(torch.zeros(8, 5), fake, real).backward()
        optimizer.step()
    assert adversary.judge(real).mean().item() > 0.5 > -0.5 > adversary.judge(fake).mean().item()


@pytest.mark.parametrize(("channels", "beside"), [(6, True), (3, False)])
def test_a_judge_of_ones_own_sees_what_it_takes(channels, beside):
    adversary = Adversary("lsgan", 1.0, pictures(0), pictures(1), nn.Conv2d(channels, 1, 4))
    assert adversary._beside is beside
    with pytest.raises(InputError, match="--discriminator"):
        Adversary("lsgan", 1.0, pictures(0), pictures(1), nn.Conv2d(7, 1, 4))


def test_a_task_says_what_is_real_and_whether_the_judge_sees_the_input():
    class Translated(Imitation):
        conditional = False
        seen: list[Tensor] = []  # noqa: RUF012

        def real(self, target: Tensor) -> Tensor:
            self.seen.append(target)
            return pictures(7, (4, *IMAGE[1:]))

    teacher, student, net, keep = halved()
    task = Translated(Photos())
    sample = Batches(task.train, 4).batch(0)
    taught = Distillation(Teacher(teacher), task, Recipe(adversarial="hinge").teaching, sample)
    taught.accompany(student, net, keep, sample)
    assert taught.adversary is not None
    assert not taught.adversary._beside
    taught(student, sample).backward()
    assert len(task.seen) == 1


def test_class_scores_have_no_adversary():
    with pytest.raises(InputError, match="pictures"):
        Adversary("hinge", 1.0, pictures(0), torch.randn(2, 10))


@pytest.mark.parametrize(
    ("kind", "inputs", "target", "said"),
    [
        ("cutmix", torch.rand(4, 7), torch.arange(4), r"pictures of one size, not inputs of \(4, 7\)"),
        ("mixup", torch.arange(8).reshape(4, 2), torch.arange(4), "real numbers, not of torch.int64"),
        ("mixup", torch.rand(4, 7), [torch.arange(4), torch.arange(4)], "one tensor, not a list"),
    ],
)
def test_a_batch_that_cannot_be_mixed_is_told_before_any_training(kind, inputs, target, said):
    with pytest.raises(InputError, match=f"--mix {kind} is for .*{said}"):
        check_mixable(kind, (inputs,), target)
    check_mixable("none", (inputs,), target)


# ---- mixtures ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("seed", range(4))
def test_a_mixture_says_how_much_of_each_picture_it_holds(kind, seed):
    torch.manual_seed(seed)
    x = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 16, 16)
    mixture = mixed(kind, (x,))
    expected = mixture.share * torch.arange(4.0) + (1 - mixture.share) * mixture.partner
    assert torch.allclose(mixture.inputs[0].mean((1, 2, 3)), expected, atol=1e-6)
    assert 0 <= mixture.share <= 1
    loss = mixture.expected(lambda target: target.float().mean(), torch.arange(4))
    assert float(loss) == pytest.approx(1.5)
    assert torch.equal(x[:, 0, 0, 0], torch.arange(4.0))
