"""The whole spine through its three commands, on a runtime whose clock is known: every number must come out right."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import compress
import compress.command
import latency.command
import search.command
from latency.device import Machine
from network import example_inputs, load_model
from tests.helpers import FP32
from tests.known_runtime import install

MODEL = f"{Path(__file__).parent / 'helpers.py'}:UNet"
PLACE = ["--runtime", "known", "--threads", "1"]
PLAN_KEYS = {
    "schema",
    "model",
    "device",
    "runtime",
    "precision",
    "threads",
    "table_fingerprint",
    "budget_ms",
    "baseline_ms",
    "predicted_ms",
    "status",
    "objective",
    "bound",
    "gap",
    "solve_seconds",
    "choices_log10",
    "widths",
    "layers",
    "frozen",
}
REPORT_KEYS = {"baseline_ms", "budget_ms", "predicted_ms", "delivered_ms", "rounds", "quality", "seconds", "widths"}


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """A folder with photos and a profiled network, where the commands are run."""
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NARROWGAUGE_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.setattr("network.command_line.default_profiles", lambda: tmp_path / "profiles")
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        ramp = np.linspace(0, 255, 24)[:, None, None] * rng.random((1, 24, 3))
        Image.fromarray(ramp.astype(np.uint8)).save(photos / f"{number}.png")
    model = load_model(MODEL)
    model.enter.bias.data.add_(0.1)  # else they are those that the model begins with
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    assert run(latency.command, MODEL, "--input", "1x3x16x16", *PLACE, "--configurations", "12") == 0
    return tmp_path


def run(package, *words):
    return package.main([*map(str, words), "--profiles", "profiles"])


def planned(budget="0.6x"):
    named = (MODEL, "--weights", "weights.pth", "--input", "1x3x16x16")
    return run(search.command, *named, *PLACE, "--latency-budget", budget, "--images", "photos", "-o", "plan.json")


def applied(*more):
    return run(
        compress.command,
        "plan.json",
        "--weights",
        "weights.pth",
        "--images",
        "photos",
        "-o",
        "thin",
        "--steps",
        "6",
        *more,
    )


def test_a_network_meets_its_budget_through_the_three_commands(studio):
    assert planned() == 0
    plan = json.loads(Path("plan.json").read_text())
    assert plan.keys() >= PLAN_KEYS
    assert plan["status"] == "optimal"
    assert plan["predicted_ms"] <= plan["budget_ms"] == pytest.approx(0.6 * plan["baseline_ms"])
    assert applied() == 0
    report = json.loads(Path("thin/report.json").read_text())
    assert report.keys() >= REPORT_KEYS
    assert 0.9 <= report["delivered_ms"] / report["budget_ms"] <= 1.0
    assert report["quality"].keys() >= {"original", "pruned", "repaired", "distilled"}
    page = Path("thin/report.html").read_text()
    assert "<img" in page or "data:image" in page
    assert report["held_out_items"] == 1
    assert "Of one held-out item" in page
    assert "bootstrap interval" not in page


def test_the_delivered_folder_loads_as_what_the_exported_program_computes(studio):
    assert planned() == 0
    assert applied() == 0
    model = compress.load("thin")
    example = example_inputs([(1, 3, 16, 16)])
    exported = torch.export.load("thin/model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(model(*example), exported(*example), rtol=FP32, atol=FP32)
    report = json.loads(Path("thin/report.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == report["parameters"]["delivered"]


def test_the_data_that_taught_is_in_the_plan_in_the_report_and_in_what_the_run_is(studio):
    assert planned() == 0
    assert applied("--preprocess", "signed") == 0
    for name in ("plan", "report"):
        feed = json.loads(Path(f"thin/{name}.json").read_text())["feed"]
        assert (feed["images"], feed["preprocess"]) == ("photos", "signed")
    shutil.copytree("photos", "others")
    again = ("--preprocess", "signed", "--resume")
    assert applied(*again) == 0
    assert applied(*again, "--images", "others") == 2
    assert applied("--preprocess", "signed", "--images", "others") == 0
    assert json.loads(Path("thin/plan.json").read_text())["feed"]["images"] == "others"


def test_for_another_machine_the_command_says_that_nothing_was_measured(studio, capsys, monkeypatch):
    assert planned() == 0
    elsewhere = Machine("abacus", 1, "")
    monkeypatch.setattr("compress.delivery.this_machine", lambda accelerator: elsewhere)
    capsys.readouterr()
    assert applied() == 0
    device = json.loads(Path("plan.json").read_text())["device"]
    said = capsys.readouterr().err.splitlines()
    assert any(line.startswith(f"{device}/known-fp32-1t is another machine") for line in said)
    assert f"as predicted for {device}; measure it there; see" in said[-1]


def test_the_same_search_twice_gives_the_same_plan(studio):
    assert planned() == 0
    first = json.loads(Path("plan.json").read_text())
    assert planned() == 0
    second = json.loads(Path("plan.json").read_text())
    assert {**first, "solve_seconds": 0} == {**second, "solve_seconds": 0}


@pytest.mark.parametrize(
    ("budget", "words"),
    [("0ms", "0"), ("-3ms", "-3"), ("soon", "soon"), ("0.001x", "fastest plan")],
)
def test_a_budget_that_cannot_be_is_answered_in_one_line(studio, capsys, budget, words):
    capsys.readouterr()
    assert planned(budget) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert words in line


def test_bad_input_gets_one_line_and_loses_nothing(studio, capsys):
    assert planned() == 0
    kept = Path("plan.json").read_text()
    torch.save({"enter.weight": torch.zeros(2, 3, 3, 3)}, "other.pth")
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"no picture")
    Path("file").write_text("")
    Path("damaged.json").write_text(kept[: len(kept) // 2])
    named = (MODEL, "--input", "1x3x16x16")
    cases = {
        "no such attribute": (
            search.command,
            f"{MODEL}Missing",
            "--input",
            "1x3x16x16",
            *PLACE,
            "--latency-budget",
            "1x",
        ),
        "weights": (search.command, *named, "--weights", "other.pth", *PLACE, "--latency-budget", "1x"),
        "wrong shape": (search.command, MODEL, "--input", "1x5x16x16", *PLACE, "--latency-budget", "1x"),
        "no device": (search.command, *named, *PLACE, "--device", "abacus", "--latency-budget", "1x"),
        "no runtime": (latency.command, *named, "--runtime", "abacus"),
        "another network": (
            search.command,
            f"{Path(MODEL).parent}/helpers.py:Residual",
            *named[1:],
            *PLACE,
            "--latency-budget",
            "1x",
        ),
        "empty folder": (search.command, *named, *PLACE, "--latency-budget", "1x", "--images", "empty"),
        "no picture": (search.command, *named, *PLACE, "--latency-budget", "1x", "--images", "broken"),
        "damaged plan": (compress.command, "damaged.json", "--images", "photos", "-o", "thin"),
        "other weights": (compress.command, "plan.json", "--images", "photos", "-o", "thin"),
        "unwritable": (
            compress.command,
            "plan.json",
            "--weights",
            "weights.pth",
            "--images",
            "photos",
            "-o",
            "file/thin",
        ),
    }
    for what, words in cases.items():
        capsys.readouterr()
        assert run(*words) == 2, what
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, what
        assert len(errors[0]) > 20, what
    assert Path("plan.json").read_text() == kept
    assert not Path("thin/report.json").exists()


def test_a_finished_run_is_not_done_again(studio):
    assert planned() == 0
    assert applied() == 0
    before = Path("thin/model.safetensors").stat().st_mtime_ns
    assert applied() == 0
    assert Path("thin/model.safetensors").stat().st_mtime_ns == before
    document = json.loads(Path("plan.json").read_text())
    Path("plan.json").write_text(json.dumps(document | {"solve_seconds": document["solve_seconds"] + 1}))
    assert applied("--resume") == 0
    assert Path("thin/model.safetensors").stat().st_mtime_ns == before
    shutil.rmtree("thin")
    assert applied() == 0
