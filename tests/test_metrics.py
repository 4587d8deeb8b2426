"""Quality is measured as the field's libraries measure it, and says how sure it is."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from benchmarks.networks import declare_torchvision_operators
from compress import metrics, perceptual
from compress.metrics import PSNR_CAP, Examiner, interval, psnr, ssim
from network.errors import InputError
from search import Imitation
from tests.compression import Labelled, Photos
from tests.helpers import FP32, FP64, NETWORKS


@pytest.fixture(scope="module")
def library():
    """torchmetrics, which imports torchvision where that is there."""
    declare_torchvision_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchmetrics.functional.image")


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor]:
    """Smooth pictures and noisy ones, each noisier than the one before: (5, 3, 24, 31)."""
    generator = torch.Generator().manual_seed(0)
    clean = nn.functional.interpolate(torch.rand((5, 3, 6, 6), generator=generator), size=(24, 31), mode="bicubic")
    noise = torch.randn(clean.shape, generator=generator) * torch.linspace(0.02, 0.5, 5)[:, None, None, None]
    return clean + noise, clean


@pytest.mark.parametrize("peak", [1.0, 255.0])
def test_psnr_is_the_librarys(library, pictures, peak: float):
    noisy, clean = (peak * x for x in pictures)
    theirs = library.peak_signal_noise_ratio(noisy, clean, data_range=peak, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(psnr(noisy, clean, peak), theirs, rtol=FP32)
    assert psnr(clean, clean, peak).tolist() == [PSNR_CAP] * 5


@pytest.mark.parametrize("peak", [1.0, 255.0])
def test_ssim_is_the_librarys_where_its_window_lies_within_the_picture(library, pictures, peak: float):
    """The library also averages over windows that reach beyond the edges, which Wang et al. leave out."""
    noisy, clean = (peak * x for x in pictures)
    _, theirs = library.structural_similarity_index_measure(
        noisy, clean, data_range=peak, reduction="none", return_full_image=True
    )
    assert torch.allclose(ssim(noisy, clean, peak), theirs[..., 5:-5, 5:-5].flatten(1).mean(1), atol=FP32)


def test_ssim_is_that_of_another_library_too(pictures):
    noisy, clean = (x.double() for x in pictures)
    for ours, a, b in zip(ssim(noisy, clean, 1.0), noisy, clean, strict=True):
        _, theirs = structural_similarity(
            a.numpy(), b.numpy(), data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip
        assert float(ours) == pytest.approx(theirs[:, 5:-5, 5:-5].mean(), rel=FP64)


def test_an_interval_is_the_normal_theorys_where_that_holds():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert interval(values) == (low, high)


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(2)
    found = [interval(generator.exponential(1.0, 60)) for _ in range(100)]
    assert sum(low <= 1.0 <= high for low, high in found) >= 85


def test_one_item_has_no_interval_nor_have_values_that_are_no_numbers():
    assert interval(np.array([1.0])) is None
    assert interval(np.array([1.0, np.nan])) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_whose_outputs_are_no_numbers_is_worse_than_any(value: float):
    examiner, broken = Examiner(NETWORKS["unet"](), Imitation(Photos()), limit=8, batch_size=3), NETWORKS["unet"]()
    broken.leave.bias.data.fill_(value)
    broken.leave.weight.data.fill_(value)
    assert examiner.judge(broken, full=True).error == float("inf")


@pytest.mark.parametrize(("value", "shape"), [(0.5, "float"), (torch.tensor(0.5), r"\(\)"), (torch.ones(9), r"\(9,\)")])
def test_a_metric_that_has_no_value_per_item_is_named(value, shape: str):
    class Odd(Labelled):
        def metrics(self, output, target):
            return {"mine": value}

    with pytest.raises(InputError, match=f"'mine' is {shape}; return a value per item, a tensor .3,"):
        Examiner(NETWORKS["residual"](), Odd(), limit=6, batch_size=3).judge(NETWORKS["residual"]())


@pytest.mark.parametrize(("name", "task"), [("unet", None), ("residual", Labelled)])
def test_every_metric_of_a_full_judgement_lies_in_its_interval(name: str, task):
    examiner = Examiner(NETWORKS[name](), task() if task else Imitation(Photos()), limit=8, batch_size=3)
    quick, full = (examiner.judge(NETWORKS[name](seed=4), full=full) for full in (False, True))
    assert quick.quality == full.quality
    assert quick.interval == {}
    assert full.interval.keys() == full.quality.keys()
    for metric, (low, high) in full.interval.items():
        assert low <= full.quality[metric] <= high


def test_imitators_of_class_scores_are_compared_by_the_scores_that_are_delivered():
    """Not by softened ones, which teach."""
    examiner = Examiner(NETWORKS["residual"](), Imitation(Photos()), limit=8, batch_size=3)
    found = examiner.judge(NETWORKS["residual"](seed=4))
    assert found.error == pytest.approx(found.quality["kl"], rel=FP32)


def test_fidelity_does_not_depend_on_where_the_scale_of_pictures_begins():
    class Signed(nn.Module):
        def __init__(self, inside: nn.Module):
            super().__init__()
            self.inside = inside

        def forward(self, x: Tensor) -> Tensor:
            return 255 * self.inside(x) - 128

    plain, signed = (
        Examiner(model, Imitation(Photos()), limit=4, batch_size=2).judge(other)
        for model, other in (
            (NETWORKS["unet"](), NETWORKS["unet"](seed=4)),
            (Signed(NETWORKS["unet"]()), Signed(NETWORKS["unet"](seed=4))),
        )
    )
    assert set(plain.quality) >= {"psnr_db", "ssim"}
    assert plain.quality == pytest.approx(signed.quality, rel=FP32)


@pytest.mark.parametrize(("value", "what"), [(0.0, "the same everywhere"), (float("nan"), "not finite")])
def test_pictures_that_teach_nothing_are_told(value: float, what: str):
    blank = NETWORKS["generator"]()
    for parameter in blank.parameters():
        parameter.data.fill_(value)
    with pytest.raises(InputError, match=f"the original's pictures are {what}; look at its weights"):
        Examiner(blank, Imitation(Photos()), limit=4, batch_size=2)


def test_a_frechet_distance_is_its_definition():
    generator = np.random.default_rng(3)
    mix = generator.normal(size=(8, 8))
    a, b = generator.normal(size=(40, 8)), generator.normal(1.0, 2.0, (60, 8)) @ mix
    first, second = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(first @ second)
    defined = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root.real)
    assert perceptual.frechet(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(defined, rel=FP64)
    few = torch.from_numpy(generator.normal(size=(5, 300)))
    assert perceptual.frechet(few, few) == pytest.approx(0, abs=FP64)


def test_what_lacks_its_weights_is_said_in_a_line_and_downloads_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for measure in (perceptual.lpips, perceptual.inception):
        found, line = measure()
        assert found is None
        assert "put its weights" in line
        assert str(tmp_path / "checkpoints") in line
        assert "\n" not in line


@pytest.fixture
def weights(tmp_path: Path, monkeypatch):
    """A folder in which the weights seem to be."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    for name in (perceptual.ALEXNET, perceptual.INCEPTION):
        (tmp_path / "checkpoints" / name).touch()


