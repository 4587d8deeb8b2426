"""The staircase model answers every width from samples at a few."""

import numpy as np
import pytest

from latency.stairs import fit_staircase


def kernel_ms(c_in, c_out, block=16):
    """A synthetic kernel: work on padded blocks, and a slower path for widths off the block."""
    padded = np.ceil(c_in / block) * np.ceil(c_out / block) * block**2
    return 0.02 + 3e-5 * padded * np.where(c_out % block == 0, 1.0, 1.4)


def samples(count, seed=0, noise=0.0):
    rng = np.random.default_rng(seed)
    c_in, c_out = rng.integers(4, 257, count), rng.integers(4, 257, count)
    aligned = rng.random(count) < 0.5
    c_in, c_out = np.where(aligned, -(-c_in // 16) * 16, c_in), np.where(aligned, -(-c_out // 16) * 16, c_out)
    return c_in, c_out, kernel_ms(c_in, c_out) * np.exp(noise * rng.standard_normal(count))


def test_the_block_is_found_from_the_data():
    model = fit_staircase(*samples(60))
    assert model.blocks.aligned == (16, 16)


def test_unseen_widths_are_within_two_percent_without_noise():
    model = fit_staircase(*samples(60))
    c_in, c_out, ms = samples(300, seed=1)
    error = np.abs(model.milliseconds(c_in, c_out) / ms - 1)
    assert np.median(error) < 0.005
    assert np.quantile(error, 0.95) < 0.02


def test_work_per_channel_beside_work_per_block_is_told_apart():
    """Blocks are multiplied, and each channel that is there is loaded and stored."""

    def kernel(c_in, c_out):
        return kernel_ms(c_in, -(-c_out // 16) * 16) + 2e-3 * c_in + 4e-3 * c_out

    (c_in, c_out, _), (c_in_new, c_out_new, _) = samples(40), samples(300, seed=1)
    model = fit_staircase(c_in, c_out, kernel(c_in, c_out))
    assert model.blocks.aligned == (16, 16)
    error = np.abs(model.milliseconds(c_in_new, c_out_new) / kernel(c_in_new, c_out_new) - 1)
    assert np.quantile(error, 0.95) < 0.005


def test_two_kernels_of_one_layer_are_told_apart():
    """Inputs in fours take blocks of 16 and, on two cores, outputs in 32; others a plain product of matrices."""

    def kernel(c_in, c_out):
        fast = 2e-5 * (-(-c_in // 16) * 16) * (-(-c_out // 32) * 32)
        return 0.02 + np.where(c_in % 4 == 0, fast, 2e-5 * c_in * c_out)

    rng = np.random.default_rng(0)
    (c_in, c_out), (c_in_new, c_out_new) = rng.integers(4, 129, (2, 60)), rng.integers(4, 129, (2, 300))
    c_in = np.where(np.arange(60) < 30, -(-c_in // 4) * 4, c_in)
    model = fit_staircase(c_in, c_out, kernel(c_in, c_out))
    assert model.blocks.kernels == 2
    error = np.abs(model.milliseconds(c_in_new, c_out_new) / kernel(c_in_new, c_out_new) - 1)
    assert np.median(error) < 0.01, "where any one pair of blocks misses by 0.16"


def test_inputs_up_to_one_block_are_added_up_one_by_one():
    """As a convolution of three outputs in oneDNN: by the input up to 16, and by sixteens beyond."""

    def kernel(c_in):
        return 0.3 + 0.05 * np.where(c_in <= 16, c_in, -(-c_in // 16) * 16)

    c_in, every = np.array([1, 3, 6, 8, 12, 16, 24, 28, 32, 40, 48, 52, 64]), np.arange(1, 65)
    model = fit_staircase(c_in, np.full(13, 3), kernel(c_in))
    assert np.allclose(model.milliseconds(every, np.full(64, 3)), kernel(every), rtol=0.01)


def test_blocks_of_outputs_that_do_not_divide_take_longer():
    """Of 7, 11 and 13 blocks one at a time is computed, of others two to five."""

    def kernel(c_in, c_out):
        blocks = -(-c_out // 16)
        return 0.02 + 4e-4 * -(-c_in // 16) * blocks * np.where(np.isin(blocks, (1, 7, 11, 13)), 4, 3)

    (c_in, c_out, _), (c_in_new, c_out_new, _) = samples(60), samples(300, seed=1)
    model = fit_staircase(c_in, c_out, kernel(c_in, c_out))
    error = model.milliseconds(c_in_new, c_out_new) / kernel(c_in_new, c_out_new) - 1
    assert np.quantile(np.abs(error), 0.95) < 0.005


def test_a_step_is_not_smoothed_away():
    model = fit_staircase(*samples(60))
    below, at, above = model.milliseconds(np.array([64.0] * 3), np.array([127.0, 128.0, 129.0]))
    assert below > 1.2 * at
    assert above > 1.2 * at


def test_the_stated_uncertainty_covers_the_noise():
    model = fit_staircase(*samples(80, noise=0.05))
    c_in, c_out, ms = samples(400, seed=2, noise=0.05)
    z = np.log(ms / model.milliseconds(c_in, c_out)) / model.relative_error(c_in, c_out)
    assert np.mean(np.abs(z) < 2) > 0.88
    assert np.median(model.relative_error(c_in, c_out)) < 0.15


def test_layers_that_the_runtime_fused_away_are_free_at_every_width():
    model = fit_staircase(np.arange(1, 20), np.arange(1, 20), np.zeros(19))
    assert np.all(model.milliseconds(np.array([3, 300]), np.array([3, 300])) == 0)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_samples_give_a_finite_answer_that_is_never_negative(count):
    c_in, c_out, ms = samples(count)
    predicted = fit_staircase(c_in, c_out, ms).milliseconds(np.arange(1, 400), np.arange(1, 400))
    assert np.all(np.isfinite(predicted))
    assert np.all(predicted >= 0)


def test_repeated_width_pairs_count_once():
    c_in, c_out, ms = samples(30)
    once = fit_staircase(c_in, c_out, ms)
    thrice = fit_staircase(np.tile(c_in, 3), np.tile(c_out, 3), np.tile(ms, 3))
    assert once.samples == thrice.samples
    np.testing.assert_allclose(once.milliseconds(c_in, c_out), thrice.milliseconds(c_in, c_out))
