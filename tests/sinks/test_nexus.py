"""What NexusFile leaves on the disk, however the recording ends."""

from __future__ import annotations

import datetime as dt
import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pyhub.errors import CapacityError, ChannelClosed, LayoutError, MissingExtra
from pyhub.sinks import columns, nexus, values
from pyhub.sinks.nexus import NexusFile
from pyhub.sources.hdf5 import FrameFile

ROOT = Path(__file__).parents[2]
REAL_FILES = [
    path for path in [ROOT.parent / "shared" / "data" / "nexus-example.hdf5"] if path.exists()
]

RECORD = np.dtype([("x", "<f4"), ("n", ">i8", (3,)), ("ok", "?"), ("tag", "S3"), ("z", "<c16")])
PADDED = np.dtype([("a", "u1"), ("b", "<f8")], align=True)
NUMPY_ONLY = np.dtype([("name", "<U3"), ("when", "<M8[us]"), ("inner", [("t", "<m8[s]", (2,))])])
DTYPES = [
    "?", "i1", "u1", "<i2", ">u2", "<i4", ">i4", "<u8", "<f2", ">f4", "<f8", "<f16", "<c8",
    ">c16", "S5", "V7", "<U4", "<M8[ns]", "<m8[s]", RECORD, PADDED, NUMPY_ONLY,
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.h5"


def random_frame(dtype: Any, shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    """Return a frame of any bytes that are values of `dtype`."""
    dtype = np.dtype(dtype)
    random = np.random.default_rng(seed)
    frame = np.zeros(shape, dtype)
    if dtype.names is not None:
        for name in dtype.names:
            field = dtype[name]
            frame[name] = random_frame(field.base, (*shape, *field.shape), seed)
    elif dtype.kind in "SU":
        frame[...] = random.integers(0, 10**6, shape).astype(str).astype(dtype)
    elif dtype.kind == "V":
        raw = random.bytes(frame.nbytes)
        frame = np.frombuffer(raw, dtype).reshape(shape)
    elif dtype.kind == "b":
        frame[...] = random.integers(0, 2, shape)
    else:
        frame[...] = random.integers(0, 100, shape)
    return frame


def record(path: Path, flexes: Sequence[dict[str, Any] | None]) -> None:
    """Record one small frame for each of `flexes`."""
    with NexusFile(path, dtype="u2", frame_shape=(2, 3)) as file:
        for i, flex in enumerate(flexes):
            file.append(np.full((2, 3), i, "u2"), frame_id=i, timestamp_ns=i * 1000, flex=flex)


def column(path: Path, name: str) -> Any:
    with h5py.File(path) as file:
        values = file[f"entry/parameters/{name}"][()]
    return [v.decode() for v in values] if values.dtype.kind == "S" else values


def attribute(path: Path, where: str, name: str) -> Any:
    with h5py.File(path) as file:
        return file[where].attrs[name]


# --- Frames ---


@pytest.mark.parametrize("compression", ["gzip", "lzf", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frames_are_read_back_bit_for_bit(path: Path, dtype: Any, compression: str) -> None:
    frames = [random_frame(dtype, (4, 5), seed) for seed in range(5)]
    with NexusFile(path, dtype=dtype, frame_shape=(4, 5), compression=compression) as file:
        for i, frame in enumerate(frames):
            file.append(frame, frame_id=i, timestamp_ns=i)
    with FrameFile(path) as source:
        assert source.dtype == np.dtype(dtype)
        read = [source.read(i) for i in range(5)]
    assert [r.tobytes() for r in read] == [f.tobytes() for f in frames]


@pytest.mark.parametrize("shape", [(), (7,), (4, 5), (4, 5, 3), (4, 5, 4), (2, 3, 4, 5)], ids=str)
def test_frames_of_any_number_of_dimensions_come_back(path: Path, shape: tuple[int, ...]) -> None:
    frames = [random_frame("u1", shape, seed) for seed in range(3)]
    with NexusFile(path, dtype="u1", frame_shape=shape) as file:
        for i, frame in enumerate(frames):
            file.append(frame, frame_id=i, timestamp_ns=i)
    with FrameFile(path) as source:
        assert (source.n_frames, source.frame_shape) == (3, shape)
        assert all((source.read(i) == frames[i]).all() for i in range(3))


def test_noise_that_does_not_compress_is_stored_as_it_is(path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 1 << 16, (64, 64)).astype("u2")
    with NexusFile(path, dtype="u2", frame_shape=(64, 64)) as file:
        file.append(noise, frame_id=0, timestamp_ns=0)
    with h5py.File(path) as h5:
        assert h5["entry/data/data"].id.get_chunk_info(0).filter_mask == 0b10
        assert (h5["entry/data/data"][0] == noise).all()


def test_a_frame_may_be_reused_as_soon_as_it_is_appended(path: Path) -> None:
    frame = np.zeros((256, 256), "u2")
    with NexusFile(path, dtype="u2", frame_shape=(256, 256), n_threads=1) as file:
        for i in range(20):
            frame[...] = i
            file.append(frame, frame_id=i, timestamp_ns=i)
    with h5py.File(path) as h5:
        assert (h5["entry/data/data"][:, 0, 0] == np.arange(20)).all()
        assert (h5["entry/data/data"][:, -1, -1] == np.arange(20)).all()


def test_strided_frames_are_recorded(path: Path) -> None:
    frame = random_frame("u2", (8, 10))
    for compression in ("gzip", "none"):
        target = path.with_name(compression)
        with NexusFile(target, dtype="u2", frame_shape=(4, 5), compression=compression) as file:
            file.append(frame[::2, ::-2], frame_id=0, timestamp_ns=0)
        with h5py.File(target) as h5:
            assert (h5["entry/data/data"][0] == frame[::2, ::-2]).all()


def test_a_chunk_is_a_frame(path: Path) -> None:
    record(path, [None] * 3)
    with h5py.File(path) as h5:
        data = h5["entry/data/data"]
        assert data.chunks == (1, 2, 3)
        assert data.id.get_num_chunks() == 3


@pytest.mark.parametrize("real", [None, *REAL_FILES], ids=lambda real: real and real.name)
def test_a_file_is_copied_bit_for_bit_with_its_parameters(real: Path | None, path: Path) -> None:
    with FrameFile(real or small_nexus_file(path.with_name("source.h5"))) as source:
        with NexusFile(path, dtype=source.dtype, frame_shape=source.frame_shape) as copy:
            for i in range(source.n_frames):
                flex = {**source.parameters(i), "units": source.units}
                copy.append(source.read(i), frame_id=i, timestamp_ns=i, flex=flex)
        with FrameFile(path) as recorded:
            assert recorded.units == source.units
            assert recorded.n_frames == source.n_frames
            for i in range(source.n_frames):
                assert recorded.read(i).tobytes() == source.read(i).tobytes()
                assert recorded.parameters(i) == source.parameters(i)


def small_nexus_file(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        entry["frames"] = random_frame(">i4", (5, 6, 7))
        entry["title"] = "a title"
        entry["mono/energy"] = np.array([12.5])
        entry["mono/energy"].attrs["units"] = "keV"
        entry["current"] = np.arange(5, dtype="f4")
        entry["current"].attrs["units"] = "mA"
    return path


# --- What viewers see ---


def test_the_default_plot_is_the_frames(path: Path) -> None:
    record(path, [None] * 2)
    with h5py.File(path) as h5:
        assert h5.attrs["default"] == "entry"
        entry = h5["entry"]
        assert (entry.attrs["NX_class"], entry.attrs["default"]) == ("NXentry", "data")
        data = entry["data"]
        assert (data.attrs["NX_class"], data.attrs["signal"]) == ("NXdata", "data")
        assert list(data.attrs["axes"]) == ["frame_id", ".", "."]
        assert data["data"].attrs["interpretation"] == "image"
        assert entry["instrument"].attrs["NX_class"] == "NXinstrument"
        assert entry["instrument/detector"].attrs["NX_class"] == "NXdetector"
        assert entry["instrument/detector/data"] == data["data"]
        assert entry["parameters"].attrs["NX_class"] == "NXcollection"


def test_title_and_detector_are_named(path: Path) -> None:
    with NexusFile(path, dtype="u2", frame_shape=(2,), title="scan 7", detector="cam1"):
        pass
    with h5py.File(path) as h5:
        assert h5["entry/title"][()] == b"scan 7"
        assert h5["entry/instrument/detector/local_name"][()] == b"cam1"


def test_the_frames_are_compressed_with_filters_that_every_hdf5_has(path: Path) -> None:
    record(path, [None])
    with h5py.File(path) as h5:
        data = h5["entry/data/data"]
        assert (data.compression, data.compression_opts, data.shuffle) == ("gzip", 1, True)


# --- Missing frames, time stamps, rows ---


def test_a_row_is_the_index_of_the_frame_and_lost_ones_are_holes(path: Path) -> None:
    with NexusFile(path, dtype="u2", frame_shape=(2, 3)) as file:
        file.append(np.full((2, 3), 1, "u2"), frame_id=10, timestamp_ns=1_500_000_000)
        file.append(np.full((2, 3), 5, "u2"), frame_id=14, timestamp_ns=1_900_000_000, n_lost=3)
        assert (file.n_frames, file.n_missing, file.n_rows) == (2, 3, 5)
    with h5py.File(path) as h5:
        data = h5["entry/data"]
        assert data["data"][:, 0, 0].tolist() == [1, 0, 0, 0, 5]
        assert data["data"].id.get_num_chunks() == 2
        assert data["frame_valid"][()].tolist() == [True, False, False, False, True]
        assert data["frame_id"][()].tolist() == [10, 11, 12, 13, 14]
        assert data["timestamp_ns"][()].tolist() == [1_500_000_000, -1, -1, -1, 1_900_000_000]
        assert data["timestamp"][[0, 4]].tolist() == [1.5, 1.9]
        assert np.isnan(data["timestamp"][1:4]).all()
        assert data["timestamp"].attrs["units"] == "s"
        assert data["timestamp"].attrs["epoch"] == "1970-01-01T00:00:00Z"
        assert data["timestamp_ns"].attrs["units"] == "ns"
        assert data["data"].attrs["n_frames"] == 2
        assert data["data"].attrs["n_missing"] == 3


def test_numbers_of_lost_frames_that_do_not_follow_are_left_open(path: Path) -> None:
    with NexusFile(path, dtype="u2", frame_shape=(2,)) as file:
        file.append(np.zeros(2, "u2"), frame_id=100, timestamp_ns=0)
        file.append(np.zeros(2, "u2"), frame_id=1, timestamp_ns=0, n_lost=2)
    with h5py.File(path) as h5:
        assert h5["entry/data/frame_id"][()].tolist() == [100, -1, -1, 1]
        assert h5["entry/data/frame_id"].attrs["missing_value"] == -1


def test_frames_lost_before_the_first_are_holes(path: Path) -> None:
    with NexusFile(path, dtype="u2", frame_shape=(2,)) as file:
        file.append(np.ones(2, "u2"), frame_id=5, timestamp_ns=0, n_lost=2)
    with h5py.File(path) as h5:
        assert h5["entry/data/frame_valid"][()].tolist() == [False, False, True]


def test_a_large_gap_costs_no_space(path: Path) -> None:
    with NexusFile(path, dtype="f8", frame_shape=(512, 512)) as file:
        file.append(np.ones((512, 512)), frame_id=0, timestamp_ns=0, flex={"a": 1.0})
        file.append(
            np.ones((512, 512)), frame_id=900_001, timestamp_ns=0, n_lost=900_000, flex={"a": 2.0}
        )
    with h5py.File(path) as h5:
        assert h5["entry/data/data"].shape == (900_002, 512, 512)
        assert h5["entry/data/frame_id"][900_000] == 900_000
        a = h5["entry/parameters/a"]
        assert (a[0], a[900_001]) == (1.0, 2.0)
        assert np.isnan(a[450_000])
    assert path.stat().st_size < 16 << 20


def test_a_gap_beyond_the_limit_gets_one_row_and_is_counted(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gap = nexus.MAX_GAP_ROWS + 1
    caplog.set_level(logging.WARNING, "pyhub.sinks")
    with NexusFile(path, dtype="u2", frame_shape=(2,)) as file:
        file.append(np.ones(2, "u2"), frame_id=0, timestamp_ns=0)
        file.append(np.ones(2, "u2"), frame_id=gap + 1, timestamp_ns=0, n_lost=gap)
    with h5py.File(path) as h5:
        data = h5["entry/data"]
        assert data["frame_valid"][()].tolist() == [True, False, True]
        assert data["frame_id"][()].tolist() == [0, -1, gap + 1]
        assert data["data"].attrs["n_missing"] == gap
        assert data["data"].attrs["n_rows_omitted"] == gap - 1
    assert "1000001 frames lost" in caplog.text


def test_a_frame_with_fewer_rows_says_how_many(path: Path) -> None:
    with NexusFile(path, dtype="u2", frame_shape=(4, 3)) as file:
        file.append(np.ones((4, 3), "u2"), frame_id=0, timestamp_ns=0)
        file.append(np.ones((1, 3), "u2"), frame_id=1, timestamp_ns=0)
    with FrameFile(path) as source:
        assert source.frame_rows is not None
        assert source.frame_rows.tolist() == [4, 1]
        assert source.read(1).tolist() == [[1] * 3, [0] * 3, [0] * 3, [0] * 3]


def test_frame_file_tells_of_lost_frames_and_time_stamps(path: Path) -> None:
    with NexusFile(path, dtype="u2", frame_shape=(2,)) as file:
        file.append(np.ones(2, "u2"), frame_id=0, timestamp_ns=7)
        file.append(np.ones(2, "u2"), frame_id=2, timestamp_ns=9, n_lost=1)
    with FrameFile(path) as source:
        assert source.frame_valid is not None
        assert source.timestamp_ns is not None
        assert source.frame_valid.tolist() == [True, False, True]
        assert source.timestamp_ns.tolist() == [7, -1, 9]


# --- Parameters ---


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1.5, 2.5], "f8"),
        ([1, -2], "i8"),
        ([2**63, 2**64 - 2], "u8"),
        ([True, False], "?"),
        ([1j, 2j], "c16"),
        ([np.float32(1), np.float32(2)], "f4"),
        ([np.uint16(1), np.uint16(2)], "u2"),
        ([np.uint16(1), np.int16(-2)], "i4"),
        ([1, 0.5], "f8"),
        ([0.5, 1], "f8"),
        ([np.float32(1), 0.1], "f8"),
        ([np.array(1.5, ">f4"), np.array(2.5, ">f4")], "f4"),
    ],
    ids=repr,
)
def test_numbers_keep_their_type_or_get_one_that_holds_all(
    path: Path, values: list[Any], dtype: str
) -> None:
    record(path, [{"x": value} for value in values])
    got = column(path, "x")
    assert got.dtype == np.dtype(dtype)
    assert got.tolist() == [getattr(value, "item", lambda value=value: value)() for value in values]


def test_a_type_may_widen_after_rows_were_written(path: Path) -> None:
    with NexusFile(path, dtype="u2", frame_shape=(2,), compression="none") as file:
        for i, value in enumerate([1, 2, 3.5, None, 2**60]):
            flex = {"x": value, "units": {"x": "s"}}
            file.append(np.zeros(2, "u2"), frame_id=i, timestamp_ns=0, flex=flex)
            file.flush()
    got = column(path, "x")
    assert got.dtype == np.dtype("f8")
    assert got[:3].tolist() == [1, 2, 3.5]
    assert np.isnan(got[3:]).all()
    assert column(path, "x_json") == ["", "", "", "", str(2**60)]
    assert attribute(path, "entry/parameters/x", "units") == "s"


def test_a_text_may_grow(path: Path) -> None:
    texts = ["", "ä", "x" * 40, "y" * 5000]
    with NexusFile(path, dtype="u2", frame_shape=(2,), compression="none") as file:
        for i, text in enumerate(texts):
            file.append(np.zeros(2, "u2"), frame_id=i, timestamp_ns=0, flex={"note": text})
            file.flush()
    assert column(path, "note") == texts


@pytest.mark.parametrize(
    ("first", "fill"),
    [
        (1.0, np.nan),
        (1, np.iinfo("i8").min),
        (np.uint8(1), 255),
        (True, False),
        ("text", ""),
        ([1.0, 2.0], [np.nan, np.nan]),
    ],
    ids=repr,
)
def test_a_parameter_that_a_frame_lacks_is_marked(path: Path, first: Any, fill: Any) -> None:
    record(path, [{"x": first}, {}, {"x": None}, {"x": first}])
    got = column(path, "x")
    np.testing.assert_array_equal(got[1], fill)
    np.testing.assert_array_equal(got[2], fill)
    np.testing.assert_array_equal(got[3], first)


def test_missing_integers_are_left_out_when_read_again(path: Path) -> None:
    record(path, [{"n": 1}, {}, {"n": 3}])
    with FrameFile(path) as source:
        assert [source.parameters(i) for i in range(3)] == [{"n": 1}, {}, {"n": 3}]


def test_nested_parameters_become_groups_and_come_back_flat(path: Path) -> None:
    flex = {"mono": {"energy": 12.0, "crystal": {"name": "Si111"}}, "n": 3}
    record(path, [flex])
    assert column(path, "mono/crystal/name") == ["Si111"]
    assert attribute(path, "entry/parameters/mono", "NX_class") == "NXcollection"
    with FrameFile(path) as source:
        assert source.parameters(0) == {"mono/energy": 12.0, "mono/crystal/name": "Si111", "n": 3}


def test_arrays_and_lists_of_numbers_become_arrays(path: Path) -> None:
    record(path, [{"a": np.arange(3, dtype="f4"), "l": [[1, 2], [3, 4]], "m": (1, 2.5)}] * 2)
    assert column(path, "a").shape == (2, 3)
    assert column(path, "a").dtype == np.dtype("f4")
    assert column(path, "l")[1].tolist() == [[1, 2], [3, 4]]
    assert column(path, "m")[0].tolist() == [1.0, 2.5]
    with FrameFile(path) as source:
        assert source.parameters(1)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "value",
    [
        [1, "a", None],
        [[1, 2], [3]],
        [{"motor": "x", "at": 1.5}],
        [],
        {},
        [2**53 + 1, 0.5],
        2**70,
        "nul\0inside",
    ],
    ids=repr,
)
def test_irregular_values_stand_as_json_and_come_back(path: Path, value: Any) -> None:
    record(path, [{"x": value}, {}])
    assert attribute(path, "entry/parameters/x", "pyhub_encoding") == "json"
    with FrameFile(path) as source:
        assert source.parameters(0) == {"x": value}
        assert source.parameters(1) == {}


@pytest.mark.parametrize(
    "second", ["auto", [1, 2], True, {"y": None}, 2**63 + 1], ids=repr
)  # all unlike the first, 5
def test_a_value_of_another_type_stands_beside_the_column(path: Path, second: Any) -> None:
    record(path, [{"x": 5}, {"x": second}, {"x": 6}])
    assert column(path, "x")[[0, 2]].tolist() == [5, 6]
    with FrameFile(path) as source:
        flat = {"x/y": None} if isinstance(second, dict) else {"x": second}
        expected = {name: value for name, value in flat.items() if value is not None}
        assert source.parameters(1) == expected
        assert source.parameters(2) == {"x": 6}


def test_dates_bytes_and_numpy_values_inside_are_readable(path: Path) -> None:
    when = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    record(
        path,
        [
            {
                "when": when,
                "stamp": np.datetime64("2026-01-02"),
                "raw": b"\0\1",
                "m": [np.int8(1), "a"],
            }
        ],
    )
    assert column(path, "when") == ["2026-01-02T03:04:05+00:00"]
    assert column(path, "stamp") == ["2026-01-02"]
    assert column(path, "raw") == ['{"base64": "AAE="}']
    assert column(path, "m") == ['[1, "a"]']


def test_units_go_to_the_parameters_that_they_belong_to(path: Path) -> None:
    flex = {
        "mono/energy": 12.0,
        "pos": {"x": 1.0},
        "n": 1,
        "units": {"mono/energy": "keV", "pos": {"x": "mm"}},
    }
    record(path, [flex, flex])
    assert attribute(path, "entry/parameters/mono/energy", "units") == "keV"
    with FrameFile(path) as source:
        assert source.units == {"mono/energy": "keV", "pos/x": "mm"}
        assert "units" not in source.parameters(0)


def test_units_that_are_no_texts_are_a_parameter(path: Path) -> None:
    record(path, [{"units": {"count": 3}}, {"units": 4.0}])
    assert column(path, "units/count")[0] == 3


def test_changed_units_are_noted_with_their_row(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pyhub.sinks"):
        record(path, [{"x": 1.0, "units": {"x": unit}} for unit in ("mm", "mm", "m")])
    assert attribute(path, "entry/parameters/x", "units") == "mm"
    assert attribute(path, "entry/parameters/x", "units_changed") == "from row 2: m"
    assert "units of x: mm, from row 2 m" in caplog.text


@pytest.mark.parametrize(
    "flex",
    [
        {"a": 1, "a/b": 2},
        {"a/b": 2, "a": 1},
        {"a": {"b": 1}, "a/b": 2},
        {"": 1, "/": 2, ".": 3, "a/./b": 4, "a//b": 5},
        {"nul\0": 1, "\udcff": 2, "ä/ö": 3},
        {"x": [1, "a"], "x_json": 3},
    ],
    ids=repr,
)
def test_names_that_hdf5_cannot_have_lose_no_value(path: Path, flex: dict[str, Any]) -> None:
    record(path, [flex, flex])
    with FrameFile(path) as source:
        assert len(source.parameters(1)) == len(values.flatten(flex))


def test_names_that_change_from_frame_to_frame_do_not_fill_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "MAX_PARAMETERS", 10)
    record(path, [{f"event {i}": i, "kept": 1.0} for i in range(20)])
    with FrameFile(path) as source:
        assert source.parameters(3) == {"event 3": 3, "kept": 1.0}
        assert source.parameters(19) == {"others": {"event 19": 19}, "kept": 1.0}


def test_a_recording_of_a_replayed_recording_has_the_same_parameters(path: Path) -> None:
    flexes = [
        {"mono/energy": 12.0 + i, "note": "ä", "pos": [1.0, i], "mixed": i if i else "none",
         "units": {"mono/energy": "keV"}}
        for i in range(3)
    ]  # fmt: skip
    record(path, flexes)
    again = path.with_name("again.h5")
    with FrameFile(path) as source:
        record(again, [{**source.parameters(i), "units": source.units} for i in range(3)])
        with FrameFile(again) as copy:
            assert copy.units == source.units
            for i in range(3):
                assert repr(copy.parameters(i)) == repr(source.parameters(i))


# --- Endings ---


def test_nothing_has_the_final_name_before_the_end(path: Path) -> None:
    file = NexusFile(path, dtype="u2", frame_shape=(2,))
    file.append(np.ones(2, "u2"), frame_id=0, timestamp_ns=0)
    assert not path.exists()
    assert Path(file.partial_path).exists()
    file.finish()
    assert path.exists()
    assert not Path(file.partial_path).exists()


def test_a_complete_recording_says_so(path: Path) -> None:
    record(path, [None])
    with h5py.File(path) as h5:
        attributes = h5["entry"].attrs
        assert attributes["pyhub_complete"]
        assert attributes["reason"] == ""
        start = dt.datetime.fromisoformat(h5["entry/start_time"][()].decode())
        assert start <= dt.datetime.fromisoformat(attributes["end_time"])
        assert h5["entry/end_time"][()].decode() == attributes["end_time"]


def test_an_exception_leaves_a_file_marked_as_partial(path: Path) -> None:
    file = NexusFile(path, dtype="u2", frame_shape=(2,))
    with pytest.raises(RuntimeError, match="stop"), file:
        file.append(np.ones(2, "u2"), frame_id=0, timestamp_ns=0)
        raise RuntimeError("stop")
    assert not attribute(path, "entry", "pyhub_complete")
    assert attribute(path, "entry", "reason") == "RuntimeError: stop"
    assert attribute(path, "entry/data/data", "n_frames") == 1


def test_ctrl_c_leaves_a_file_marked_as_partial(path: Path) -> None:
    file = NexusFile(path, dtype="u2", frame_shape=(2,))
    with pytest.raises(KeyboardInterrupt), file:
        file.append(np.ones(2, "u2"), frame_id=0, timestamp_ns=0)
        raise KeyboardInterrupt
    assert attribute(path, "entry", "reason") == "interrupted"


def test_close_marks_what_was_not_finished(path: Path) -> None:
    file = NexusFile(path, dtype="u2", frame_shape=(2,))
    file.close()
    file.close()
    assert file.closed
    assert not attribute(path, "entry", "pyhub_complete")
    assert attribute(path, "entry/data/data", "n_frames") == 0


@pytest.mark.parametrize("call", ["append", "flush", "finish"])
def test_a_finished_file_takes_nothing_more(path: Path, call: str) -> None:
    file = NexusFile(path, dtype="u2", frame_shape=(2,))
    file.finish()
    calls: dict[str, Callable[[], None]] = {
        "append": lambda: file.append(np.ones(2, "u2"), frame_id=0, timestamp_ns=0),
        "flush": file.flush,
        "finish": file.finish,
    }
    with pytest.raises(ChannelClosed, match="Make a new NexusFile"):
        calls[call]()


def test_an_existing_file_is_not_overwritten(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="exists; it was not touched"):
        NexusFile(path, dtype="u2", frame_shape=(2,))
    assert path.read_text() == "precious"


def test_overwriting_replaces_the_file_at_the_end_only(path: Path) -> None:
    path.write_text("old")
    file = NexusFile(path, dtype="u2", frame_shape=(2,), overwrite=True)
    assert path.read_text() == "old"
    file.finish()
    assert h5py.is_hdf5(path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_crash_left_is_not_destroyed(path: Path, overwrite: bool) -> None:
    partial = Path(str(path) + ".partial")
    partial.write_text("frames")
    with pytest.raises(FileExistsError, match="rename it to keep"):
        NexusFile(path, dtype="u2", frame_shape=(2,), overwrite=overwrite)
    assert partial.read_text() == "frames"


@pytest.mark.parametrize("has_hard_links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(
    path: Path, monkeypatch: pytest.MonkeyPatch, has_hard_links: bool
) -> None:
    if not has_hard_links:
        monkeypatch.setattr(os, "link", refuse_links)
    file = NexusFile(path, dtype="u2", frame_shape=(2,))
    file.append(np.ones(2, "u2"), frame_id=0, timestamp_ns=0)
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="by another program during the recording"):
        file.finish()
    assert path.read_text() == "precious"
    assert attribute(Path(file.partial_path), "entry", "pyhub_complete")


def test_a_file_system_without_hard_links_will_do(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    record(path, [None])
    assert [found.name for found in path.parent.iterdir()] == ["out.h5"]


def refuse_links(*_: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


# --- Bad input ---


def test_a_frame_of_another_dtype_or_shape_is_refused_and_the_file_goes_on(path: Path) -> None:
    with NexusFile(path, dtype="u2", frame_shape=(2, 3)) as file:
        with pytest.raises(LayoutError, match="dtype float64"):
            file.append(np.zeros((2, 3)), frame_id=0, timestamp_ns=0)
        with pytest.raises(LayoutError, match="shape"):
            file.append(np.zeros((2, 4), "u2"), frame_id=0, timestamp_ns=0)
        with pytest.raises(CapacityError, match="3 rows"):
            file.append(np.zeros((3, 3), "u2"), frame_id=0, timestamp_ns=0)
        with pytest.raises(LayoutError, match="n_lost=-1"):
            file.append(np.zeros((2, 3), "u2"), frame_id=0, timestamp_ns=0, n_lost=-1)
        file.append(np.zeros((2, 3), "u2"), frame_id=0, timestamp_ns=0)
    assert attribute(path, "entry/data/data", "n_frames") == 1


def test_frames_without_bytes_are_refused(path: Path) -> None:
    with pytest.raises(LayoutError, match="hold nothing"):
        NexusFile(path, dtype="u2", frame_shape=(0, 3))


def test_frames_too_large_for_a_chunk_are_refused(path: Path) -> None:
    with pytest.raises(CapacityError, match="4294967295"):
        NexusFile(path, dtype="u2", frame_shape=(1 << 16, 1 << 15))


def test_an_unknown_compression_lists_those_there_are(path: Path) -> None:
    with pytest.raises(LayoutError, match="gzip, lzf, bitshuffle-lz4, none"):
        NexusFile(path, dtype="u2", frame_shape=(2,), compression="zip")
    assert list(path.parent.iterdir()) == []


def test_bitshuffle_without_hdf5plugin_names_what_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(MissingExtra, match="pip install hdf5plugin"):
        NexusFile(path, dtype="u2", frame_shape=(2,), compression="bitshuffle-lz4")
    assert list(path.parent.iterdir()) == []


def test_a_missing_directory_is_an_error_that_says_so(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Create the directory"):
        NexusFile(path.parent / "absent" / "out.h5", dtype="u2", frame_shape=(2,))


# --- Disasters ---


def run_child(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


FULL_DISK = """
    import resource, signal, sys
    import numpy as np
    from pyhub.sinks.nexus import NexusFile

    path, limit, interval_s, compression = sys.argv[1:]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    file = NexusFile(path, dtype="u2", frame_shape=(64, 64), compression=compression,
                     flush_interval_s=float(interval_s))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    random = np.random.default_rng(0)
    try:
        with file:
            for i in range(1000):
                frame = random.integers(0, 1 << 16, (64, 64)).astype("u2")
                frame[0, 0] = i
                flex = {f"p{k}": float(k) for k in range(20)}
                file.append(frame, frame_id=i, timestamp_ns=i, flex=flex)
    except OSError as error:
        print(error.errno, error)
"""


@pytest.mark.parametrize("compression", ["gzip", "lzf", "none"])
@pytest.mark.parametrize("limit", [400_000, 987_654, 1_000_000, 1_048_576])
def test_a_full_disk_is_a_clear_error_and_the_flushed_frames_are_safe(
    path: Path, limit: int, compression: str
) -> None:
    child = run_child(FULL_DISK, path, limit, 0, compression)
    assert child.returncode == 0
    assert child.stderr == ""
    partial = Path(str(path) + ".partial")
    assert not path.exists()
    assert child.stdout.startswith(f"{errno.EFBIG} ")
    assert f"writing {str(partial)!r} failed: File too large" in child.stdout
    assert "ulimit -f" in child.stdout
    with h5py.File(partial) as h5:
        n = int(h5["entry/data/data"].attrs["n_frames"])
        assert n > 10
        assert f"{n} of {n + 1} frames are safe" in child.stdout or compression == "gzip"
        assert (h5["entry/data/data"][:n, 0, 0] == np.arange(n)).all()
        assert h5["entry/data/frame_valid"][:n].all()
        assert not h5["entry"].attrs["pyhub_complete"]
        assert h5["entry"].attrs["reason"] == nexus.UNFINISHED


def test_a_disk_that_is_full_at_the_end_leaves_no_file_of_the_final_name(path: Path) -> None:
    child = run_child(FULL_DISK, path, 8_250_000, 1e9, "none")
    assert child.stdout.startswith(f"{errno.EFBIG} ")
    assert not path.exists()
    assert attribute(Path(str(path) + ".partial"), "entry/data/data", "n_frames") == 1


def test_a_disk_that_was_full_from_the_start_leaves_nothing(path: Path) -> None:
    child = run_child(FULL_DISK, path, 10_000, 0, "none")
    assert "none of 1 frames is safe, and it was removed" in child.stdout
    assert list(path.parent.iterdir()) == []


def test_a_device_without_space_says_how_to_get_some(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = NexusFile(path, dtype="u2", frame_shape=(2,), flush_interval_s=0)
    file.append(np.ones(2, "u2"), frame_id=0, timestamp_ns=0)
    file.flush()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="No space left on device; 1 of 2 frames") as caught:
        file.append(np.ones(2, "u2"), frame_id=1, timestamp_ns=1)
        file.flush()
    assert caught.value.errno == errno.ENOSPC
    assert "df -h" in str(caught.value)
    assert file.closed
    assert not path.exists()
    with FrameFile(file.partial_path) as source:
        assert source.n_frames == 1


def test_a_file_that_cannot_be_synced_gets_no_final_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error; 1 of 1 frames"):
        record(path, [None])
    assert not path.exists()


def test_a_killed_recorder_leaves_a_partial_file_that_opens(path: Path) -> None:
    script = """
        import itertools, sys
        import numpy as np
        from pyhub.sinks.nexus import NexusFile

        file = NexusFile(sys.argv[1], dtype="u2", frame_shape=(64, 64), flush_interval_s=0.02)
        for i in itertools.count():
            frame = np.full((64, 64), i % 60000, "u2")
            file.append(frame, frame_id=i, timestamp_ns=i, flex={"i": i, "text": f"frame {i}"})
            if file._n_flushed > 100:
                print("enough", flush=True)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"enough\n"
        child.send_signal(signal.SIGKILL)
    assert not path.exists()
    with h5py.File(str(path) + ".partial") as h5:
        n = int(h5["entry/data/data"].attrs["n_frames"])
        assert n > 100
        assert (h5["entry/data/data"][:n, 3, 3] == np.arange(n) % 60000).all()
        assert (h5["entry/parameters/i"][:n] == np.arange(n)).all()
        assert h5["entry/parameters/text"][n - 1].decode() == f"frame {n - 1}"
        assert not h5["entry"].attrs["pyhub_complete"]


KILL_AT_WRITE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

static long n_left = -1, n_writes = 0;

void kill_at(long n) { n_left = n; n_writes = 0; }
long count_writes(void) { return n_writes; }

static void count(void)
{
    n_writes++;
    if (n_left >= 0 && n_left-- == 0)
        kill(getpid(), SIGKILL);
}

#define COUNTED(name, result, parameters, arguments)                     \
    result name parameters                                               \
    {                                                                    \
        static result (*real) parameters;                                \
        if (!real)                                                       \
            *(void **)&real = dlsym(RTLD_NEXT, #name);                   \
        count();                                                         \
        return real arguments;                                           \
    }

COUNTED(pwrite, ssize_t, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o))
COUNTED(pwrite64, ssize_t, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o))
COUNTED(ftruncate, int, (int fd, off_t n), (fd, n))
COUNTED(ftruncate64, int, (int fd, off64_t n), (fd, n))
"""

KILLED_EVERYWHERE = """
    import ctypes, mmap, os, sys
    import h5py
    import numpy as np
    from pyhub.sinks.nexus import NexusFile

    path, partial, step = sys.argv[1], sys.argv[1] + ".partial", int(sys.argv[3])
    library = ctypes.CDLL(sys.argv[2])
    shared = np.frombuffer(mmap.mmap(-1, 4096), "i8")  # rows and frames flushed, writes made

    def record():
        file = NexusFile(path, dtype="u2", frame_shape=(4, 8), compression="none",
                         flush_interval_s=1e9)
        for i in range(150):
            flex = {f"p{k}": k + i for k in range(12)}
            flex["exposure"] = 1 if i < 80 else 0.5
            flex["text"] = "x" * i
            n_lost = 0 if i % 37 else min(i, 40)
            file.append(np.full((4, 8), i, "u2"), frame_id=file.n_rows + n_lost,
                        timestamp_ns=i, flex=flex, n_lost=n_lost)
            if i % 23 == 0:
                file.flush()
                shared[:2] = file.n_rows, file.n_frames
        file.finish()

    def check():
        n_rows, n = map(int, shared[:2])
        with h5py.File(partial if os.path.exists(partial) else path) as h5:
            data = h5["entry/data"]
            valid = data["frame_valid"][:n_rows]
            assert valid.sum() == n
            assert (data["data"][:n_rows][valid] == np.arange(n)[:, None, None]).all()
            assert (data["frame_id"][:n_rows] == np.arange(n_rows)).all()
            parameters = dict(h5["entry/parameters"].items())
            assert len(parameters) == (14 if n else 0)
            # Rows after the flushed ones may be there or not, but they can be read.
            n_read = 0
            for group in (h5["entry"], data, parameters):
                for item in group.values():
                    n_read += hasattr(item, "dtype") and np.size(item[()])
            assert n_read
            if n:
                assert (parameters["p3"][:n_rows][valid] == 3 + np.arange(n)).all()

    def run(n_writes):
        for name in (path, partial):
            if os.path.exists(name):
                os.unlink(name)
        shared[:] = 0
        child = os.fork()
        if not child:
            library.kill_at(n_writes)
            record()
            shared[2] = library.count_writes()
            os._exit(0)
        os.waitpid(child, 0)

    run(-1)
    check()
    n_writes = int(shared[2])
    n_tried = 0
    for n in range(40, n_writes, step):
        run(n)
        if shared[1]:
            n_tried += 1
            check()
    print(n_tried, n_writes)
"""


def test_a_kill_at_any_write_leaves_all_flushed_frames(path: Path) -> None:
    source, library = path.with_name("kill.c"), path.with_name("kill.so")
    source.write_text(KILL_AT_WRITE)
    compiler = os.environ.get("CC", "gcc")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_EVERYWHERE), path, library, "3"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "LD_PRELOAD": str(library)},
    )
    assert child.stderr == ""
    n_tried, n_writes = map(int, child.stdout.split())
    assert n_tried > 50
    assert n_writes > 300


def test_frames_that_wait_do_not_pile_up(path: Path) -> None:
    with NexusFile(path, dtype="u2", frame_shape=(256, 256), n_threads=1) as file:
        for i in range(50):
            file.append(np.zeros((256, 256), "u2"), frame_id=i, timestamp_ns=i)
            assert len(file._pending) <= 2
