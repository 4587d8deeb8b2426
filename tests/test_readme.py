"""What README.md shows in Python, run as it stands, on a small network and a few photos."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress import CompressedModel
from tests import helpers

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_example_compresses_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (code,) = re.findall(r"```python\n(from pathlib.*?)```", README, re.S)
    for shown, small in (("(1, 3, 256, 256)", "(1, 3, 32, 32)"), ('"20ms"', '"0.9x"'), ("minutes=10", "steps=2")):
        assert code.count(shown) == 1
        code = code.replace(shown, small)
    code = code.replace('Path("profiles"))  # once', 'Path("profiles"), configurations=4)  # once')
    monkeypatch.chdir(tmp_path)
    torch.save(helpers.generator(seed=1).state_dict(), "net.pth")
    Path("photos").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(f"photos/{number}.png")
    names = {"Generator": helpers.generator}
    exec(code, names)
    thin = names["thin"]
    assert isinstance(thin, CompressedModel)
    assert thin.plan.widths != {group.name: group.width for group in names["net"].groups}
    assert (tmp_path / "thin" / "model.xml").is_file()
    loaded = names["compress"].load("thin", helpers.generator())
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(x), thin.model(x))
