"""Chance that can be had again: the three generators that a user's code may draw from, seeded and given back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seed_all", "seeded"]


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed torch's CPU generator, numpy and random from `key`, and give them back as they were."""
    state, legacy, python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    seed_all(*key)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        np.random.set_state(legacy)
        random.setstate(python)


def seed_all(*key: int) -> None:
    """Seed the three of them from non-negative integers."""
    entropy = np.random.SeedSequence(key).generate_state(3).tolist()
    torch.default_generator.manual_seed(entropy[0])
    np.random.seed(entropy[1])
    random.seed(entropy[2])
