"""The benchmarks' own networks and measures: generators are narrowed exactly, and each row is what it says."""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import network
from benchmarks import ablations, exactness, page, postgres, prediction, quality, rivals
from benchmarks.coverage import GENERATORS, OURS, checked, in_a_process, ready, summary
from benchmarks.cuts import CUTTERS
from benchmarks.data import PHOTOS, CifarTask, photos
from benchmarks.generators import Johnson, of_modules
from benchmarks.peers import cut_by_torch_pruning, torch_pruning_row
from benchmarks.prediction_report import summary as summary_of_predictions
from benchmarks.quality import Case
from benchmarks.quality_report import UNCUT, at_equal_quality, plot
from benchmarks.rivals import RIVALS, full
from benchmarks.rows import add_rows, read_rows
from benchmarks.solver import rows_of
from latency import here
from network.command_line import run
from network.errors import InputError
from search import Settings, magnitude
from search.build import build_space
from search.solve import PROVED_GAP
from search.space import IMPORTANCE, LATENCY
from tests.helpers import FP32, IMAGE, NETWORKS, need_data
from tests.staircase import StaircaseTable


@pytest.mark.parametrize("name", GENERATORS)
def test_every_generator_is_narrowed_exactly(name: str):
    if weights := GENERATORS[name][2]:
        need_data(f"weights/{weights}")
    row = checked("generators", name)
    assert row["outcome"] == "exact", row
    assert row["prunable"] > 0.9
    assert row["groups"] >= 1


@pytest.mark.parametrize("data", ["nowhere", ""])
def test_data_that_are_not_there_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: str
):
    """No folder, or one without the pictures."""
    monkeypatch.setenv("NARROWGAUGE_DATA", str(tmp_path / data))

    def main(_: object) -> int:
        return len(CifarTask().train)

    assert run(main) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(tmp_path) in said
    assert "NARROWGAUGE_DATA" in said


@pytest.mark.parametrize(("opened", "find"), [(page.chromium, "find_chromium"), (postgres.running, "find_binaries")])
def test_a_server_or_browser_that_is_not_installed_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, opened: Callable[[], AbstractContextManager], find: str
):
    monkeypatch.setattr(f"{opened.__module__}.{find}", lambda: None)
    with pytest.raises(InputError, match="apt-get install"), opened():
        pass


def test_a_network_that_does_not_exist_is_a_row_and_no_end():
    row = in_a_process(OURS, "generators", "absent")
    assert row["outcome"] == "not run"
    assert "absent" in row["reason"]
    exact = {"by": OURS, "family": "generators", "network": "adain"} | checked("generators", "adain")
    text = summary([row | {"outcome": "refused"}, exact])
    assert "1 refused, 1 exact of 2" in text
    assert "generators:absent refused" in text


def test_a_network_of_functions_has_a_twin_of_modules_that_peers_can_cut():
    model, x = Johnson().eval(), torch.rand(1, 3, 32, 32) * 255
    twin = of_modules(model)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), model(x), rtol=FP32, atol=255 * FP32)
    thin = CUTTERS["tp-magnitude-local"](twin, network.trace(model, (x,)), (x,), None, 0.5)
    assert sum(p.numel() for p in thin.parameters()) < 0.4 * sum(p.numel() for p in model.parameters())
    assert thin(x).shape == x.shape


def test_what_torch_pruning_cuts_is_held_to_the_same_rule(monkeypatch: pytest.MonkeyPatch):
    model, inputs = ready("generators", "cyclegan")
    row = torch_pruning_row(model, inputs, seed=0)
    assert row["outcome"] == "exact", row
    assert 0.2 < row["kept"] < 0.4
    thin, kept = cut_by_torch_pruning(model, inputs, seed=0)
    name, dims = next((name, dims) for name, dims in kept.items() if name.endswith("weight") and 0 in dims)
    wrong = kept | {name: dims | {0: (dims[0] + 1) % model.get_parameter(name).size(0)}}
    monkeypatch.setattr("benchmarks.peers.cut_by_torch_pruning", lambda *_: (thin, wrong))
    assert torch_pruning_row(model, inputs, seed=0)["outcome"] == "wrong"


