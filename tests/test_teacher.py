"""Who is asked: the same outputs from every runtime, and none computed twice while inputs come again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress import teacher as module
from compress.teacher import PATIENCE, Teacher, quickest_runtime
from tests.helpers import IMAGE, NETWORKS


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.items = 0

    def forward(self, x: Tensor) -> Tensor:
        self.items += len(x)
        return self.linear(x)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("bf16", [False, True])
def test_openvino_says_what_torch_says(name, bf16):
    pytest.importorskip("openvino")
    network = NETWORKS[name]().eval()
    asked = Teacher(network, "openvino", bf16=bf16)
    for batch in (4, 2):
        x = torch.randn(batch, *IMAGE[1:])
        with torch.no_grad():
            expected = network(x)
        assert float((asked((x,)) - expected).abs().max()) <= (0.05 if bf16 else 1e-4) * float(expected.abs().max())


def test_openvino_may_be_asked_for_the_first_time_under_autocast():
    pytest.importorskip("openvino")
    network, x = NETWORKS["generator"]().eval(), torch.randn(IMAGE)
    with torch.autocast("cpu", torch.bfloat16):
        said = Teacher(network, "openvino", bf16=True)((x,))
    with torch.no_grad():
        expected = network(x)
    assert float((said - expected).abs().max()) <= 0.05 * float(expected.abs().max())


def test_what_was_said_of_an_input_is_remembered_item_by_item():
    network = Counting()
    asked, x = Teacher(network), torch.randn(6, 4)
    first = asked((x,))
    assert torch.equal(asked((x[[3, 1, 5]],)), first[[3, 1, 5]])
    assert network.items == 6
    assert asked.found == 3
    mixed = torch.cat([x[:1], torch.randn(1, 4)])
    assert torch.equal(asked((mixed,)), network(mixed).detach())
    assert not asked((x,)).requires_grad


def test_what_is_said_and_what_is_remembered_lie_alike():
    network = NETWORKS["generator"]().eval().to(memory_format=torch.channels_last)
    asked, x = Teacher(network), torch.randn(4, *IMAGE[1:]).to(memory_format=torch.channels_last)
    said = asked((x,))
    assert not network(x).is_contiguous()
    assert said.stride() == asked((x,)).stride()
    assert asked.found == 4


def test_nothing_is_remembered_once_it_is_clear_that_inputs_do_not_come_again():
    network = Counting()
    asked, batch = Teacher(network), 256
    for _ in range(PATIENCE // batch):
        asked((torch.randn(batch, 4),))
    assert len(asked._known) == PATIENCE
    x = torch.randn(batch, 4)
    asked((x,))
    assert not asked._known
    before = network.items
    asked((x,))
    assert network.items == before + batch


def test_no_more_is_remembered_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(module, "CACHE_BYTES", 5 * 3 * 4)
    asked = Teacher(Counting())
    asked((torch.randn(8, 4),))
    assert len(asked._known) == 5


def test_the_quicker_runtime_teaches_if_it_says_the_same():
    pytest.importorskip("openvino")
    network, x = NETWORKS["generator"]().eval(), (torch.randn(IMAGE),)

    def clock_of(torch_s: float, openvino_s: float):
        ticks = iter([t for _ in range(20) for t in (0.0, torch_s, 0.0, openvino_s)])
        return lambda: next(ticks)

    assert quickest_runtime(network, x, bf16=False, clock=clock_of(2.0, 1.0)) == "openvino"
    assert quickest_runtime(network, x, bf16=False, clock=clock_of(1.0, 1.0)) == "torch"


def test_what_openvino_cannot_take_torch_teaches():
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x + 1

    assert quickest_runtime(Pair(), (torch.randn(2, 3),), bf16=False) == "torch"
