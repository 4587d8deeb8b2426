"""Which widths a group may have: few and legal, and what the user's constraints leave of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import network
from network.errors import InputError
from network.types import Network
from search.plan import Settings
from search.widths import group_options, width_options
from tests import helpers
from tests.helpers import IMAGE


@pytest.fixture(scope="module")
def net() -> Network:
    model: nn.Module = helpers.residual(width=16)
    return network.trace(model, (torch.randn(IMAGE),))


@given(st.integers(1, 2048), st.integers(1, 48), st.none() | st.integers(1, 64), st.floats(0, 1))
def test_options_are_few_and_legal_and_end_in_the_full_width(width: int, step: int, most: int | None, least: float):
    width *= step
    options = width_options(width, step, most, least)
    assert options[-1] == width
    assert list(options) == sorted(set(options))
    assert len(options) <= (most or 32)
    assert all(option % step == 0 and option >= step and option >= least * width for option in options)


def test_wide_groups_are_cut_by_eights_unless_told_otherwise():
    assert all(option % 8 == 0 for option in width_options(256, 1))
    assert len(width_options(256, 1)) == 29
    assert width_options(16, 1, 100) == tuple(range(2, 17))


@given(st.integers(1, 512), st.integers(1, 64), st.floats(0, 1))
def test_a_multiple_binds_every_width_but_the_full_one(width: int, multiple: int, least: float):
    options = width_options(width, multiple, None, least)
    assert options[-1] == width
    assert all(option % multiple == 0 for option in options[:-1])


def test_the_last_rule_that_matches_decides(net: Network):
    options = group_options(net, Settings(min_width={"*": 0.5, "block1": 0.25}, multiple_of={"*": 2, "block2.*": 8}))
    widths = net.widths
    assert min(options["block1.conv1"]) == 0.25 * widths["block1.conv1"]
    assert min(options["block2.conv1"]) == 0.5 * widths["block2.conv1"]
    assert all(np.array(options["block1.conv1"]) % 2 == 0)
    assert options["block2.conv1"] == (16, 24, 32)


def test_keep_holds_what_a_module_makes_and_frozen_what_it_reads_too(net: Network):
    free = {name for name, options in group_options(net, Settings()).items() if len(options) > 1}
    kept = {name for name, options in group_options(net, Settings(keep=("block1.conv2",))).items() if len(options) > 1}
    frozen = {
        name for name, options in group_options(net, Settings(frozen=("block1.conv2",))).items() if len(options) > 1
    }
    (stream,) = free - kept
    assert "block1.conv2" in next(group for group in net.groups if group.name == stream).producers
    assert free - frozen == {stream, "block1.conv1"}
    assert not any(len(options) > 1 for options in group_options(net, Settings(keep=("*",))).values())


def test_a_name_that_nothing_has_is_an_error(net: Network):
    with pytest.raises(InputError, match="nothing is called 'blok1'"):
        group_options(net, Settings(frozen=("blok1",)))
    with pytest.raises(InputError, match="nothing is called 'Head'"):
        group_options(net, Settings(min_width={"Head": 0.5}))
