"""What the three commands share: the ways to name a network and its inputs, and one way to fail."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import platformdirs

from network.errors import NarrowgaugeError

__all__ = [
    "add_image_options",
    "add_model_options",
    "add_profiles_option",
    "default_profiles",
    "positive_int",
    "run",
    "share",
    "use_huge_pages",
]


def default_profiles() -> Path:
    """The store of latency tables: $NARROWGAUGE_PROFILES, else the platform's user data folder."""
    return Path(os.environ.get("NARROWGAUGE_PROFILES") or platformdirs.user_data_path("narrowgauge") / "profiles")


def positive_int(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def share(text: str) -> float:
    """An argparse type: 5% or 0.05."""
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 100%")
    return value


def add_model_options(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """MODEL, --model-args, --weights and --input."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?" if optional else None,
        help="package.module:callable or path/file.py:callable that returns an nn.Module",
    )
    parser.add_argument("--model-args", metavar="JSON", default="{}", help="keyword arguments for the callable")
    parser.add_argument("--weights", metavar="FILE", help="state dict to load: .pth or .safetensors")
    parser.add_argument(
        "--input",
        metavar="SHAPE",
        action="append",
        help="shape of the input, such as 1x3x224x224; once per input",
    )


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """--images, --preprocess, --bgr, --task and --task-args."""
    parser.add_argument("--images", metavar="DIR|ZIP|FILE", help="photos to feed an image network, no labels needed")
    parser.add_argument(
        "--preprocess",
        metavar="KIND",
        default=None,
        help="unit (0…1, the default), signed (-1…1), byte (0…255), imagenet, or file.py:callable (PIL image → tensor)",
    )
    parser.add_argument("--bgr", action="store_true", default=None, help="swap the channels of every photo to BGR")
    parser.add_argument("--task", metavar="FILE:CLASS", help="your own loss, data and metric instead of --images")
    parser.add_argument("--task-args", metavar="JSON", help="keyword arguments for the task, such as its folders")


def add_profiles_option(parser: argparse.ArgumentParser) -> None:
    """--profiles."""
    parser.add_argument(
        "--profiles",
        metavar="DIR",
        type=Path,
        default=default_profiles(),
        help="store of latency tables (default: $NARROWGAUGE_PROFILES, else %(default)s)",
    )


def use_huge_pages() -> None:
    """Let torch back large CPU tensors by huge pages; works until torch allocates its first tensor.

    With small pages, eager torch spends up to half its time in page faults, which is also most of its noise
    (docs/notes/2026-11-21-huge-pages.md). Serve with THP_MEM_ALLOC_ENABLE=1 to have what was measured.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def run(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Run a command: a NarrowgaugeError becomes one line on stderr and exit code 2; so does Ctrl-C."""
    use_huge_pages()
    try:
        return main(argv)
    except NarrowgaugeError as error:
        message = " ".join(str(error).split())
    except KeyboardInterrupt:
        message = "interrupted; what was finished is kept, run the same command again to go on"
    print(f"error: {message}", file=sys.stderr)
    return 2
