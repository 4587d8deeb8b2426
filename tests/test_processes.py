"""Several processes at one compression come to what one process comes to, and the first alone writes and decides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import processes
from compress.batches import Batches
from compress.checkpoint import read_json, read_tensors
from network.errors import InputError
from search import Imitation
from tests.compression import Photos
from tests.helpers import FP64

ROOT = Path(__file__).parents[1]

QUICK = {"network": "unet", "kind": "float64", "batch_size": 8, "condense": "group-l2", "repair": False}
QUICK |= {"steps": 40, "lr": 3e-3}
"""Batch norms take their statistics from batches of eight. In float64, since Adam makes whole steps of rounding errors,
which are all the gradient that a bias before a batch norm has. Without repair, so that there is something to learn."""

PATIENCE_S = 240
"""They take 15 s; processes that wait for one another for ever are to fail the test, and to go."""


def launch(folder: Path, count: int, *jobs: Any) -> int:
    """The exit code of so many processes that do these jobs in `folder`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [*launcher, str(ROOT / "tests" / "together.py"), str(folder), json.dumps(jobs)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as started:
        try:
            started.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            started.terminate()  # the launcher then ends its processes
            raise
    return started.returncode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one process and two came to, the latter also by the clock with a batch that they cannot halve."""
    found = tmp_path_factory.mktemp("processes")
    assert launch(found, 1, {"out": "one", **QUICK}) == 0
    hasty = {"out": "hasty", "network": "residual", "kind": "float32", "minutes": 0.05, "batch_size": 9}
    assert launch(found, 2, {"out": "two", **QUICK}, hasty) == 0
    return found


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return read_tensors(folder / f"{name}.safetensors")[0]


def test_two_processes_come_to_the_weights_of_one(folder):
    alone = weights(folder, "one-0")
    for together in (weights(folder, "two-0"), weights(folder, "two-1")):
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            assert float((together[name] - value).double().norm()) <= FP64 * float(value.double().norm()), name


def test_two_processes_report_what_one_does(folder):
    one, two, other = (read_json(folder / f"{name}.json")["report"] for name in ("one-0", "two-0", "two-1"))
    assert two == other
    assert two["widths"] == one["widths"]
    assert two["stages"]["distilled"]["share"] == one["stages"]["distilled"]["share"] > 0
    for stage, quality in one["quality"].items():
        assert two["quality"][stage] == pytest.approx(quality, rel=FP64)
    for stage in ("condensed", "distilled"):
        losses = [[point[2] for point in each["stages"][stage]["curve"]["loss"]] for each in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=FP64)


def test_the_first_alone_measures_and_speaks(folder):
    first, second = (read_json(folder / f"two-{rank}.json") for rank in (0, 1))
    assert first["measured"] > 0
    assert first["lines"]
    assert second["measured"] == 0
    assert second["lines"] == []


@pytest.mark.parametrize("name", ["two", "hasty"])
def test_both_have_the_same_weights(folder, name: str):
    first, second = weights(folder, f"{name}-0"), weights(folder, f"{name}-1")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_minutes_trials_and_an_uneven_batch_end_at_the_same_step_everywhere(folder):
    first, second = (read_json(folder / f"hasty-{rank}.json")["report"] for rank in (0, 1))
    assert first == second
    assert first["stages"]["distilled"]["curve"]["steps"] > 0


def test_two_processes_that_die_resume_to_the_weights_they_would_have_had(folder, tmp_path):
    assert launch(tmp_path, 2, {"out": "two", "die_at": 8, **QUICK}) != 0
    assert not (tmp_path / "two" / "report.json").exists()
    assert (tmp_path / "two" / "run" / "distilled-checkpoint.safetensors").exists()
    assert launch(tmp_path, 2, {"out": "two", "resume": True, **QUICK}) == 0
    resumed, whole = weights(tmp_path, "two-0"), weights(folder, "two-0")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_alone_nothing_is_exchanged(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", None)
    assert processes.count() == 1
    assert processes.leads()
    assert processes.decided(lambda: 3) == 3
    assert processes.my_share(5) == range(5)
    x = torch.ones(2, requires_grad=True)
    assert processes.summed(x) is x
    processes.join()
    assert processes.count() == 1


@pytest.mark.parametrize(("size", "count"), [(8, 2), (5, 2), (7, 3), (4, 4)])
def test_the_shares_of_a_batch_are_the_batch_in_its_order(size: int, count: int, monkeypatch):
    batches = Batches(Imitation(Photos()).train, size, seed=5)
    whole = batches.batch(3)[0][0]
    monkeypatch.setattr(processes, "count", lambda: count)
    parts = []
    for rank in range(count):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        parts.append(batches.share(3)[0][0])
    assert torch.equal(torch.cat(parts), whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_smaller_than_the_processes_is_refused(monkeypatch):
    monkeypatch.setattr("compress.batches.count", lambda: 5)
    with pytest.raises(InputError, match="--batch-size"):
        Batches(Imitation(Photos()).train, 4)
