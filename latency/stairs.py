"""Milliseconds at any width from samples at a few: a staircase with non-negative steps, and a smooth correction.

A kernel works on blocks of channels, so time is a staircase in the padded widths I = ⌈c_in/q_i⌉·q_i and
O = ⌈c_out/q_o⌉·q_o; some of its work, such as loads and stores, goes with the channels that there are; and a width that
is no multiple of the block may take a slower path altogether:

    t(c_in, c_out) = β · (1, I, O, I·O, c_in, c_out, c_in·O, I·c_out, c_in·c_out,
                          [q_i ∤ c_in]·(I, I·O), [q_o ∤ c_out]·(O, I·O)),   β ≥ 0

The blocks are found from the data: the pair (q_i, q_o) with the least squared relative error. What the staircase
leaves, log(measured / t), is corrected by a Gaussian process in (log c_in, log c_out, alignment), whose variance is
the uncertainty (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eqs. 2.23–2.24 and 2.30).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import nnls
from scipy.spatial.distance import cdist

__all__ = ["BLOCKS", "Staircase", "fit_staircase"]

BLOCKS = (1, 4, 8, 16, 32)
"""Candidate block sizes, in channels."""

NEGLIGIBLE_MS = 2e-4
"""Below the resolution of every counter: a layer whose samples stay below is free (it was fused away)."""


@dataclass(frozen=True, slots=True)
class Staircase:
    """A fitted model of one layer specification. `samples` distinct width pairs were used."""

    block_in: int
    block_out: int
    steps: np.ndarray
    constant_ms: float | None
    points: np.ndarray
    weights: np.ndarray
    factor: np.ndarray
    amplitude: float
    length: float
    noise: float
    samples: int

    def milliseconds(self, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        """Time at these widths, elementwise, in ms."""
        return self._predict(c_in, c_out)[0]

    def relative_error(self, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        """One standard deviation of the prediction, as a share of it."""
        return self._predict(c_in, c_out, spread=True)[1]

    def _predict(self, c_in: np.ndarray, c_out: np.ndarray, spread: bool = False) -> tuple[np.ndarray, np.ndarray]:
        c_in, c_out = np.broadcast_arrays(np.asarray(c_in, float), np.asarray(c_out, float))
        shape, c_in, c_out = c_in.shape, c_in.ravel(), c_out.ravel()
        if self.constant_ms is not None:
            return np.full(shape, self.constant_ms), np.zeros(shape)
        base = _features(c_in, c_out, self.block_in, self.block_out) @ self.steps
        cross = self.amplitude * _kernel(_place(c_in, c_out, self.block_in, self.block_out), self.points, self.length)
        ms = base * np.exp(cross @ self.weights)
        error = np.full(len(ms), np.sqrt(self.noise))
        if spread:
            explained = np.einsum("ij,ij->i", cross, cho_solve((self.factor, True), cross.T).T)
            error = np.sqrt(np.maximum(self.amplitude - explained, 0.0) + self.noise)
        return ms.reshape(shape), error.reshape(shape)


def fit_staircase(c_in: np.ndarray, c_out: np.ndarray, ms: np.ndarray) -> Staircase:
    """Fit the model above to samples of shape (n,), n ≥ 1, in ms; equal width pairs are merged by their median."""
    c_in, c_out, ms = _merge(c_in, c_out, ms)
    empty = np.zeros(0)
    if np.median(ms) < NEGLIGIBLE_MS or len(ms) < 3:
        value = float(np.median(ms))
        return Staircase(1, 1, empty, value, empty, empty, empty, 0.0, 1.0, 0.0, len(ms))
    floor = np.maximum(ms, 0.02 * ms.max())
    best: tuple[float, int, int, np.ndarray] | None = None
    for block_in, block_out in product(BLOCKS, BLOCKS):
        features = _features(c_in, c_out, block_in, block_out)
        unit = features.max(axis=0)
        unit[unit == 0] = 1.0
        steps, norm = nnls(features / unit / floor[:, None], ms / floor)
        if best is None or norm < 0.98 * best[0]:
            best = (norm, block_in, block_out, steps / unit)
    assert best is not None
    _, block_in, block_out, steps = best
    base = np.maximum(_features(c_in, c_out, block_in, block_out) @ steps, 0.01 * floor)
    residual = np.log(np.maximum(ms, 0.01 * floor) / base)
    points = _place(c_in, c_out, block_in, block_out)
    amplitude, length, noise, factor, weights = _regress(points, residual)
    return Staircase(block_in, block_out, steps, None, points, weights, factor, amplitude, length, noise, len(ms))


def _merge(c_in: np.ndarray, c_out: np.ndarray, ms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pairs, inverse = np.unique(np.stack([c_in, c_out], axis=1), axis=0, return_inverse=True)
    inverse = inverse.ravel()
    merged = np.array([np.median(ms[inverse == k]) for k in range(len(pairs))])
    return pairs[:, 0].astype(float), pairs[:, 1].astype(float), merged


def _features(c_in: np.ndarray, c_out: np.ndarray, block_in: int, block_out: int) -> np.ndarray:
    padded_in, padded_out = np.ceil(c_in / block_in) * block_in, np.ceil(c_out / block_out) * block_out
    odd_in, odd_out = c_in % block_in != 0, c_out % block_out != 0
    both = padded_in * padded_out
    columns = [np.ones_like(c_in), padded_in, padded_out, both]
    columns += [c_in, c_out, c_in * padded_out, padded_in * c_out, c_in * c_out]
    columns += [odd_in * padded_in, odd_in * both, odd_out * padded_out, odd_out * both]
    return np.stack(columns, axis=1)


def _place(c_in: np.ndarray, c_out: np.ndarray, block_in: int, block_out: int) -> np.ndarray:
    odd = [(c_in % block_in != 0).astype(float), (c_out % block_out != 0).astype(float)]
    return np.stack([np.log2(np.maximum(c_in, 1)), np.log2(np.maximum(c_out, 1)), *odd], axis=1)


def _kernel(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    return np.exp(-0.5 * cdist(a, b, "sqeuclidean") / length**2)


def _regress(points: np.ndarray, residual: np.ndarray) -> tuple[float, float, float, np.ndarray, np.ndarray]:
    """Length and noise of largest marginal likelihood on a grid; the amplitude in closed form."""
    n = len(points)
    best: tuple[float, float, float, float, np.ndarray, np.ndarray] | None = None
    for length, ratio in product((0.3, 0.7, 1.5, 3.0), (0.03, 0.1, 0.3, 1.0, 3.0)):
        factor, _ = cho_factor(_kernel(points, points, length) + ratio * np.eye(n), lower=True)
        solved = cho_solve((factor, True), residual)
        amplitude = max(float(residual @ solved) / n, 1e-8)
        likelihood = -0.5 * n * np.log(amplitude) - np.log(np.diag(factor)).sum()
        if best is None or likelihood > best[0]:
            best = (likelihood, amplitude, length, ratio, factor, solved)
    assert best is not None
    _, amplitude, length, ratio, factor, solved = best
    return amplitude, length, amplitude * ratio, factor * np.sqrt(amplitude), solved / amplitude
