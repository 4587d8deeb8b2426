"""Rows of a benchmark: a file of JSON objects, a line each, added as they come and read again by a run that goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["add_rows", "read_rows"]


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """The rows of a file that may not be there yet; a last line that a kill cut short is none."""
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    rows = []
    for number, text in enumerate(lines, 1):
        try:
            rows.append(json.loads(text))
        except json.JSONDecodeError:
            if number < len(lines):
                raise SystemExit(f"{path}, line {number}, is no JSON; remove it or give another --out") from None
    return rows


def add_rows(path: Path | None, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to the file, together; nothing where there is none."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.read_bytes() if path.exists() else b""
    if not written.endswith(b"\n") and written:  # what a kill left of a line
        path.write_bytes(written[: written.rfind(b"\n") + 1])
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
