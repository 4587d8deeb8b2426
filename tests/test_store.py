"""The store loses nothing, whatever happens to its writers and files."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pandas.testing import assert_frame_equal

from latency.device import Device, Machine
from latency.store import COLUMNS, Store
from network.errors import DeviceError, StoreError
from network.files import write_atomically

MACHINE = Machine("Some CPU", 2, "x86_64")
DEVICE = Device(MACHINE.id, "torch", "fp32", 2, "2.0")


def row(number, **changes):
    values = {"kind": "layer", "spec": "s", "c_in": 8, "c_out": 8, "ms": 1.0, "iqr_ms": 0.1, "n": 5}
    values |= {"contention": 0.0, "layers_ms": None, "network": "n", "configuration": number, "measured_at": "now"}
    return values | changes


def test_rows_come_back_as_they_were_appended(tmp_path):
    store = Store(tmp_path)
    store.append(MACHINE, DEVICE, [row(0), row(1, ms=2.0)])
    rows = store.device_rows(DEVICE)
    assert list(rows.columns) == list(COLUMNS)
    assert rows.ms.tolist() == [1.0, 2.0]
    assert store.devices() == [DEVICE]


def test_rows_of_another_thread_count_or_version_are_another_device(tmp_path):
    store = Store(tmp_path)
    other = Device(MACHINE.id, "torch", "fp32", 1, "2.0")
    store.append(MACHINE, DEVICE, [row(0)])
    store.append(MACHINE, other, [row(0)])
    assert len(store.device_rows(DEVICE)) == len(store.device_rows(other)) == 1


def test_an_empty_store_says_what_to_run(tmp_path):
    with pytest.raises(DeviceError, match="run profile-device"):
        Store(tmp_path).find(None, "torch", "fp32", None)


def test_a_damaged_file_is_set_aside_and_the_rest_is_read(tmp_path, capsys):
    store = Store(tmp_path)
    store.append(MACHINE, DEVICE, [row(0)])
    damaged = next(tmp_path.glob("*/rows/*.parquet"))
    store.append(MACHINE, DEVICE, [row(1)])
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert store.rows().configuration.tolist() == [1]
    assert damaged.with_suffix(".damaged").exists()
    assert "measured again" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), PermissionError(13, "Permission denied")])
def test_a_file_that_cannot_be_read_just_now_stays_where_it_is(tmp_path, monkeypatch, error):
    store = Store(tmp_path)
    store.append(MACHINE, DEVICE, [row(0)])
    read = Path.read_bytes
    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", lambda path: failing(error) if path.suffix == ".parquet" else read(path))
        with pytest.raises(StoreError, match=r"cannot read .*parquet: .*try again"):
            store.rows()
    assert len(store.rows()) == 1


def test_a_file_for_which_there_is_no_memory_stays_where_it_is(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.append(MACHINE, DEVICE, [row(0)])
    with monkeypatch.context() as full:
        full.setattr("pyarrow.parquet.read_table", lambda *_, **__: failing(pa.ArrowMemoryError("malloc failed")))
        with pytest.raises(StoreError, match="free some memory"):
            store.rows()
    assert len(store.rows()) == 1


def failing(error):
    raise error


def test_content_that_arrow_cannot_decode_is_set_aside(tmp_path):
    store = Store(tmp_path)
    store.append(MACHINE, DEVICE, [row(number) for number in range(50)])
    path = next(tmp_path.glob("*/rows/*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    assert store.rows().empty
    assert path.with_suffix(".damaged").exists()


def test_an_export_is_imported_once_and_exactly(tmp_path):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    other = Machine("Another, with a comma", 8, "arm64", "GPU")
    devices = [DEVICE, Device(other.id, "openvino", "bf16", 8, "2026.4")]
    here.append(MACHINE, devices[0], [row(0, ms=0.1 + 0.2), row(1, kind="network", layers_ms=1 / 3)])
    here.append(other, devices[1], [row(0, spec='{"a":"b, c"}')])
    assert here.export_csv(tmp_path / "all.csv") == 3
    there.append(MACHINE, devices[0], [row(0, ms=0.1 + 0.2)])
    assert there.absorb(tmp_path / "all.csv") == 2
    assert there.absorb(tmp_path / "all.csv") == 0
    assert there.absorb(tmp_path / "here") == 0
    assert there.machines() == here.machines()
    for device in devices:
        ours, theirs = (
            store.device_rows(device).sort_values("configuration").reset_index(drop=True) for store in (here, there)
        )
        assert_frame_equal(ours, theirs)


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "cannot read"), ("", "cannot read"), ("ms\n1\n", "lacks the column 'schema'")],
)
def test_what_is_no_export_is_refused(tmp_path, text, words):
    path = tmp_path / "some.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StoreError, match=words):
        Store(tmp_path / "store").absorb(path)
    with pytest.raises(StoreError, match="no store"):
        Store(tmp_path / "store").absorb(tmp_path)


def test_another_schema_is_refused(tmp_path):
    store = Store(tmp_path)
    store.append(MACHINE, DEVICE, [row(0)])
    described = tmp_path / MACHINE.id / "device.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"schema": 99}))
    with pytest.raises(StoreError, match="schema"):
        store.rows()


def _append_for_ever(folder, name):
    store = Store(folder)
    for number in range(10_000):
        store.append(MACHINE, DEVICE, [row(number, network=name), row(number, network=name)])


@pytest.mark.parametrize("seconds", [0.3, 0.7])
def test_two_writers_killed_at_any_moment_leave_whole_batches(tmp_path, seconds):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_for_ever, args=(tmp_path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    time.sleep(seconds)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    rows = Store(tmp_path).rows()
    assert not rows.empty
    assert (rows.groupby(["network", "configuration"]).size() == 2).all()


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        write_atomically(tmp_path / "file" / "below", b"x")
