"""What tells one machine from another, on processors that none of ours is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from latency.device import Machine, this_machine


def cpuinfo(monkeypatch: pytest.MonkeyPatch, folder: Path, machine: str, cpus: str, board: str = "") -> Machine:
    """What this machine would be with such files."""
    monkeypatch.setattr("latency.device.CPUINFO", folder / "cpuinfo")
    monkeypatch.setattr("latency.device.BOARD", folder / "board")
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.processor", lambda: "")
    (folder / "cpuinfo").write_text(cpus)
    (folder / "board").unlink(missing_ok=True)
    if board:
        (folder / "board").write_bytes(board.encode() + b"\0")
    return this_machine()


def test_an_x86_processor_is_its_name_its_numbers_and_its_vector_units(monkeypatch, tmp_path):
    numbers = "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n"
    cpu = f"processor: {{}}\n{numbers}flags\t: fpu avx2 sse4_2\n\n"
    found = cpuinfo(monkeypatch, tmp_path, "x86_64", cpu.format(0) + cpu.format(1))
    assert (found.processor, found.features) == ("AMD EPYC", "x86_64 25-17-1 sse4_2 avx2")


def arm(*parts: str) -> str:
    cpu = "Features\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU variant\t: 0x4\nCPU part\t: {}\nCPU revision\t: 1"
    return "\n\n".join(f"processor\t: {number}\n{cpu.format(part)}" for number, part in enumerate(parts))


def test_arm_processors_are_told_apart_by_their_numbers_and_named_by_their_board(monkeypatch, tmp_path):
    one = cpuinfo(monkeypatch, tmp_path, "aarch64", arm("0xd08", "0xd08"))
    two = cpuinfo(monkeypatch, tmp_path, "aarch64", arm("0xd0b", "0xd0b"))
    assert one.features == "aarch64 0x41-0xd08-0x4-1 asimd asimddp"
    assert one.processor == "aarch64"
    assert one.id != two.id
    both = cpuinfo(monkeypatch, tmp_path, "aarch64", arm("0xd0b", "0xd05", "0xd0b"), "Some Board 5 Rev 1.0")
    assert both.features == "aarch64 0x41-0xd05-0x4-1+0x41-0xd0b-0x4-1 asimd asimddp"
    assert both.id.startswith("some-board-5-rev-1-0-")


def test_a_mac_says_its_processor_itself(monkeypatch, tmp_path):
    answer = subprocess.CompletedProcess([], 0, "Apple M2\n", "")
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("subprocess.run", lambda *words, **named: answer)
    monkeypatch.setattr("latency.device.CPUINFO", tmp_path / "none")
    monkeypatch.setattr("latency.device.BOARD", tmp_path / "none")
    assert this_machine().processor == "Apple M2"
