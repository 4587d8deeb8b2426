"""What a run has finished, on disk, so that the same command after a kill goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from compress import processes
from compress.checkpoint import read_json, read_tensors, write_json, write_tensors
from network.errors import PlanError

__all__ = ["LAST", "Ledger", "identity"]

RECORD = "run.json"

LAST = "report"
"""The stage that a finished run ends with."""


def identity(*parts: Any) -> str:
    """Digest of what a run was told; runs of equal identity may continue one another.

    What it finds for itself, such as times and how fast to learn, is in its ledger, and what items hold is in neither.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class Ledger:
    """The folder of one run: run.json with each finished stage's notes, and a tensor file per stage.

    An unfinished run of another identity is set aside, and taken up again when it is its turn; the record of a finished
    one is dropped. Raises PlanError where `resume` insists and there is no run to go on with. Of several processes the
    first alone reads and writes; all know the same notes.
    """

    def __init__(self, folder: Path, key: str, *, resume: bool, notify: Callable[[str], Any]):
        self.folder = folder
        self._document = processes.decided(lambda: self._open(key, resume, notify))

    def _open(self, key: str, resume: bool, notify: Callable[[str], Any]) -> dict[str, Any]:
        folder, aside = self.folder, self._aside(key)
        found = _record(folder)
        mine = next((record for record in (found, _record(aside)) if record.get("identity") == key), None)
        if resume and not mine:
            state = "of another plan, weights or options" if found else "not there"
            raise PlanError(
                f"nothing to resume in {folder.parent}: its run is {state}; leave out --resume to start anew"
            )
        if mine is not found:
            self._make_room(found, notify)
            if mine:
                aside.rename(folder)
        if mine and mine["stages"]:
            notify(f"resuming the run in {folder.parent} after: {', '.join(mine['stages'])}")
        return mine or {"identity": key, "stages": {}}

    def _make_room(self, found: Mapping[str, Any], notify: Callable[[str], Any]) -> None:
        """Set the unfinished run aside that is where another's is to be; drop what is none, or is finished."""
        where = f"{self.folder.parent} holds"
        if found and LAST not in found["stages"]:
            aside = self._aside(found["identity"])
            self.folder.rename(aside)
            notify(f"{where} an unfinished run of another plan, other data or options; it waits in {aside.name}/")
            return
        if found:
            notify(f"{where} a finished run of another plan, other data or options; the new one replaces it")
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _aside(self, key: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}-{key[:8]}")

    def notes(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage noted; None if it has not been finished."""
        return self._document["stages"].get(stage)

    def finish(self, stage: str, notes: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Record a stage: its tensors first, so that a stage on record is whole; its checkpoint is then useless."""
        self._document["stages"][stage] = dict(notes)
        if not processes.leads():
            return
        if tensors is not None:
            write_tensors(self._file(stage), tensors)
        write_json(self.folder / RECORD, self._document)
        self.checkpoint(stage).unlink(missing_ok=True)

    def tensors(self, stage: str) -> dict[str, Tensor]:
        """The tensors of a finished stage. Raises StoreError where they cannot be read."""
        return read_tensors(self._file(stage))[0]

    def checkpoint(self, stage: str) -> Path:
        """Where an unfinished stage keeps its state."""
        return self.folder / f"{stage}-checkpoint.safetensors"

    def clear(self) -> None:
        """Drop the stages' tensors once the network is delivered; the record of the run stays."""
        for path in self.folder.glob("*.safetensors"):
            path.unlink()

    def _file(self, stage: str) -> Path:
        return self.folder / f"{stage}.safetensors"


def _record(folder: Path) -> dict[str, Any]:
    """What run.json says of the run in a folder; nothing where there is none."""
    path = folder / RECORD
    found = read_json(path) if path.exists() else None
    return found if isinstance(found, dict) and found.keys() >= {"identity", "stages"} else {}