def test_the_search_is_timed_for_every_budget_and_the_front(capsys: pytest.CaptureFixture[str]):
    rows = rows_of("cartoongan", argparse.Namespace(time_limit=30.0, alone=False, widths=["by 8"], front=16))
    assert [row.get("share", "front") for row in rows] == [0.7, 0.5, 0.3, "front"]
    assert all(row["gap"] <= 1e-4 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("name", ["residual", "unet"])
def test_no_rival_keeps_more_within_the_budget_than_the_exact_plan(name: str, share: float):
    model = NETWORKS[name]()
    net = network.trace(model, (torch.randn(IMAGE),))
    space = build_space(net, StaircaseTable(), magnitude(model, net), Settings(max_macs=1.0))
    budget_ms = share * float(space.total(LATENCY, full(space)))
    found = {rival: choose(space, budget_ms) for rival, choose in RIVALS.items()}
    kept = {rival: float(space.total(IMPORTANCE, choice)) for rival, choice in found.items() if choice is not None}
    assert kept.keys() >= {"exact", "greedy", "macs"}
    for rival, worth in kept.items():
        assert float(space.total(LATENCY, found[rival])) <= budget_ms * (1 + 1e-6)
        assert worth <= kept["exact"] * (1 + PROVED_GAP)
    assert len({round(worth, 6) for worth in kept.values()}) > 1


def test_every_solver_agrees_with_brute_force_on_random_graphs(capsys: pytest.CaptureFixture[str]):
    assert exactness.main(["--count", "12"]) == 0
    assert "solve    agrees with brute force on 12 of 12" in capsys.readouterr().out


def test_no_rival_finds_a_plan_where_there_is_none():
    model = NETWORKS["residual"]()
    net = network.trace(model, (torch.randn(IMAGE),))
    space = build_space(net, StaircaseTable(), magnitude(model, net), Settings(max_macs=1.0))
    assert {rival: choose(space, 1e-3) for rival, choose in RIVALS.items()} == dict.fromkeys(RIVALS)


@pytest.fixture
def small_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One small network among the rivals' cases, its weights in a data folder."""
    build = NETWORKS["residual"]
    (weights := tmp_path / "data" / "weights").mkdir(parents=True)
    torch.save(build().state_dict(), weights / "small.pth")
    monkeypatch.setenv("NARROWGAUGE_DATA", str(tmp_path / "data"))
    case = Case(build, "small.pth", IMAGE, lambda: pytest.fail("magnitude needs no data"), "psnr_db")
    monkeypatch.setattr(rivals, "CASES", {"small": case})


RIVAL = ["--importance", "magnitude", "--only", "small"]


def test_rivals_are_delivered_in_one_run_and_a_second_one_makes_only_what_is_missing(
    small_case: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(rivals, "profiled", lambda *_: StaircaseTable())
    out = tmp_path / "made" / "rows.jsonl"
    measured = [*RIVAL, "--profiles", str(tmp_path), "--runtime", "torch", "--measure", "--rounds", "1"]
    assert rivals.main([*measured, "--budget", "0.6", "--out", str(out)]) == 0
    first = out.read_text()
    assert rivals.main([*measured, "--budget", "0.6", "--budget", "0.01", "--out", str(out)]) == 0
    assert out.read_text().startswith(first)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["budget"], row["rival"]) for row in rows] == [
        (share, rival) for share in (0.6, 0.01) for rival in RIVALS
    ]
    for row in rows:
        assert row["original_ms"] > 0
        assert (row["delivered_ms"] is not None) == (row["predicted_ms"] is not None) == (row["budget"] == 0.6)
    said = capsys.readouterr().out.splitlines()
    assert sum("no plan within" in line for line in said) == len(RIVALS)
    assert sum("delivered" in line for line in said) == 2 * len(RIVALS)


