"""How networks, weights and inputs are named, and what is said when a name is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from network.denormals import flush_denormals
from network.errors import InputError, ModelReferenceError, WeightsError
from network.reference import example_inputs, load_model, load_weights, parse_input
from tests.helpers import need_data

SOURCE = """
import torch
from torch import nn
from companion import WIDTH

class Small(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Conv2d(width, 3, 1)
    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))))

def broken():
    raise RuntimeError("no disk\\nleft")

def number():
    return 3

CONSTANT = 7
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A user's file, with a module beside it that it imports."""
    (tmp_path / "companion.py").write_text("WIDTH = 4\n")
    path = tmp_path / "nets.py"
    path.write_text(SOURCE)
    return path


def test_a_callable_in_a_file_builds_a_network_in_eval_mode(source: Path) -> None:
    model = load_model(f"{source}:Small", '{"width": 6}')
    assert model.conv.out_channels == 6
    assert not model.training


def test_a_network_without_weights_is_the_same_each_time(source: Path) -> None:
    torch.manual_seed(1)
    first = load_model(f"{source}:Small")
    drawn = torch.rand(())
    torch.manual_seed(1)
    assert drawn == torch.rand(())
    second = load_model(f"{source}:Small")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_file_may_import_what_lies_beside_it(source: Path) -> None:
    assert load_model(f"{source}:Small").conv.out_channels == 4


def test_a_callable_in_a_package_builds_a_network() -> None:
    model = load_model("torch.nn:Linear", '{"in_features": 2, "out_features": 3}')
    assert isinstance(model, nn.Linear)


@pytest.mark.parametrize(
    ("ref", "args", "message"),
    [
        ("{file}", "{}", "has no colon; write package.module:callable or path/file.py:callable"),
        ("missing.py:Net", "{}", "there is no file missing.py"),
        ("no_such_package.nets:Net", "{}", "there is no module no_such_package.nets"),
        ("{file}:Nothing", "{}", "has no 'Nothing'; it has .*Small"),
        ("{file}:CONSTANT", "{}", "is a int, not callable"),
        ("{file}:number", "{}", "returned a int, not an nn.Module"),
        ("{file}:broken", "{}", "raised RuntimeError: no disk left"),
        ("{file}:Small", "{width: 3}", "is not JSON"),
        ("{file}:Small", "[3]", "is not a JSON object"),
        ("{file}:Small", '{"depth": 3}', "raised TypeError: .*depth"),
    ],
)
def test_a_wrong_reference_is_named_in_one_line(source: Path, ref: str, args: str, message: str) -> None:
    with pytest.raises(ModelReferenceError, match=message) as caught:
        load_model(ref.replace("{file}", str(source)), args)
    assert "\n" not in str(caught.value)


