"""Milliseconds at any width from samples at a few: a staircase with non-negative steps, and a smooth correction.

A kernel works on blocks of channels, so time is a staircase in the padded widths I = ⌈c_in/q_i⌉·q_i, in some kernels
of no more than one block I = c_in, and O = ⌈c_out/q_o⌉·q_o; some of its work, such as loads and stores, goes with the
channels that there are. A width that is no multiple of the block may take a slower path altogether, and so may a number
of output blocks that does not divide (`_indivisible`):

    t(c_in, c_out) = β · (1, I, O, I·O, c_in, c_out, c_in·O, I·c_out, c_in·c_out,
                          [q_i ∤ c_in]·(I, I·O), [q_o ∤ c_out]·(O, I·O), [indivisible O]·(O, I·O)),   β ≥ 0

The blocks are found from the data: the pair (q_i, q_o) and the kind of I with the least squared relative error. What
the staircase leaves, log(measured / t), is corrected by a Gaussian process in (log c_in, log c_out, alignment), whose
variance is the uncertainty (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eqs. 2.23–2.24 and
2.30).

A runtime may have two kernels for one layer, one for inputs in fours and one for the others, each with blocks and
costs of its own. Where one pair leaves more than ONE_KERNEL, TWO_KERNELS are tried: the products above, over more
blocks, once for both kernels and once more for each of them. They are taken if samples that are left out say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import nnls
from scipy.spatial.distance import cdist

__all__ = ["Blocks", "Staircase", "fit_staircase"]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Block sizes in channels, of inputs and of outputs; and of what those must be multiples for the fast path.

    kernels: 1 where other widths only take longer, 2 where inputs of either kind have costs of their own. fill: whether
    inputs of less than one block are filled up to it.
    """

    ins: tuple[int, ...]
    outs: tuple[int, ...]
    aligned: tuple[int, int]
    kernels: int = 1
    fill: bool = True


SIZES = (1, 4, 8, 16, 32)
PAIRS = tuple(
    Blocks((q_in,), (q_out,), (q_in, q_out), fill=fill)
    for q_in, q_out, fill in product(SIZES, SIZES, (True, False))
    if fill or q_in > 1
)
TWO_KERNELS = tuple(
    Blocks((lanes,), (lanes, 2 * lanes), (4, 4), kernels=2, fill=fill)
    for lanes, fill in product((8, 16), (True, False))
)

ONE_KERNEL = 0.03
"""What a pair of blocks may leave, as a share (root mean square), before two kernels are tried."""

VECTOR = 8
"""Numbers of fp32 that a processor with AVX2 takes at once, the fewest here."""

FOLDS = 5

NEGLIGIBLE_MS = 2e-4
"""Below the resolution of every counter: a layer whose samples stay below is free (it was fused away)."""


@dataclass(frozen=True, slots=True)
class Staircase:
    """A fitted model of one layer specification. `samples` distinct width pairs were used."""

    blocks: Blocks
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
        base = _features(c_in, c_out, self.blocks) @ self.steps
        cross = self.amplitude * _kernel(_place(c_in, c_out, self.blocks), self.points, self.length)
        ms = base * np.exp(cross @ self.weights)
        error = np.full(len(ms), np.sqrt(self.noise))
        if spread:
            explained = np.einsum("ij,ij->i", cross, cho_solve((self.factor, True), cross.T).T)
            error = np.sqrt(np.maximum(self.amplitude - explained, 0.0) + self.noise)
        return ms.reshape(shape), error.reshape(shape)


def fit_staircase(c_in: np.ndarray, c_out: np.ndarray, ms: np.ndarray) -> Staircase:
    """Fit the model above to samples of shape (n,), n ≥ 1, in ms; equal width pairs are merged by their median."""
    c_in, c_out, ms = _merge(c_in, c_out, ms)
    if np.median(ms) < NEGLIGIBLE_MS or len(ms) < 3:
        empty = np.zeros(0)
        return Staircase(PAIRS[0], empty, float(np.median(ms)), empty, empty, empty, 0.0, 1.0, 0.0, len(ms))
    samples = (c_in, c_out, ms)
    blocks, left = PAIRS[0], np.inf
    for pair in PAIRS:
        found = _steps(pair, *samples)[1]
        if found < 0.98 * left:
            blocks, left = pair, found
    if left > ONE_KERNEL * np.sqrt(len(ms)) and len(ms) >= 2 * FOLDS:
        blocks = min((blocks, *TWO_KERNELS), key=lambda each: _left_out_error(each, *samples))
    return _fit(blocks, *samples)