def test_rivals_are_predicted_by_formula_without_a_store(small_case: None, capsys: pytest.CaptureFixture[str]):
    assert rivals.main([*RIVAL, "--budget", "0.7"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(RIVALS)
    with pytest.raises(SystemExit):
        rivals.main([*RIVAL, "--measure"])
    assert "--profiles" in capsys.readouterr().err


def test_an_ablation_changes_one_choice_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    build, images = NETWORKS["generator"], tmp_path / "data" / "images"
    (weights := tmp_path / "data" / "weights").mkdir(parents=True)
    torch.save(build().state_dict(), weights / "small.pth")
    images.mkdir()
    for name, pictures in ((PHOTOS, [f"{n}.png" for n in range(8)]), (ablations.SETS, [ablations.PICTURE])):
        with zipfile.ZipFile(images / name, "w") as archive:
            for picture in pictures:
                noise = np.random.default_rng(len(archive.namelist())).integers(0, 256, (48, 48, 3), np.uint8)
                Image.fromarray(noise).save(stored := io.BytesIO(), "png")
                archive.writestr(picture, stored.getvalue())
    monkeypatch.setenv("NARROWGAUGE_DATA", str(tmp_path / "data"))
    case = Case(build, "small.pth", IMAGE, lambda: photos(IMAGE, "unit"), "psnr_db")
    monkeypatch.setattr(ablations, "CASES", {"small": case})
    monkeypatch.setattr(ablations, "Vectors", StaircaseTable)
    monkeypatch.setattr(ablations, "BUDGETS", {"small": "0.6x"})
    command = ["--only", "small", "--steps", "4", "--share", "0.25", "--out", str(tmp_path / "out")]
    command += [word for way in ("none", "one picture", "by Adam") for word in ("--way", way)]
    assert ablations.main(command) == 0
    first = (tmp_path / "out" / "rows.jsonl").read_text()
    rows = [json.loads(line) for line in first.splitlines()]
    assert len({row["quality"]["distilled"]["psnr_db"] for row in rows}) == len(rows) == 3
    said = capsys.readouterr().out
    assert ablations.main(command) == 0
    assert (tmp_path / "out" / "rows.jsonl").read_text() == first
    assert capsys.readouterr().out.splitlines()[-3:] == [line for line in said.splitlines() if line.startswith("small")]


def test_rows_are_read_again_and_what_a_kill_cut_short_is_none(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    assert read_rows(path) == read_rows(None) == []
    add_rows(None, [{"a": 1}])
    add_rows(path, [{"a": 1}, {"a": 2}])
    with path.open("a") as file:
        file.write('{"a": 3')
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    add_rows(path, [{"a": 4}])
    assert read_rows(path) == [{"a": 1}, {"a": 2}, {"a": 4}]
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(SystemExit, match="line 2, is no JSON"):
        read_rows(path)


def quality_row(method: str, asked: float, delivered: float, quality: float, **facts: object) -> dict[str, object]:
    where = {"case": "toy", "runtime": "torch", "precision": "fp32", "method": method, "speedup": asked}
    times = {"original_ms": 8.0, "delivered_ms": 8.0 / delivered}
    return where | times | {"metric": "psnr_db", "quality": {"psnr_db": quality}, "interval": {}, **facts}


def test_the_uncut_network_is_no_peer():
    ours, uncut = quality_row("ours", 2, 2.0, 36.0), quality_row(UNCUT, 2, 1.0, 60.0)
    assert list(at_equal_quality([ours, uncut])) == []
    with_peer = [ours, quality_row("tp", 2, 2.0, 32.0)]
    assert list(at_equal_quality([*with_peer, uncut])) == list(at_equal_quality(with_peer))


@pytest.mark.parametrize("changed", ["--steps", "--seed", "--configurations"])
def test_a_row_of_quality_that_was_made_with_other_options_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changed: str
):
    class Made(quality.Bench):
        """Makes rows of nothing; their quality is their number."""

        def __init__(self, name: str, runtime: str, speedup: float, options: argparse.Namespace):
            self.name, self.runtime, self.speedup, self.options = name, runtime, speedup, options
            self.device, self.case = here("torch"), quality.CASES[name]

        def _ours(self) -> dict[str, object]:
            made.append(len(made))
            return {"original_ms": 8.0, "delivered_ms": 4.0, "quality": {"accuracy": made[-1]}, "interval": {}}

    made: list[int] = []
    monkeypatch.setattr(quality, "Bench", Made)
    monkeypatch.setattr(quality, "METHODS", ("ours",))
    command = ["--only", "resnet56", "--runtime", "torch", "--speedup", "2", "--out", str(tmp_path)]
    said = []
    for options in ([], [changed, "7"], [], [changed, "7"]):
        assert quality.main([*command, *options]) == 0
        said.append(capsys.readouterr().out)
    assert made == [0, 1]
    assert said[:2] == said[2:]


def test_isolated_plans_are_kept_with_what_the_machine_drifted_meanwhile(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prediction, "Isolated", lambda *_: SimpleNamespace(milliseconds=lambda widths: widths["a"]))
    case = SimpleNamespace(model=None, net=None, example=None, device=None)
    case.plans, case.options = [{"a": ms} for ms in (4.0, 6.0, 8.0, 9.0)], argparse.Namespace(isolated=3)
    delivered = [{"delivered_ms": ms, "drift": drift} for ms, drift in ((8.0, 4.0), (6.0, 2.0), (4.0, 1.0))]
    found = prediction.isolated(case, delivered)["rows"]
    assert [row["isolated_ms"] for row in found] == [4.0, 6.0, 8.0]
    assert [{key: row[key] for key in ("delivered_ms", "drift")} for row in found] == delivered
    where = {"network": "one", "runtime": "torch", "precision": "fp32", "kind": "isolated", "rows": found}
    assert "| 1.000 |" in summary_of_predictions([where])  # as delivered their order is the other way round


def test_ours_is_compared_with_the_best_peer_at_equal_quality():
    ours = [quality_row("ours", 2, 2.0, 36.0), quality_row("ours", 4, 4.0, 28.0)]
    better, worse = quality_row("tp", 2, 2.0, 32.0), quality_row("uniform", 2, 2.0, 31.0)
    failed = quality_row("tp", 4, 4.0, 50.0, failed="so")
    (said,) = at_equal_quality([*ours, worse, better, failed])
    assert "tp psnr_db 32 at 2.00x; ours is as good at 2.83x, 1.41 times" in said
    (said,) = at_equal_quality([*ours, quality_row("tp", 2, 2.5, 20.0)])
    assert "ours is as good at 4.00x at least, 1.60 times" in said
    (said,) = at_equal_quality([*ours, quality_row("tp", 2, 2.0, 40.0)])
    assert said.endswith("ours has no row as good")
    (said,) = at_equal_quality([ours[0], better])
    assert said.endswith("ours is better at 2.00x, and has no faster row")


def test_the_picture_has_a_panel_per_network_and_a_mark_per_row_that_did_not_fail():
    ours = [quality_row("ours", 2, 2.0, 36.0), quality_row("ours", 4, 4.0, 28.0, interval={"psnr_db": [27.0, 30.0]})]
    peer, failed = quality_row("tp", 2, 2.0, 32.0), quality_row("uniform", 4, 4.0, 50.0, failed="so")
    marks = [plot(rows).count("<use") for rows in (ours, [*ours, peer], [*ours, peer, failed])]
    assert marks[1] > marks[0]
    assert marks[2] == marks[1]
    picture = plot([*ours, peer | {"case": "another"}])
    assert picture.count("psnr_db -->") == 2
    assert "<!-- another, " in picture
    with pytest.raises(InputError, match="no rows"):
        plot([failed])