@pytest.mark.usefixtures("weights")
def test_what_lacks_its_library_names_the_extra(monkeypatch):
    for module in ("torchmetrics.image.lpip", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, module, None)
    for measure in (perceptual.lpips, perceptual.inception):
        assert "narrowgauge[perceptual]" in measure()[1]


@pytest.mark.usefixtures("weights")
def test_lpips_is_the_librarys_with_the_weights_that_it_finds(library, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random = torchvision.models.alexnet(weights=None)
    monkeypatch.setattr(torchvision.models, "alexnet", lambda *arguments, **options: random)
    score, line = perceptual.lpips()
    assert line == ""
    a, b = torch.rand((2, 3, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    theirs = library.learned_perceptual_image_patch_similarity(a, b, "alex", reduction="mean", normalize=True)
    assert float(score(a, b).mean()) == pytest.approx(float(theirs), rel=FP32)
    assert score(a, a).tolist() == [0, 0, 0]


@pytest.mark.usefixtures("weights")
def test_fid_compares_what_the_extractor_sees_of_all_pictures(monkeypatch):
    class Extractor(nn.Module):
        def __init__(self, name: str, layers: list[str], path: str):
            super().__init__()
            assert Path(path).exists()

        def forward(self, x: Tensor) -> tuple[Tensor]:
            assert x.dtype == torch.uint8
            return (x.float().mean((2, 3)),)

    module = types.SimpleNamespace(FeatureExtractorInceptionV3=Extractor)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)
    monkeypatch.setattr(metrics.perceptual, "LPIPS_SIDE", 16)
    task, original = Imitation(Photos()), NETWORKS["unet"]()
    examiner = Examiner(original, task, limit=8, batch_size=3)
    assert examiner.judge(original, full=True).quality["fid"] == pytest.approx(0, abs=1e-3)
    assert examiner.judge(NETWORKS["unet"](seed=4), full=True).quality["fid"] > 1
    assert len(examiner.absent) == 1