def _left_out_error(blocks: Blocks, c_in: np.ndarray, c_out: np.ndarray, ms: np.ndarray) -> float:
    """Mean of |log(predicted / measured)| over samples that are left out in turn, weighted by √ms: long ones matter."""
    floor, fold = _floor(ms), np.random.default_rng(0).permutation(len(ms)) % FOLDS
    said = np.empty(len(ms))
    for k in range(FOLDS):
        held = fold == k
        said[held] = _fit(blocks, c_in[~held], c_out[~held], ms[~held]).milliseconds(c_in[held], c_out[held])
    return float(np.mean(np.abs(np.log(np.maximum(said, 0.01 * floor) / floor)) * np.sqrt(floor)))


def _fit(blocks: Blocks, c_in: np.ndarray, c_out: np.ndarray, ms: np.ndarray) -> Staircase:
    """The staircase of these blocks, and the process on what it leaves."""
    steps, floor = _steps(blocks, c_in, c_out, ms)[0], _floor(ms)
    base = np.maximum(_features(c_in, c_out, blocks) @ steps, 0.01 * floor)
    points = _place(c_in, c_out, blocks)
    amplitude, length, noise, factor, weights = _regress(points, np.log(np.maximum(ms, 0.01 * floor) / base))
    return Staircase(blocks, steps, None, points, weights, factor, amplitude, length, noise, len(ms))


def _steps(blocks: Blocks, c_in: np.ndarray, c_out: np.ndarray, ms: np.ndarray) -> tuple[np.ndarray, float]:
    """β, and the norm of the relative errors that it leaves."""
    features, floor = _features(c_in, c_out, blocks), _floor(ms)
    unit = features.max(axis=0)
    unit[unit == 0] = 1.0
    steps, left = nnls(features / unit / floor[:, None], ms / floor)
    return steps / unit, float(left)


def _floor(ms: np.ndarray) -> np.ndarray:
    """What errors are relative to: a fiftieth of the slowest sample at least."""
    return np.maximum(ms, 0.02 * ms.max())


def _merge(c_in: np.ndarray, c_out: np.ndarray, ms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pairs, inverse = np.unique(np.stack([c_in, c_out], axis=1), axis=0, return_inverse=True)
    inverse = inverse.ravel()
    merged = np.array([np.median(ms[inverse == k]) for k in range(len(pairs))])
    return pairs[:, 0].astype(float), pairs[:, 1].astype(float), merged


def _features(c_in: np.ndarray, c_out: np.ndarray, blocks: Blocks) -> np.ndarray:
    ins = [np.where((c_in <= q) & (not blocks.fill), c_in, _padded(c_in, q)) for q in blocks.ins]
    outs = [_padded(c_out, q) for q in blocks.outs]
    one = np.ones_like(c_in)
    columns = [a * b for a in (one, c_in, *ins) for b in (one, c_out, *outs)]
    odd_in, odd_out = _odd(c_in, c_out, blocks)
    if blocks.kernels == 2:
        columns += [either * column for either in (odd_in, 1 - odd_in) for column in columns]
    else:
        columns += [odd_in * ins[0], odd_in * ins[0] * outs[0]]
    for slow in (odd_out, _indivisible(c_out, blocks.outs[0])):
        columns += [slow * outs[0], slow * ins[0] * outs[0]]
    return np.stack(columns, axis=1)


def _padded(channels: np.ndarray, block: int) -> np.ndarray:
    return np.ceil(channels / block) * block


def _indivisible(c_out: np.ndarray, block: int) -> np.ndarray:
    """1 where the blocks of outputs cannot be shared out evenly between passes over the inputs, else 0.

    oneDNN computes as many blocks of outputs in one pass as divides their number, five at most. Of 7, 11 or 13 that is
    one at a time, and a third slower. Only of blocks as wide as a vector, of 8 numbers at least.
    """
    if block < VECTOR:
        return np.zeros_like(c_out)
    return (np.gcd(np.ceil(c_out / block).astype(int), 2 * 3 * 5) == 1).astype(float)


def _odd(c_in: np.ndarray, c_out: np.ndarray, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """1 where inputs, and outputs, are no multiple of what the fast path asks for, else 0."""
    align_in, align_out = blocks.aligned
    return (c_in % align_in != 0).astype(float), (c_out % align_out != 0).astype(float)


def _place(c_in: np.ndarray, c_out: np.ndarray, blocks: Blocks) -> np.ndarray:
    logs = (np.log2(np.maximum(channels, 1)) for channels in (c_in, c_out))
    return np.stack([*logs, *_odd(c_in, c_out, blocks)], axis=1)


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