def test_a_file_that_raises_on_import_shows_its_exception(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import torch\n1 / 0\n")
    with pytest.raises(ModelReferenceError, match="ZeroDivisionError: division by zero"):
        load_model(f"{tmp_path / 'bad.py'}:Net")


# ---- weights ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_saved_weights_load_again(source: Path, tmp_path: Path, suffix: str) -> None:
    first, second = load_model(f"{source}:Small"), load_model(f"{source}:Small")
    path = tmp_path / f"weights{suffix}"
    torch.save(first.state_dict(), path) if suffix == ".pth" else save_file(first.state_dict(), path)
    load_weights(second, path)
    assert all(torch.equal(value, first.state_dict()[key]) for key, value in second.state_dict().items())


def test_halves_are_cast_to_the_parameters_type(source: Path, tmp_path: Path) -> None:
    model = load_model(f"{source}:Small")
    halves = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    torch.save(halves, tmp_path / "half.pth")
    load_weights(model, tmp_path / "half.pth")
    assert model.conv.weight.dtype == torch.float32
    assert torch.equal(model.conv.weight, halves["conv.weight"].float())


def test_counters_of_batch_norms_may_be_absent(tmp_path: Path) -> None:
    saved = {key: value for key, value in nn.BatchNorm2d(3).state_dict().items() if key != "num_batches_tracked"}
    torch.save({**saved, "running_mean": torch.ones(3)}, tmp_path / "old.pth")
    norm = load_weights(nn.BatchNorm2d(3), tmp_path / "old.pth")
    assert torch.equal(norm.running_mean, torch.ones(3))
    assert norm.num_batches_tracked == 0


def test_the_first_mismatching_key_is_named(source: Path, tmp_path: Path) -> None:
    model, state = load_model(f"{source}:Small"), load_model(f"{source}:Small").state_dict()
    wrong = {
        "lacks 'conv.weight'": {key: value for key, value in state.items() if key != "conv.weight"},
        "'head.bias' has shape 5, Small needs 3": state | {"head.bias": torch.zeros(5)},
        "has 'extra', which Small has not": state | {"extra": torch.zeros(1)},
    }
    for message, broken in wrong.items():
        torch.save(broken, tmp_path / "wrong.pth")
        with pytest.raises(WeightsError, match=message):
            load_weights(model, tmp_path / "wrong.pth")


def test_files_that_are_no_state_dicts_are_refused(source: Path, tmp_path: Path) -> None:
    model = load_model(f"{source}:Small")
    (tmp_path / "noise.pth").write_bytes(b"not a zip at all")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(model, tmp_path / "pickle.pth")
    for name in ("absent.pth", "noise.pth", "list.pth", "pickle.pth"):
        with pytest.raises(WeightsError, match=name) as caught:
            load_weights(model, tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_real_checkpoint_in_half_precision_loads() -> None:
    path = need_data("weights/efficientnet_lite0_fp16.pth")
    state = torch.load(path, weights_only=True)
    model = nn.Module()
    for key, value in state.items():
        model.register_buffer(key.replace(".", "_"), torch.zeros(value.shape))
    with pytest.raises(WeightsError, match="lacks"):
        load_weights(model, path)


# ---- inputs ----------------------------------------------------------------------------------------------------
def test_shapes_are_parsed() -> None:
    assert parse_input("1x3x224x224") == (1, 3, 224, 224)


@pytest.mark.parametrize("text", ["", "0x3", "1x3x", "1,3,224", "-1x3", "axb", "1x3.5"])
def test_what_is_not_a_shape_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="write positive extents such as 1x3x224x224"):
        parse_input(text)


def test_example_inputs_are_the_same_every_time() -> None:
    first, second = example_inputs([(1, 3, 8, 8), (1, 2)]), example_inputs([(1, 3, 8, 8), (1, 2)])
    assert [t.shape for t in first] == [(1, 3, 8, 8), (1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- the listing -----------------------------------------------------------------------------------------------
def listed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m network …`."""
    return subprocess.run([sys.executable, "-m", "network", *arguments], capture_output=True, text=True, check=False)


def test_the_listing_shows_groups_frozen_channels_and_totals(source: Path) -> None:
    done = listed(f"{source}:Small", "--input", "1x3x8x8", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [(group["name"], group["width"], group["consumers"]) for group in document["groups"]] == [
        ("conv", 4, ["head"])
    ]
    assert {frozen["group"] for frozen in document["frozen"]} == {"conv (input)", "head"}
    assert document["macs"] == 64 * (27 * 4 + 4 * 3)
    text = listed(f"{source}:Small", "--input", "1x3x8x8").stdout
    assert "the network's output" in text
    assert "1 groups" in text or "1 group" in text


def test_the_drawing_has_a_row_for_every_layer_that_multiplies_and_a_colour_for_every_group(
    source: Path, tmp_path: Path
) -> None:
    done = listed(f"{source}:Small", "--input", "1x3x8x8", "--svg", str(tmp_path / "small.svg"))
    assert done.returncode == 0, done.stderr
    drawn = ElementTree.parse(tmp_path / "small.svg").getroot()
    bars = [bar for bar in drawn.iter() if bar.find("{*}title") is not None]
    assert [bar.find("{*}title").text for bar in bars] == ["conv: 4 channels", "stays: 3 channels"]
    assert bars[0].get("fill") != bars[1].get("fill")
    texts = "".join(drawn.itertext())
    assert "conv2d" in texts


def test_the_listing_fails_in_one_line_with_code_2(source: Path) -> None:
    for arguments in (
        [f"{source}:Absent", "--input", "1x3x8x8"],
        [f"{source}:Small"],
        [f"{source}:Small", "--input", "1x4x8x8"],
    ):
        done = listed(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.strip().splitlines()) == 1


def test_denormal_weights_are_taken_as_zero_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model, fresh = nn.Linear(4, 2), nn.Linear(4, 2)
    with torch.no_grad():
        model.weight[0] = torch.tensor([1e-39, -1e-40, 0.0, 2e-38])
    torch.save(model.state_dict(), tmp_path / "old.pth")
    load_weights(fresh, tmp_path / "old.pth")
    assert fresh.weight[0].tolist() == [0, 0, 0, pytest.approx(2e-38)]
    torch.testing.assert_close(fresh.weight[1], model.weight[1], rtol=0, atol=0)
    assert "old.pth: 2 weights are denormal" in caplog.text
    caplog.clear()
    torch.save(fresh.state_dict(), tmp_path / "new.pth")
    load_weights(fresh, tmp_path / "new.pth")
    assert not caplog.text


def test_half_precision_keeps_its_own_small_numbers():
    model = nn.Linear(1, 1).half()
    with torch.no_grad():
        model.weight[:] = 6e-8
    assert flush_denormals(model).weight.item() > 0
