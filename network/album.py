"""The pictures of a folder, a zip or one file, by name: where everything that is fed to an image network is read."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from network.errors import InputError

__all__ = ["CACHE_BYTES", "SUFFIXES", "Album", "held_out_names"]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
CACHE_BYTES = 1 << 30  # pictures are kept decoded while they fit in this
HELD_OUT = {"test", "val", "valid", "validation", "heldout", "held-out"}


class Album:
    """Pictures by name, in sorted order; a folder is searched through. Raises InputError where there are none."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.names = tuple(_names(self.path))
        if not self.names:
            raise InputError(f"{path} holds no images; give a folder or zip of {', '.join(sorted(SUFFIXES))}")
        self._decoded: dict[tuple[str, str | None], Image.Image] = {}
        self._bytes = 0

    def open(self, name: str, mode: str | None = None) -> Image.Image:
        """The picture, as it is or in this mode of Pillow's. Raises InputError, naming the file."""
        try:
            with Image.open(self._stream(name)) as picture:
                return picture.convert(mode) if mode else picture.copy()
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path}: cannot read the image {name} ({error}); remove or mend it") from error

    def kept(self, name: str, mode: str | None = None) -> Image.Image:
        """The same, whole in memory from now on while there is room; not to be written to."""
        return self.remembered((name, mode), lambda: self.open(name, mode))

    def remembered(self, key: tuple[str, str | None], make: Callable[[], Image.Image]) -> Image.Image:
        """What `make` makes, kept under `key` while there is room."""
        if key in self._decoded:
            return self._decoded[key]
        picture = make()
        size = picture.width * picture.height * len(picture.getbands())
        if self._bytes + size <= CACHE_BYTES:
            self._decoded[key], self._bytes = picture, self._bytes + size
        return picture

    def _stream(self, name: str) -> Path | io.BytesIO:
        if self.path.is_dir():
            return self.path / name
        if self.path.suffix.lower() == ".zip":
            with zipfile.ZipFile(self.path) as archive:
                return io.BytesIO(archive.read(name))
        return self.path


def held_out_names(names: Iterable[str]) -> list[str]:
    """Those that the data itself holds out: in a folder named test, val or the like."""
    return [name for name in names if HELD_OUT & {part.lower() for part in Path(name).parts[:-1]}]


def _names(path: Path) -> list[str]:
    if path.is_dir():
        found = [str(each.relative_to(path)) for each in path.rglob("*") if each.suffix.lower() in SUFFIXES]
        return sorted(found)
    if not path.is_file():
        raise InputError(f"there is no folder or file {path}")
    if path.suffix.lower() != ".zip":
        return [path.name]
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [Path(name) for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path} is not a zip that can be read ({error})") from error
    return sorted(str(n) for n in inside if n.suffix.lower() in SUFFIXES and not n.name.startswith("."))
