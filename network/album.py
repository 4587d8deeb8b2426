"""The pictures of a folder, a zip or one file, by name: where everything that is fed to an image network is read."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from network.errors import InputError

__all__ = ["CACHE_BYTES", "SUFFIXES", "Album", "held_out_names"]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
CACHE_BYTES = 1 << 30  # pictures are kept decoded while they fit in this
UNREADABLE = (
    *(OSError, ValueError, SyntaxError, KeyError, EOFError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError),
)
"""What damaged, encrypted or huge pictures raise, and entries of a zip."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations, and what puts them upright."""

HELD_OUT = {"test", "val", "valid", "validation", "heldout", "held-out"}


class Album:
    """Pictures by name, in sorted order; a folder is searched through. Raises InputError where there are none."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._entries = _entries(self.path)
        self.names = tuple(sorted(self._entries))
        if not self.names:
            raise InputError(f"{path} holds no images; give a folder or zip of {', '.join(sorted(SUFFIXES))}")
        self._decoded: dict[tuple[str, str | None], Image.Image] = {}
        self._bytes = 0

    def open(self, name: str, mode: str | None = None) -> Image.Image:
        """The picture upright, as it is or in this mode of Pillow's. Raises InputError, naming the file."""
        try:
            with Image.open(self._stream(name)) as picture:
                upright = _upright(picture)
                return _in_bytes(upright, picture.format).convert(mode) if mode else upright
        except UNREADABLE as error:
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
                return io.BytesIO(archive.read(self._entries[name]))
        return self.path


def _upright(picture: Image.Image) -> Image.Image:
    """A copy, turned as its EXIF says where that can be read: a picture with damaged EXIF is a picture all the same."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises many kinds for it
        orientation = None
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture.copy()


def held_out_names(names: Iterable[str]) -> list[str]:
    """Those that the data itself holds out: in a folder named test, val or the like."""
    return [name for name in names if HELD_OUT & {part.lower() for part in Path(name).parts[:-1]}]


def _in_bytes(picture: Image.Image, made: str | None) -> Image.Image:
    """Gray of 16 bits in 8, which Pillow would clip. Raises ValueError for numbers of which nobody knows the scale."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and made == "PPM"):
        return Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"its mode {picture.mode} has no known white; save it with 8 or 16 bits")
    return picture


def _entries(path: Path) -> dict[str, str]:
    """The pictures by name, with their names in the zip, but for hidden files, such as macOS's ._photo.jpg."""
    if path.is_dir():
        inside = {str(each.relative_to(path)): "" for each in path.rglob("*")}
    elif not path.is_file():
        raise InputError(f"there is no folder or file {path}")
    elif path.suffix.lower() != ".zip":
        return {path.name: ""}
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                inside = {str(Path(each)): each for each in archive.namelist() if not each.endswith("/")}
        except UNREADABLE as error:
            raise InputError(f"{path} is not a zip that can be read ({error})") from error
    shown = {Path(name): entry for name, entry in inside.items() if not Path(name).name.startswith(".")}
    return {str(name): entry for name, entry in shown.items() if name.suffix.lower() in SUFFIXES}
