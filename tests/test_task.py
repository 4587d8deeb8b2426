"""Tasks: the user's own, named on the command line, and imitation, which needs photos only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from network.errors import InputError
from search.task import Imitation, Task, load_task, task_of
from tests.test_importance import Photos

GOOD = """
import torch
from torch.utils.data import TensorDataset

class Mine:
    def __init__(self, batch_size=2):
        self.batch_size = batch_size
        self.train = self.heldout = TensorDataset(torch.zeros(4, 3), torch.zeros(4))
    def loss(self, output, target):
        return output.sum()
    def metrics(self, output, target):
        return {"accuracy": output[:, 0]}

class Half:
    batch_size = 1

class Broken:
    def __init__(self):
        raise OSError("no data here")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


def test_a_task_of_a_file_is_made_with_its_arguments(file: Path):
    task = load_task(f"{file}:Mine", batch_size=3)
    assert isinstance(task, Task)
    assert task.batch_size == 3


def test_a_task_may_import_what_lies_beside_it(file: Path):
    (file.parent / "beside_the_task.py").write_text("SIZE = 7\n")
    file.write_text(GOOD.replace("import torch\n", "import torch\nfrom beside_the_task import SIZE\n", 1))
    assert load_task(f"{file}:Mine").batch_size == 2


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("mine.py", "no colon"),
        ("absent.py:Mine", "no file"),
        ("no_such_package.tasks:Mine", "no module no_such_package.tasks"),
        ("{file}:Yours", "no 'Yours'"),
        ("{file}:Half", "no 'train'"),
        ("{file}:Broken", "no data here"),
    ],
)
def test_a_task_that_cannot_be_had_says_why(file: Path, reference: str, words: str):
    with pytest.raises(InputError, match=words) as error:
        load_task(reference.format(file=file))
    assert "\n" not in str(error.value)


def test_a_task_may_be_named_as_a_module_of_the_folder_one_stands_in(file: Path, monkeypatch: pytest.MonkeyPatch):
    file.with_name("a_module_of_tasks.py").write_text(GOOD)
    monkeypatch.chdir(file.parent)
    assert load_task("a_module_of_tasks:Mine").batch_size == 2


def test_two_files_of_one_name_are_two_tasks(file: Path, tmp_path: Path):
    other = tmp_path / "elsewhere" / file.name
    other.parent.mkdir()
    other.write_text(GOOD.replace("batch_size=2", "batch_size=9"))
    assert [load_task(f"{path}:Mine").batch_size for path in (file, other, file)] == [2, 9, 2]


def test_a_task_with_a_syntax_error_says_so_in_one_line(file: Path):
    file.write_text("class Mine(:\n")
    with pytest.raises(InputError, match="SyntaxError"):
        load_task(f"{file}:Mine")


def test_imitation_is_a_task_with_photos_to_learn_and_others_to_judge():
    task = Imitation(Photos(10), batch_size=2)
    assert isinstance(task, Task)
    photo, target = task.train[0]
    assert photo.shape == (3, 16, 16)
    assert target == 0
    held = {tuple(task.heldout[i][0].flatten().tolist()) for i in range(len(task.heldout))}
    assert not any(tuple(task.train[i][0].flatten().tolist()) in held for i in range(len(task.train)))


def test_of_a_single_photo_some_crops_teach_and_others_judge(tmp_path: Path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "one.png")
    task = task_of(str(tmp_path / "one.png"), None, [(1, 3, 16, 16)])
    assert task is not None
    assert len(task.train) > len(task.heldout) > 1
    held = {tuple(task.heldout[i][0].flatten().tolist()) for i in range(8)}
    assert not any(tuple(task.train[i][0].flatten().tolist()) in held for i in range(8))


def test_the_random_signs_reach_every_output_tensor():
    outputs = {"image": torch.ones(2, 3, requires_grad=True), "code": torch.ones(4, requires_grad=True)}
    Imitation(Photos(1)).loss(outputs, 0).backward()
    for tensor in outputs.values():
        assert (tensor.grad.abs() == 1).all()
