"""What a network is for: the data and the loss that importance is measured by, and that training follows later."""

from __future__ import annotations

import inspect
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from network.errors import InputError, ModelReferenceError
from network.images import Crops, Images, open_images
from network.reference import import_attribute, json_arguments
from search.plan import Feed

__all__ = ["Imitation", "Task", "Unlabelled", "feed_of", "floating", "load_task", "task_of", "task_of_feed"]


@runtime_checkable
class Task(Protocol):
    """A network's own loss, data and metric.

    Items of `train` and `heldout` are (inputs, target): inputs a tensor or a tuple of tensors without a batch axis,
    target anything that torch's default collation takes. A dataset may have a method `crop(index, generator)`, which
    gives the item in a random crop drawn from that torch.Generator; training takes it in place of `dataset[index]`.
    """

    batch_size: int
    train: Dataset
    heldout: Dataset

    def loss(self, output: Any, target: Any) -> Tensor:
        """What training minimises: a scalar, the mean over the batch."""
        ...

    def metrics(self, output: Any, target: Any) -> Mapping[str, Tensor]:
        """One value per sample, (batch,), higher is better, such as {"accuracy": …}."""
        ...


def floating(output: Any) -> list[Tensor]:
    """The floating-point tensors of a network's output, in order."""
    return [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]


class Unlabelled(Dataset):
    """Photos as items (photo, 0): there is no target to learn but the original network's output."""

    def __init__(self, images: Images | Crops):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], 0

    def crop(self, index: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """The item as a random crop, for training."""
        return self.images.crop(index, generator), 0


class Imitation:
    """The task of whoever has photos and no labels: do as the original network does."""

    def __init__(self, images: Images, batch_size: int = 4, heldout: float = 0.1, seed: int = 0):
        """`heldout` is the fraction of the photos that only judge; of a single photo some crops teach, others judge."""
        train, held = images.split(fraction=heldout, seed=seed)
        self.images = images
        self.batch_size = batch_size
        self.train: Dataset = Unlabelled(train)
        self.heldout: Dataset = Unlabelled(held)

    def loss(self, output: Any, target: Any) -> Tensor:
        """⟨output, r⟩ with r = ±1 at random, from torch's default generator.

        The expected square of its derivative by a gate g is Σ_i (∂output_i/∂g)²: the gate's entry on the diagonal
        of the Gauss-Newton matrix of the squared output error, which itself has no first derivative at the original
        (Hutchinson's estimator, 1989). It serves importance; imitation proper compares with the original's output.
        """
        return torch.stack([(x * (torch.randint_like(x, 2) * 2 - 1)).sum() for x in floating(output)]).sum()

    def metrics(self, output: Any, target: Any) -> Mapping[str, Tensor]:
        """None: without labels, quality is fidelity to the original, which needs no task."""
        return {}


def task_of(
    images: str | None,
    task: str | None,
    shapes: Sequence[tuple[int, ...]],
    preprocess: str = "unit",
    *,
    bgr: bool = False,
    task_args: str | None = None,
) -> Task | None:
    """What --task or else --images says, for a network of these input shapes; None if neither is given.

    task_args: the task's keyword arguments, a JSON object. A task whose constructor has parameters named `size` (the
    network's one input, CxHxW), `shapes` (of all inputs), `preprocess` or `bgr` is told these too.
    Raises InputError for both, for what cannot be loaded, and for photos to a network that takes none.
    """
    if (task_args or "{}") != "{}" and not task:
        raise InputError(f"--task-args {task_args} has no --task to go to; give --task FILE:CLASS")
    if images and task:
        raise InputError("--images and --task exclude each other; give one of them")
    if task:
        known = {"shapes": tuple(shapes), "preprocess": preprocess, "bgr": bgr}
        known |= {"size": tuple(shapes[0][1:])} if len(shapes) == 1 and len(shapes[0]) == 4 else {}
        return load_task(task, known, **json_arguments("--task-args", task_args or "{}", InputError))
    if not images:
        return None
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise InputError("--images feeds networks of one input NxCxHxW; give --task FILE:CLASS for others")
    return Imitation(open_images(images, shapes[0][1:], preprocess, bgr=bgr))


def feed_of(options: Namespace) -> Feed:
    """The data that a command's options name, those of `network.command_line:add_image_options`."""
    task_args = options.task_args or "{}"
    return Feed(options.images, options.preprocess or "unit", bool(options.bgr), options.task, task_args)


def task_of_feed(feed: Feed, shapes: Sequence[tuple[int, ...]]) -> Task | None:
    """As `task_of`, of a plan's feed."""
    return task_of(feed.images, feed.task, shapes, feed.preprocess, bgr=feed.bgr, task_args=feed.task_args)


def load_task(reference: str, known: Mapping[str, Any] = MappingProxyType({}), /, **arguments: Any) -> Task:
    """The task that "file.py:Class" or "package.module:Class" makes of its arguments.

    known: what its constructor is told of besides, where it has parameters of these names.
    Raises InputError naming what is wrong.
    """
    try:
        maker = import_attribute(reference)
    except ModelReferenceError as error:
        raise InputError(f"task {error}") from error
    if not callable(maker):
        raise InputError(f"task {reference!r} is a {type(maker).__name__}, not callable; name a class")
    offered = {name: value for name, value in known.items() if name in _parameters(maker)}
    try:
        task = maker(**offered | arguments)
    except InputError as error:
        raise InputError(f"task {reference!r}: {error}") from error
    except Exception as error:
        raise InputError(f"task {reference!r} raised {type(error).__name__}: {error}; mend its constructor") from error
    missing = [part for part in ("batch_size", "train", "heldout", "loss", "metrics") if not hasattr(task, part)]
    if missing:
        raise InputError(f"task {reference!r} has no {missing[0]!r}; add it, as search.task.Task describes")
    return task


def _parameters(maker: Callable[..., Any]) -> set[str]:
    """The names of a callable's own parameters; none where they cannot be seen."""
    try:
        return set(inspect.signature(maker).parameters)
    except (TypeError, ValueError):
        return set()
